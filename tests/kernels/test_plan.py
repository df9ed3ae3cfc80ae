"""Address plans: every byte once, none outside, nothing crooked accepted."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.errors import GeometryError
from kernels.geometry import Group, Plane, PlaneKind
from kernels.plan import MAX_PLANES, GroupPlan, check_groups, chunk_bytes, plan_groups
from tests.kernels.reference import LAYOUTS, Engine, Shape

K, V, LATENT, KV = PlaneKind


def group(**changes: Any) -> Group:
    """Return a sound group of two layers, [block, layer, kind, token, head], of 256 bytes; with changes."""
    planes = tuple(
        Plane(layer=layer, kind=kind, region=0, offset_bytes=layer * 64 + index * 32)
        for layer in range(2)
        for index, kind in enumerate((K, V))
    )
    sound = Group(
        num_layers=2,
        num_blocks=2,
        block_size=2,
        num_heads=4,
        head_bytes=4,
        dtype="bfloat16",
        block_stride_bytes=128,
        token_stride_bytes=16,
        head_stride_bytes=4,
        planes=planes,
    )
    return dataclasses.replace(sound, **changes)


def with_plane(index: int, **changes: Any) -> Group:
    planes = list(group().planes)
    planes[index] = dataclasses.replace(planes[index], **changes)
    return group(planes=tuple(planes))


def extent(group: Group) -> int:
    """Return the end of the last byte of a group."""
    return max(byte for plane in group.planes for byte in plane_bytes(group, plane)) + 1


def plane_bytes(group: Group, plane: Plane) -> Iterator[int]:
    """Return the offset of each byte of a plane, by the definition of a group."""
    for b, t, h, byte in itertools.product(
        range(group.num_blocks), range(group.block_size), range(group.num_heads), range(group.head_bytes)
    ):
        yield (
            plane.offset_bytes
            + b * group.block_stride_bytes
            + t * group.token_stride_bytes
            + h * group.head_stride_bytes
            + byte
        )


@st.composite
def regular_groups(draw: st.DrawFn) -> Group:
    """Any order of layer, kind, block, token and head in memory, with any padding behind each."""
    kinds = draw(st.sampled_from([(K, V), (LATENT,), (KV,)]))
    small = st.integers(1, 3)
    counts = {name: draw(small) for name in ("layer", "block", "token", "head")} | {"kind": len(kinds)}
    head_bytes = draw(st.integers(1, 5))
    strides, inner = {}, head_bytes
    for name in draw(st.permutations(sorted(counts))):
        strides[name] = inner + draw(st.sampled_from([0, 0, 1, 7]))
        inner = strides[name] * (counts[name] - 1) + inner
    start = draw(st.integers(0, 9))
    planes = [
        Plane(
            layer=layer,
            kind=kind,
            region=0,
            offset_bytes=start + layer * strides["layer"] + index * strides["kind"],
        )
        for layer in range(counts["layer"])
        for index, kind in enumerate(kinds)
    ]
    return Group(
        num_layers=counts["layer"],
        num_blocks=counts["block"],
        block_size=counts["token"],
        num_heads=counts["head"],
        head_bytes=head_bytes,
        dtype="int8",
        block_stride_bytes=strides["block"],
        token_stride_bytes=strides["token"],
        head_stride_bytes=strides["head"],
        planes=tuple(draw(st.permutations(planes))),
    )


@st.composite
def arbitrary_groups(draw: st.DrawFn) -> Group:
    """Strides and offsets with no order in them."""
    stride, count = st.integers(0, 24), st.integers(1, 3)
    num_layers = draw(count)
    return Group(
        num_layers=num_layers,
        num_blocks=draw(count),
        block_size=draw(count),
        num_heads=draw(count),
        head_bytes=draw(st.integers(1, 4)),
        dtype="int8",
        block_stride_bytes=draw(stride),
        token_stride_bytes=draw(stride),
        head_stride_bytes=draw(stride),
        planes=tuple(
            Plane(layer=layer, kind=LATENT, region=0, offset_bytes=draw(st.integers(0, 60)))
            for layer in range(num_layers)
        ),
    )


def copied(plan: GroupPlan, block_ids: list[int]) -> Iterator[tuple[int, int]]:
    """Return the (engine, chunk) offset of each byte of a plan."""
    for layer, kind in np.ndindex(plan.regions.shape):
        for j, b in enumerate(block_ids):
            engine = int(plan.engine_offsets[layer, kind]) + b * plan.block_stride_bytes
            chunk = int(plan.chunk_offsets[layer, kind]) + j * plan.block_bytes
            for at in itertools.product(*(range(loop.count) for loop in plan.loops)):
                from_start = sum(i * loop.engine_stride_bytes for i, loop in zip(at, plan.loops, strict=True))
                to_start = sum(i * loop.chunk_stride_bytes for i, loop in zip(at, plan.loops, strict=True))
                for byte in range(plan.run_bytes):
                    yield engine + from_start + byte, chunk + to_start + byte


def canonical(group: Group, block_ids: list[int]) -> list[int]:
    """Return the engine's offset of each byte of a chunk, by the definition of a chunk."""
    return [
        plane.offset_bytes
        + block_ids[token // group.block_size] * group.block_stride_bytes
        + token % group.block_size * group.token_stride_bytes
        + head * group.head_stride_bytes
        + byte
        for plane in sorted(group.planes, key=lambda plane: (plane.layer, plane.kind))
        for token in range(len(block_ids) * group.block_size)
        for head in range(group.num_heads)
        for byte in range(group.head_bytes)
    ]


@given(st.data())
def test_a_plan_moves_each_byte_of_a_chunk_once_and_to_its_place(data: st.DataObject) -> None:
    group = data.draw(regular_groups())
    ids = data.draw(st.lists(st.integers(0, group.num_blocks - 1), min_size=1, max_size=3))
    chunk_size = len(ids) * group.block_size
    check_groups([group], [extent(group)])
    (plan,) = plan_groups([group], chunk_size)
    moved = sorted((chunk, engine) for engine, chunk in copied(plan, ids))
    assert moved == list(enumerate(canonical(group, ids)))
    assert len(moved) == chunk_bytes([group], chunk_size)
    assert plan.blocks_per_chunk == len(ids)


@given(regular_groups())
def test_loops_are_never_trivial_nor_mergeable(group: Group) -> None:
    (plan,) = plan_groups([group], group.block_size)
    inner_engine = inner_chunk = plan.run_bytes
    for loop in reversed(plan.loops):
        assert loop.count > 1
        assert (loop.engine_stride_bytes, loop.chunk_stride_bytes) != (inner_engine, inner_chunk)
        inner_engine, inner_chunk = loop.engine_stride_bytes * loop.count, loop.chunk_stride_bytes * loop.count


@given(regular_groups())
def test_a_regular_group_is_accepted_unless_its_region_is_a_byte_short(group: Group) -> None:
    check_groups([group], [extent(group)])
    with pytest.raises(GeometryError):
        check_groups([group], [extent(group) - 1])


@given(arbitrary_groups())
def test_a_group_is_accepted_only_if_no_byte_is_in_it_twice(group: Group) -> None:
    dims = [
        (stride, count)
        for stride, count in (
            (group.block_stride_bytes, group.num_blocks),
            (group.token_stride_bytes, group.block_size),
            (group.head_stride_bytes, group.num_heads),
        )
        if count > 1
    ]
    inner, nested = group.head_bytes, True
    for stride, count in sorted(dims):
        nested &= stride >= inner
        inner += stride * (count - 1)
    most = max(Counter(byte for plane in group.planes for byte in plane_bytes(group, plane)).values())
    try:
        check_groups([group], [1000])
        accepted = True
    except GeometryError:
        accepted = False
    assert accepted == (nested and most == 1)


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("one_region", [True, False])
def test_layouts_of_the_field_are_accepted(name: str, one_region: bool) -> None:
    engine = Engine((name, Shape(num_heads=3)), one_region=one_region)
    check_groups(engine.groups, [region.size_bytes for region in engine.regions])
    engine.close()


@pytest.mark.parametrize(
    ("name", "run_elements", "num_loops"),
    [
        ("NL_X_TWO_NB_BS_NH_HS", 4 * 2 * 8, 0),
        ("NL_X_NBBS_ONE_HS", 4 * 8, 0),
        ("NL_X_TWO_NB_NH_BS_HS", 8, 2),
        ("LBNHC", 8, 1),
        ("LBHNC", 8, 2),
    ],
)
def test_a_run_is_the_longest_piece_common_to_both_sides(name: str, run_elements: int, num_loops: int) -> None:
    engine = Engine((name, Shape()))
    (plan,) = plan_groups(engine.groups, 16)
    assert plan.run_bytes == run_elements * 2
    assert len(plan.loops) == num_loops
    engine.close()


def test_chunk_offsets_go_through_groups_then_layers_then_kinds() -> None:
    latent = Plane(layer=0, kind=LATENT, region=1, offset_bytes=0)
    second = group(num_layers=1, num_heads=1, planes=(latent,))
    plans = plan_groups([group(), second], 4)
    assert plans[0].chunk_offsets.tolist() == [[0, 64], [128, 192]]
    assert plans[1].chunk_offsets.tolist() == [[256]]
    assert chunk_bytes([group(), second], 4) == 256 + 16


def test_strides_of_dimensions_of_size_one_mean_nothing() -> None:
    plane = Plane(layer=0, kind=LATENT, region=0, offset_bytes=0)
    single = group(num_layers=1, num_blocks=1, block_size=1, num_heads=1, planes=(plane,))
    for stride in (0, 1, 2**64):
        odd = dataclasses.replace(
            single, block_stride_bytes=stride, token_stride_bytes=stride, head_stride_bytes=stride
        )
        check_groups([odd], [4])
        (plan,) = plan_groups([odd], 1)
        assert (plan.run_bytes, plan.loops, plan.block_stride_bytes) == (4, (), 0)


def test_groups_may_share_a_pool_of_blocks() -> None:
    check_groups([group(), group()], [256])


def test_equal_offsets_in_two_regions_are_two_places() -> None:
    planes = tuple(dataclasses.replace(plane, offset_bytes=0, region=i) for i, plane in enumerate(group().planes))
    check_groups([group(planes=planes)], [256] * 4)


def test_without_regions_only_shapes_are_looked_at() -> None:
    planes = tuple(dataclasses.replace(plane, offset_bytes=0, region=9) for plane in group().planes)
    nonsense = group(planes=planes, block_stride_bytes=0, token_stride_bytes=2**70, head_stride_bytes=0)
    check_groups([nonsense], [])
    with pytest.raises(GeometryError):
        check_groups([dataclasses.replace(nonsense, num_heads=0)], [])


WRONG: list[tuple[str, Callable[[], list[Group]]]] = [
    ("groups", lambda: []),
    ("groups[0].num_layers", lambda: [group(num_layers=0)]),
    ("groups[0].num_blocks", lambda: [group(num_blocks=0)]),
    ("groups[0].block_size", lambda: [group(block_size=0)]),
    ("groups[0].num_heads", lambda: [group(num_heads=0)]),
    ("groups[0].head_bytes", lambda: [group(head_bytes=0)]),
    ("groups[0].head_bytes", lambda: [group(head_bytes=-1)]),
    ("groups[0].num_blocks", lambda: [group(num_blocks=2**63)]),
    ("groups[0].dtype", lambda: [group(dtype="")]),
    ("groups[0].dtype", lambda: [group(dtype="BFloat16")]),
    ("groups[0].planes", lambda: [group(num_layers=2**32)]),
    ("groups[0].planes", lambda: [group(num_layers=3)]),
    ("groups[0].planes", lambda: [group(planes=())]),
    ("groups[0].planes", lambda: [group(planes=group().planes[:3])]),
    ("groups[0].planes", lambda: [group(num_layers=4, planes=tuple(p for p in group().planes if p.kind == K))]),
    ("groups[0].planes", lambda: [group(planes=tuple(p for p in group().planes if p.kind == V))]),
    ("groups[0].planes", lambda: [with_plane(0, kind=LATENT)]),
    ("groups[0].planes[2].layer", lambda: [with_plane(2, layer=2)]),
    ("groups[0].planes[2].layer", lambda: [with_plane(2, layer=-1)]),
    ("groups[0].planes[2]", lambda: [with_plane(2, layer=0)]),
    ("groups[0].planes[1].region", lambda: [with_plane(1, region=1)]),
    ("groups[0].planes[1].region", lambda: [with_plane(1, region=-1)]),
    ("groups[0].planes[1].offset_bytes", lambda: [with_plane(1, offset_bytes=-1)]),
    ("groups[0].planes[1].offset_bytes", lambda: [with_plane(1, offset_bytes=97)]),
    ("groups[0].planes[1].offset_bytes", lambda: [with_plane(1, offset_bytes=2**63)]),
    ("groups[0].planes[3].offset_bytes", lambda: [with_plane(3, offset_bytes=64)]),
    ("groups[0].planes[3].offset_bytes", lambda: [with_plane(3, offset_bytes=65)]),
    ("groups[0].block_stride_bytes", lambda: [group(block_stride_bytes=31)]),
    ("groups[0].block_stride_bytes", lambda: [group(block_stride_bytes=2**63)]),
    ("groups[0].token_stride_bytes", lambda: [group(token_stride_bytes=15)]),
    ("groups[0].token_stride_bytes", lambda: [group(token_stride_bytes=0)]),
    ("groups[0].token_stride_bytes", lambda: [group(token_stride_bytes=-16)]),
    ("groups[0].head_stride_bytes", lambda: [group(head_stride_bytes=3)]),
    ("groups[1].head_stride_bytes", lambda: [group(), group(head_stride_bytes=3)]),
    ("groups", lambda: [group()] * (MAX_PLANES // 4 + 1)),
]


@pytest.mark.parametrize(("field", "groups"), WRONG, ids=[f"{index}-{field}" for index, (field, _) in enumerate(WRONG)])
def test_what_is_wrong_is_refused_with_its_path(field: str, groups: Callable[[], list[Group]]) -> None:
    with pytest.raises(GeometryError) as refused:
        check_groups(groups(), [256])
    assert refused.value.field == field


@pytest.mark.parametrize("size", [0, -1, 2**63])
def test_a_region_without_a_sound_size_is_refused(size: int) -> None:
    with pytest.raises(GeometryError) as refused:
        check_groups([group()], [256, size])
    assert refused.value.field == "regions[1].size_bytes"


def test_a_chunk_beyond_what_64_bits_address_is_refused() -> None:
    with pytest.raises(GeometryError, match="chunk"):
        chunk_bytes([group(num_heads=2**40, head_bytes=2**22)], 2)
