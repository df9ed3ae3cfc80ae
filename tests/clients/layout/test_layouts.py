"""Every layout describes where each head's bytes are; compared with indexing the tensors directly."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kvdepot import KvShape, SharedBuffer, SharedRegions
from kvdepot.layout import layouts
from kvdepot.layout.layouts import Layout
from kvdepot.v1 import cache_pb2
from tests.fakes.paged import DEFINITIONS, Bytes, Group

K, V, LATENT = cache_pb2.PLANE_KIND_K, cache_pb2.PLANE_KIND_V, cache_pb2.PLANE_KIND_LATENT
KV = cache_pb2.PLANE_KIND_KV
PHYSICAL_ORDERS = ["LBNHC", "LBHNC", "BLHNC", "BLNHC", "LHBNC", "BHLNC"]

sizes = st.integers(1, 4)
shapes = st.builds(
    KvShape,
    num_layers=sizes,
    num_blocks=sizes,
    block_size=sizes,
    num_heads=sizes,
    head_size=st.integers(1, 5),
    dtype=st.sampled_from(["uint8", "float16", "float32", "float64"]),
)
few = settings(max_examples=40)


def group_of(name: str, shape: KvShape) -> Group:
    """Return layers in a layout of this shape, with one head if the layout has no heads."""
    return Group(name, shape if DEFINITIONS[name].num_halves == 2 else replace(shape, num_heads=1))


def cut(memory: Bytes, group: Group, offset_bytes: int, gap_bytes: int) -> list[NDArray[Any]]:
    """Lay the group's tensors into memory, one after the other from a byte on."""
    tensor_shape = group.definition.tensor(group.shape)
    step = int(np.prod(tensor_shape)) * group.shape.element_bytes + gap_bytes
    starts = range(offset_bytes, offset_bytes + group.definition.num_tensors(group.shape) * step, step)
    return [np.ndarray(tensor_shape, group.shape.dtype, memory.data, start) for start in starts]


def assert_describes(described: cache_pb2.KvGroup, memory: Bytes, group: Group, tensors: list[NDArray[Any]]) -> None:
    """Check that every head of every token is where the description says: compare with indexing the tensors."""
    shape, definition = group.shape, group.definition
    kinds = (LATENT,) if definition.num_halves == 1 else (K, V)
    assert [(plane.layer, plane.kind) for plane in described.planes] == list(product(range(shape.num_layers), kinds))
    assert (described.num_layers, described.num_blocks, described.block_size) == (
        shape.num_layers,
        shape.num_blocks,
        shape.block_size,
    )
    assert (described.num_heads, described.dtype) == (shape.num_heads, shape.dtype)
    assert described.head_bytes == shape.head_size * shape.element_bytes
    for plane in described.planes:
        assert plane.region == 0
        indexed = definition.plane(tensors, shape, plane.layer, int(plane.kind == V))
        for block, token, head in product(range(shape.num_blocks), range(shape.block_size), range(shape.num_heads)):
            start = (
                plane.offset_bytes
                + block * described.block_stride_bytes
                + token * described.token_stride_bytes
                + head * described.head_stride_bytes
            )
            found = memory[start : start + described.head_bytes].tobytes()
            assert found == indexed[block, token, head].tobytes(), (plane, block, token, head)


def random_buffer(size_bytes: int) -> SharedBuffer:
    buffer = SharedBuffer.create(size_bytes, by="fd")
    buffer.array[:] = np.random.default_rng(size_bytes).integers(0, 256, size_bytes, np.uint8)
    return buffer


def layout(name: str) -> Layout:
    found = getattr(layouts, name)
    assert isinstance(found, Layout)
    return found


def test_every_layout_is_defined_here_or_has_a_test_of_its_own() -> None:
    assert {name for name, value in vars(layouts).items() if isinstance(value, Layout)} == {*DEFINITIONS, "VLLM_PACKED"}
    assert all(name.startswith("VLLM") or layout(name).name == name for name in DEFINITIONS)


@pytest.mark.parametrize("name", DEFINITIONS)
@few
@given(shape=shapes, offset=st.integers(0, 3), gap=st.integers(0, 3))
def test_tensors_are_described_as_they_are_indexed(name: str, shape: KvShape, offset: int, gap: int) -> None:
    group = group_of(name, shape)
    align = shape.element_bytes
    num_gaps = group.definition.num_tensors(group.shape)
    with random_buffer(layout(name).size_bytes(group.shape) + (offset + num_gaps * gap) * align) as buffer:
        tensors = cut(buffer.array, group, offset * align, gap * align)
        shared = SharedRegions()
        shared.add(buffer)
        block_size = shape.block_size if "NBBS" in name else None
        described = layout(name).from_tensors(group.nested(tensors), shared, block_size=block_size)
        assert_describes(described, buffer.array, group, tensors)


