"""A tensor that does not fit its layout is named, with its dimension; `dtype` names elements that are held as bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from kvdepot import InvalidArgument, KvShape, SharedBuffer, SharedRegions
from kvdepot.layout import layouts
from kvdepot.layout.layouts import Layout

TWO_NB = layouts.NL_X_TWO_NB_BS_NH_HS
FITTING = (2, 4, 8, 2, 16)


@pytest.fixture
def buffer() -> Iterator[SharedBuffer]:
    with SharedBuffer.create(1 << 16) as buffer:
        yield buffer


@pytest.fixture
def shared(buffer: SharedBuffer) -> SharedRegions:
    shared = SharedRegions()
    shared.add(buffer)
    return shared


def violation(layout: Layout, tensors: Any, shared: Any, **options: Any) -> tuple[str, str]:
    with pytest.raises(InvalidArgument) as raised:
        layout.from_tensors(tensors, shared, **options)
    (found,) = raised.value.violations
    return found.field, found.description


@pytest.mark.parametrize(
    ("shape", "dtype", "description"),
    [
        ((2, 5, 8, 2, 16), "uint8", "NB is 5, not 4"),
        ((2, 4, 8, 3, 16), "uint8", "NH is 3, not 2"),
        ((2, 4, 8, 2, 32), "uint8", "HS is 32, not 16"),
        ((4, 8, 2, 16), "uint8", "its shape is (4, 8, 2, 16), not (2, 4, 8, 2, 16)"),
        (FITTING, "int8", "its dtype is int8, not uint8"),
    ],
)
def test_tensor_that_differs_from_the_first_is_named(
    shape: tuple[int, ...], dtype: str, description: str, buffer: SharedBuffer, shared: SharedRegions
) -> None:
    tensors = [buffer.view("uint8", FITTING), buffer.view("uint8", FITTING), buffer.view(dtype, shape)]
    assert violation(TWO_NB, tensors, shared) == (
        "tensors[2]",
        f"NL_X_TWO_NB_BS_NH_HS: it differs from the first tensor: {description}",
    )


def test_stride_that_differs_is_named(buffer: SharedBuffer, shared: SharedRegions) -> None:
    tensors = [buffer.view("uint8", FITTING), buffer.view("uint8", (2, 4, 8, 4, 16))[:, :, :, ::2]]
    _, description = violation(TWO_NB, tensors, shared)
    assert description.endswith("the stride of TWO is 2048 bytes, not 1024")


def test_first_tensor_is_named_with_its_dimension(buffer: SharedBuffer, shared: SharedRegions) -> None:
    field, description = violation(TWO_NB, [buffer.view("uint8", (3, 4, 8, 2, 16))], shared)
    assert field == "tensors[0]"
    assert "dimension 0, TWO can't have the size 3, but 2" in description


def test_tensor_in_nested_lists_is_named_by_all_of_its_indices(buffer: SharedBuffer, shared: SharedRegions) -> None:
    fitting, other = buffer.view("uint8", (32, 2, 16)), buffer.view("uint8", (40, 2, 16))
    tensors = [[fitting, fitting], [fitting, other]]
    field, description = violation(layouts.TWO_X_NL_X_NBBS_NH_HS, tensors, shared, block_size=8)
    assert (field, description.rpartition(": ")[2]) == ("tensors[1][1]", "NBBS is 40, not 32")


def test_array_outside_of_the_shared_memory_is_named(buffer: SharedBuffer, shared: SharedRegions) -> None:
    tensors = [buffer.view("uint8", FITTING), np.zeros(FITTING, "uint8")]
    field, description = violation(TWO_NB, tensors, shared)
    assert field == "tensors[1]"
    assert "lies in no SharedBuffer that was added: make it with `SharedBuffer.create(size_bytes)`" in description


@pytest.mark.parametrize(
    ("tensors", "field", "description"),
    [
        (None, "tensors", "is a NoneType, not a list of NL"),
        ({"layer.0": 1}, "tensors", "is a dict, not a list of NL: pass its values, in the order of the layers"),
        ([None], "tensors[0]", "neither a NumPy array nor a torch tensor: NoneType"),
        ([[1, 2]], "tensors[0]", "neither a NumPy array nor a torch tensor: list"),
        ("kv", "tensors", "is a str, not a list of NL"),
    ],
)
def test_what_is_no_list_of_tensors_is_named(tensors: Any, field: str, description: str, shared: SharedRegions) -> None:
    assert violation(TWO_NB, tensors, shared) == (field, f"NL_X_TWO_NB_BS_NH_HS: {description}")


def test_buffer_in_place_of_the_regions_is_named(buffer: SharedBuffer) -> None:
    assert violation(TWO_NB, [buffer.view("uint8", FITTING)], buffer) == (
        "shared",
        "is a SharedBuffer; make a SharedRegions and `add` the SharedBuffer",
    )
    with pytest.raises(InvalidArgument, match="buffer: is a ndarray, not a SharedBuffer"):
        SharedRegions().add(buffer.array)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stored_as", "head_size", "dtype"),
    [("uint16", 16, "bfloat16"), ("uint8", 32, "bfloat16"), ("int8", 32, "float8_e5m2")],
)
def test_dtype_names_elements_that_are_held_as_others(
    stored_as: str, head_size: int, dtype: str, buffer: SharedBuffer, shared: SharedRegions
) -> None:
    tensors = [buffer.view(stored_as, (2, 4, 8, 2, head_size))]
    group = TWO_NB.from_tensors(tensors, shared, dtype=dtype)
    assert (group.dtype, group.head_bytes) == (dtype, 32)
    shape = KvShape(num_layers=1, num_blocks=4, block_size=8, num_heads=2, head_size=16, dtype="bfloat16")
    if dtype == "bfloat16":
        assert group == TWO_NB.from_shape(shape)


@pytest.mark.parametrize(
    ("dtype", "description"),
    [
        ("float64", "the 20 bytes of a head are no whole number of float64"),
        ("half", "'half' is not the name of a dtype"),
        (np.float16, "is not the name of a dtype"),
    ],
)
def test_dtype_that_does_not_fit_is_refused(
    dtype: Any, description: str, buffer: SharedBuffer, shared: SharedRegions
) -> None:
    field, found = violation(TWO_NB, [buffer.view("uint8", (2, 4, 8, 2, 20))], shared, dtype=dtype)
    assert field == "dtype"
    assert description in found


@pytest.mark.parametrize(
    ("dtype", "shape", "offset_bytes", "match"),
    [
        ("bfloat16", (2,), 0, r"dtype: NumPy has no 'bfloat16': .*from_tensors\(…, dtype='bfloat16'\)"),
        ("float16", (1 << 15, 2), 0, r"shape: \(32768, 2\) of float16 from byte 0 ends at 131072, the buffer at 65536"),
        ("uint8", (1,), 1 << 16, "ends at 65537, the buffer at 65536"),
        ("uint8", ("a",), 0, "shape: is"),
    ],
)
def test_view_that_does_not_fit_its_buffer_is_refused(
    dtype: str, shape: Any, offset_bytes: int, match: str, buffer: SharedBuffer
) -> None:
    with pytest.raises(InvalidArgument, match=match):
        buffer.view(dtype, shape, offset_bytes=offset_bytes)
