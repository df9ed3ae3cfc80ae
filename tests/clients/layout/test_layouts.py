"""Every layout describes where each head's bytes are; compared with indexing the tensors directly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvdepot import KvShape, SharedBuffer, SharedRegions
from kvdepot.layout import layouts
from kvdepot.layout.layouts import Layout
from kvdepot.v1 import cache_pb2

K, V, LATENT = cache_pb2.PLANE_KIND_K, cache_pb2.PLANE_KIND_V, cache_pb2.PLANE_KIND_LATENT
KV = cache_pb2.PLANE_KIND_KV


@dataclass(frozen=True)
class Definition:
    """A layout as its users write it down: the lists' lengths, a tensor's shape, and one head of one token in it."""

    lists: Callable[[KvShape], tuple[int, ...]]
    tensor: Callable[[KvShape], tuple[int, ...]]
    head: Callable[[Any, KvShape, int, int, int, int, int], Any]  # tensors, shape, layer, half, block, token, head
    latent: bool = False


def nothing(s: KvShape) -> tuple[int, ...]:
    return ()


def one_per_layer(s: KvShape) -> tuple[int, ...]:
    return (s.num_layers,)


def half_of(content: Any, half: int) -> Any:
    return content.reshape(2, -1)[half]


DEFINITIONS: dict[str, Definition] = {
    "NB_NL_TWO_BS_NH_HS": Definition(
        nothing,
        lambda s: (s.num_blocks, s.num_layers, 2, s.block_size, s.num_heads, s.head_size),
        lambda x, s, layer, half, block, token, head: x[block, layer, half, token, head],
    ),
    "NB_NL_TWO_NH_BS_HS": Definition(
        nothing,
        lambda s: (s.num_blocks, s.num_layers, 2, s.num_heads, s.block_size, s.head_size),
        lambda x, s, layer, half, block, token, head: x[block, layer, half, head, token],
    ),
    "NL_X_TWO_NB_BS_NH_HS": Definition(
        one_per_layer,
        lambda s: (2, s.num_blocks, s.block_size, s.num_heads, s.head_size),
        lambda x, s, layer, half, block, token, head: x[layer][half, block, token, head],
    ),
    "NL_X_TWO_NB_NH_BS_HS": Definition(
        one_per_layer,
        lambda s: (2, s.num_blocks, s.num_heads, s.block_size, s.head_size),
        lambda x, s, layer, half, block, token, head: x[layer][half, block, head, token],
    ),
    "NL_X_NB_TWO_BS_NH_HS": Definition(
        one_per_layer,
        lambda s: (s.num_blocks, 2, s.block_size, s.num_heads, s.head_size),
        lambda x, s, layer, half, block, token, head: x[layer][block, half, token, head],
    ),
    "NL_X_NB_TWO_NH_BS_HS": Definition(
        one_per_layer,
        lambda s: (s.num_blocks, 2, s.num_heads, s.block_size, s.head_size),
        lambda x, s, layer, half, block, token, head: x[layer][block, half, head, token],
    ),
    "TWO_X_NL_X_NBBS_NH_HS": Definition(
        lambda s: (2, s.num_layers),
        lambda s: (s.num_blocks * s.block_size, s.num_heads, s.head_size),
        lambda x, s, layer, half, block, token, head: x[half][layer][block * s.block_size + token, head],
    ),
    "NL_X_NB_BS_HS": Definition(
        one_per_layer,
        lambda s: (s.num_blocks, s.block_size, s.head_size),
        lambda x, s, layer, half, block, token, head: x[layer][block, token],
        latent=True,
    ),
    "NL_X_NBBS_ONE_HS": Definition(
        one_per_layer,
        lambda s: (s.num_blocks * s.block_size, 1, s.head_size),
        lambda x, s, layer, half, block, token, head: x[layer][block * s.block_size + token, 0],
        latent=True,
    ),
    "VLLM": Definition(
        one_per_layer,
        lambda s: (s.num_blocks, s.num_heads, s.block_size, 2 * s.head_size),
        lambda x, s, layer, half, block, token, head: half_of(x[layer][block, head, token], half),
    ),
    "VLLM_MLA": Definition(
        one_per_layer,
        lambda s: (s.num_blocks, 1, s.block_size, s.head_size),
        lambda x, s, layer, half, block, token, head: x[layer][block, 0, token],
        latent=True,
    ),
    "VLLM_LBNHC": Definition(
        nothing,
        lambda s: (s.num_layers, s.num_blocks, s.block_size, s.num_heads, 2 * s.head_size),
        lambda x, s, layer, half, block, token, head: half_of(x[layer, block, token, head], half),
    ),
    "VLLM_LBHNC": Definition(
        nothing,
        lambda s: (s.num_layers, s.num_blocks, s.num_heads, s.block_size, 2 * s.head_size),
        lambda x, s, layer, half, block, token, head: half_of(x[layer, block, head, token], half),
    ),
    "VLLM_BLHNC": Definition(
        nothing,
        lambda s: (s.num_blocks, s.num_layers, s.num_heads, s.block_size, 2 * s.head_size),
        lambda x, s, layer, half, block, token, head: half_of(x[block, layer, head, token], half),
    ),
    "VLLM_BLNHC": Definition(
        nothing,
        lambda s: (s.num_blocks, s.num_layers, s.block_size, s.num_heads, 2 * s.head_size),
        lambda x, s, layer, half, block, token, head: half_of(x[block, layer, token, head], half),
    ),
    "VLLM_LHBNC": Definition(
        nothing,
        lambda s: (s.num_layers, s.num_heads, s.num_blocks, s.block_size, 2 * s.head_size),
        lambda x, s, layer, half, block, token, head: half_of(x[layer, head, block, token], half),
    ),
    "VLLM_BHLNC": Definition(
        nothing,
        lambda s: (s.num_blocks, s.num_heads, s.num_layers, s.block_size, 2 * s.head_size),
        lambda x, s, layer, half, block, token, head: half_of(x[block, head, layer, token], half),
    ),
}
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
few = settings(max_examples=40, deadline=None)


def shape_for(definition: Definition, shape: KvShape) -> KvShape:
    """The shape, with one head if the layout has none."""
    if not definition.latent:
        return shape
    fields = {name: getattr(shape, name) for name in ("num_layers", "num_blocks", "block_size", "head_size", "dtype")}
    return KvShape(**fields)


def cut(memory: np.ndarray, definition: Definition, shape: KvShape, offset_bytes: int, gap_bytes: int) -> Any:
    """The tensors of a layout, in nested lists, one after the other from a byte of the memory on."""
    tensor_shape = definition.tensor(shape)
    step = int(np.prod(tensor_shape)) * shape.element_bytes + gap_bytes

    def nested(lists: tuple[int, ...], start: int) -> Any:
        if not lists:
            return np.ndarray(tensor_shape, shape.dtype, memory.data, start)
        inner = int(np.prod(lists[1:])) * step
        return [nested(lists[1:], start + index * inner) for index in range(lists[0])]

    return nested(definition.lists(shape), offset_bytes)


def assert_describes(
    group: cache_pb2.KvGroup, memory: np.ndarray, definition: Definition, shape: KvShape, tensors: Any
) -> None:
    """Every head of every token, found through the description, is what indexing the tensors gives."""
    kinds = (LATENT,) if definition.latent else (K, V)
    assert [(plane.layer, plane.kind) for plane in group.planes] == list(product(range(shape.num_layers), kinds))
    assert (group.num_layers, group.num_blocks, group.block_size) == (
        shape.num_layers,
        shape.num_blocks,
        shape.block_size,
    )
    assert (group.num_heads, group.dtype) == (shape.num_heads, shape.dtype)
    assert group.head_bytes == shape.head_size * shape.element_bytes
    for plane in group.planes:
        assert plane.region == 0
        for block, token, head in product(range(shape.num_blocks), range(shape.block_size), range(shape.num_heads)):
            start = (
                plane.offset_bytes
                + block * group.block_stride_bytes
                + token * group.token_stride_bytes
                + head * group.head_stride_bytes
            )
            described = memory[start : start + group.head_bytes].tobytes()
            indexed = definition.head(tensors, shape, plane.layer, int(plane.kind == V), block, token, head)
            assert described == indexed.tobytes(), (plane, block, token, head)


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
    definition = DEFINITIONS[name]
    shape = shape_for(definition, shape)
    align = shape.element_bytes
    entries = int(np.prod(definition.lists(shape)))
    with random_buffer(layout(name).size_bytes(shape) + (offset + entries * gap) * align) as buffer:
        tensors = cut(buffer.array, definition, shape, offset * align, gap * align)
        shared = SharedRegions()
        shared.add(buffer)
        block_size = shape.block_size if "NBBS" in name else None
        group = layout(name).from_tensors(tensors, shared, block_size=block_size)
        assert_describes(group, buffer.array, definition, shape, tensors)


@pytest.mark.parametrize("name", DEFINITIONS)
@few
@given(shape=shapes, offset=st.integers(0, 9))
def test_contiguous_buffer_is_described_by_its_shape_alone(name: str, shape: KvShape, offset: int) -> None:
    definition = DEFINITIONS[name]
    shape = shape_for(definition, shape)
    memory = np.random.default_rng(offset).integers(0, 256, offset + layout(name).size_bytes(shape), np.uint8)
    group = layout(name).from_shape(shape, offset_bytes=offset)
    assert_describes(group, memory, definition, shape, cut(memory, definition, shape, offset, 0))


@pytest.mark.parametrize("name", DEFINITIONS)
def test_buffer_without_memory_has_no_offsets(name: str) -> None:
    shape = shape_for(
        DEFINITIONS[name],
        KvShape(num_layers=3, num_blocks=2, block_size=4, num_heads=2, head_size=8, dtype="float16"),
    )
    group = layout(name).without_memory(shape)
    described = layout(name).from_shape(shape)
    assert {(plane.region, plane.offset_bytes) for plane in group.planes} == {(0, 0)}
    for plane, other in zip(group.planes, described.planes, strict=True):
        plane.offset_bytes = other.offset_bytes
    assert group == described


@pytest.mark.parametrize("order", PHYSICAL_ORDERS)
@few
@given(shape=shapes)
def test_views_of_vllm_are_told_apart_by_their_strides(order: str, shape: KvShape) -> None:
    definition = DEFINITIONS[f"VLLM_{order}"]
    with random_buffer(layouts.VLLM.size_bytes(shape)) as buffer:
        backing = cut(buffer.array, definition, shape, 0, 0)
        views = np.transpose(backing, [order.index(axis) for axis in "LBHNC"])
        shared = SharedRegions()
        shared.add(buffer)
        group = layouts.VLLM.from_tensors(list(views), shared)
        assert_describes(group, buffer.array, definition, shape, backing)


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

    with pytest.raises(TypeError, match="Shaped"):
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