@pytest.mark.parametrize("name", DEFINITIONS)
@few
@given(shape=shapes, offset=st.integers(0, 9))
def test_contiguous_buffer_is_described_by_its_shape_alone(name: str, shape: KvShape, offset: int) -> None:
    group = group_of(name, shape)
    size_bytes = offset + layout(name).size_bytes(group.shape)
    memory = np.random.default_rng(offset).integers(0, 256, size_bytes, np.uint8)
    described = layout(name).from_shape(group.shape, offset_bytes=offset)
    assert_describes(described, memory, group, cut(memory, group, offset, 0))


@pytest.mark.parametrize("name", DEFINITIONS)
def test_buffer_without_memory_has_no_offsets(name: str) -> None:
    sizes = KvShape(num_layers=3, num_blocks=2, block_size=4, num_heads=2, head_size=8, dtype="float16")
    shape = group_of(name, sizes).shape
    group = layout(name).without_memory(shape)
    described = layout(name).from_shape(shape)
    assert {(plane.region, plane.offset_bytes) for plane in group.planes} == {(0, 0)}
    for plane, other in zip(group.planes, described.planes, strict=True):
        plane.offset_bytes = other.offset_bytes
    assert group == described


@pytest.mark.parametrize("order", PHYSICAL_ORDERS)
@few
@given(shape=shapes)
def test_views_of_vllm_are_distinguished_by_their_strides(order: str, shape: KvShape) -> None:
    group = Group(f"VLLM_{order}", shape)
    with random_buffer(layouts.VLLM.size_bytes(shape)) as buffer:
        (backing,) = cut(buffer.array, group, 0, 0)
        views = np.transpose(backing, [order.index(axis) for axis in "LBHNC"])
        shared = SharedRegions()
        shared.add(buffer)
        described = layouts.VLLM.from_tensors(list(views), shared)
        assert_describes(described, buffer.array, group, [backing])


def test_tensors_of_several_regions_name_each_its_own() -> None:
    shape = (2, 4, 8, 2, 16)
    size_bytes = int(np.prod(shape))
    with SharedBuffer.create(size_bytes) as first, SharedBuffer.create(size_bytes + 64) as second:
        shared = SharedRegions()
        assert [shared.add(first), shared.add(second)] == [0, 1]
        tensors = [second.view(np.uint8, shape, offset_bytes=64), first.view(np.uint8, shape)]
        group = layouts.NL_X_TWO_NB_BS_NH_HS.from_tensors(tensors, shared)
        half = size_bytes // 2
        assert [(plane.layer, plane.kind, plane.region, plane.offset_bytes) for plane in group.planes] == [
            (0, K, 1, 64),
            (0, V, 1, 64 + half),
            (1, K, 0, 0),
            (1, V, 0, half),
        ]


def test_strides_of_a_dimension_of_size_one_do_not_count() -> None:
    with random_buffer(1 << 12) as buffer:
        shared = SharedRegions()
        shared.add(buffer)
        plain = buffer.view(np.uint8, (2, 4, 8, 1, 16))
        odd = np.lib.stride_tricks.as_strided(plain, strides=(*plain.strides[:3], 7, 1))
        group = TWO_NB.from_tensors([plain, odd], shared)
        assert group == TWO_NB.from_tensors([plain, plain], shared)


def test_k_and_v_without_heads_are_no_latent() -> None:
    shape = KvShape(num_layers=1, num_blocks=2, block_size=4, head_size=8, dtype="float16")
    group = Layout("NL_TWO_NB_BS_HS").from_shape(shape)
    assert [(plane.kind, plane.offset_bytes) for plane in group.planes] == [(K, 0), (V, 128)]


TWO_NB = layouts.NL_X_TWO_NB_BS_NH_HS
FITTING = (2, 4, 8, 2, 16)


@pytest.mark.parametrize(
    ("refused", "tensors", "message"),
    [
        (TWO_NB, lambda x: [], "no tensors"),
        (TWO_NB, lambda x: [x(2, 4, 8, 32)], "5 dimensions"),
        (TWO_NB, lambda x: [x(3, 4, 8, 2, 16)], "TWO can't have the size 3"),
        (TWO_NB, lambda x: [x(2, 0, 8, 2, 16)], "NB can't have the size 0"),
        (TWO_NB, lambda x: [x(*FITTING), x(2, 5, 8, 2, 16)], "differs from the first"),
        (TWO_NB, lambda x: [x(*FITTING), x(*FITTING, dtype="float16")], "differs from the first"),
        (TWO_NB, lambda x: [x(*FITTING), x(2, 4, 8, 4, 16)[:, :, :, ::2]], "differs from the first"),
        (TWO_NB, lambda x: [x(2, 4, 8, 2, 32)[..., ::2]], "not contiguous"),
        (TWO_NB, lambda x: [x(2, 4, 8, 16, 2).swapaxes(3, 4)], "not contiguous"),
        (TWO_NB, lambda x: [x(*FITTING)[:, ::-1]], "positive"),
        (TWO_NB, lambda x: [np.broadcast_to(x(2, 4, 8, 1, 16), FITTING)], "positive"),
        (layouts.VLLM_MLA, lambda x: [x(4, 2, 8, 16)], "ONE can't have the size 2"),
        (layouts.NL_X_NBBS_ONE_HS, lambda x: [x(32, 1, 16)], "block_size"),
        (layouts.TWO_X_NL_X_NBBS_NH_HS, lambda x: [[x(32, 2, 16)]], "two lists"),
        (layouts.TWO_X_NL_X_NBBS_NH_HS, lambda x: [[x(32, 2, 16)] * 2, [x(32, 2, 16)]], "differ in length"),
        (layouts.VLLM, lambda x: [x(4, 2, 8, 31)], "C can't have the size 31"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(refused: Layout, tensors: Any, message: str) -> None:
    with SharedBuffer.create(1 << 16) as buffer:
        shared = SharedRegions()
        shared.add(buffer)
        block_size = 8 if refused is layouts.TWO_X_NL_X_NBBS_NH_HS else None
        with pytest.raises(ValueError, match=message):
            refused.from_tensors(
                tensors(lambda *shape, dtype="uint8": buffer.view(dtype, shape)), shared, block_size=block_size
            )


@pytest.mark.parametrize("block_size", [0, -8, 5])
def test_block_size_that_does_not_divide_the_tokens_is_refused(block_size: int) -> None:
    with SharedBuffer.create(1 << 16) as buffer:
        shared = SharedRegions()
        shared.add(buffer)
        with pytest.raises(ValueError, match="NBBS can't have the size 32"):
            layouts.NL_X_NBBS_ONE_HS.from_tensors([buffer.view("uint8", (32, 1, 16))], shared, block_size=block_size)


def test_block_size_that_the_tensors_contradict_is_refused() -> None:
    with SharedBuffer.create(1 << 16) as buffer:
        shared = SharedRegions()
        shared.add(buffer)
        with pytest.raises(ValueError, match="block_size is 8, not 4"):
            TWO_NB.from_tensors([buffer.view("uint8", FITTING)], shared, block_size=4)


def test_what_is_no_tensor_is_refused() -> None:
    class Shaped:
        shape = FITTING

    with pytest.raises(ValueError, match="Shaped"):
        TWO_NB.from_tensors([Shaped()], SharedRegions())


def test_packed_content_is_one_plane_of_a_layer() -> None:
    shape = KvShape(num_layers=2, num_blocks=3, block_size=4, num_heads=2, head_size=5, dtype="float32")
    with random_buffer(layouts.VLLM_PACKED.size_bytes(shape)) as buffer:
        backing = buffer.view(np.float32, (2, 3, 2, 4, 10))
        shared = SharedRegions()
        shared.add(buffer)
        group = layouts.VLLM_PACKED.from_tensors(list(backing), shared)
    assert [(plane.layer, plane.kind) for plane in group.planes] == [(0, KV), (1, KV)]
    assert [plane.offset_bytes for plane in group.planes] == [0, backing[0].nbytes]
    assert (group.head_bytes, group.num_heads, group.block_size) == (40, 2, 4)
    assert group == layouts.VLLM_PACKED.from_shape(shape)


@pytest.mark.parametrize("name", ["", "NB_BS_NH_HS", "NL_NL_NB_BS_HS", "NL_X_NB_BS_HS_Q", "NL_X_TWO_NB_BS_NH_C"])
def test_name_that_is_no_layout_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="dimensions"):
        Layout(name)


def test_heads_in_a_layout_without_them_are_refused() -> None:
    with pytest.raises(ValueError, match="num_heads"):
        layouts.NL_X_NB_BS_HS.from_shape(
            KvShape(num_layers=1, num_blocks=1, block_size=1, num_heads=2, head_size=1, dtype="float16")
        )


@pytest.mark.parametrize(
    ("dtype", "element_bytes"),
    [
        ("bfloat16", 2),
        ("float16", 2),
        ("float32", 4),
        ("float64", 8),
        ("float8_e4m3fn", 1),
        ("float8_e5m2", 1),
        ("float4_e2m1fn_x2", 1),
        ("int8", 1),
        ("uint8", 1),
    ],
)
def test_element_size_is_read_off_the_dtype(dtype: str, element_bytes: int) -> None:
    shape = KvShape(num_layers=1, num_blocks=1, block_size=1, head_size=1, dtype=dtype)
    assert shape.element_bytes == element_bytes


@pytest.mark.parametrize("dtype", ["", "bool", "int4", "torch.float16", "float", "complex64", "Float16"])
def test_dtype_without_a_whole_number_of_bytes_is_refused(dtype: str) -> None:
    with pytest.raises(ValueError, match="dtype"):
        KvShape(num_layers=1, num_blocks=1, block_size=1, head_size=1, dtype=dtype)


@pytest.mark.parametrize("field", ["num_layers", "num_blocks", "block_size", "num_heads", "head_size"])
def test_size_below_one_is_refused(field: str) -> None:
    fields: dict[str, Any] = {"num_layers": 1, "num_blocks": 1, "block_size": 1, "head_size": 1, "dtype": "int8"}
    with pytest.raises(ValueError, match=field):
        KvShape(**(fields | {field: 0}))
