"""Steps: each byte of each copy is in exactly one step."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kernels.copies import GroupBlocks
from kernels.cuda.steps import chunk_bytes, cut_chunk, plane_bytes, steps, touched_bytes
from kernels.geometry import Group, Plane, PlaneKind
from kernels.plan import plan_groups


def group(num_layers: int, block_size: int, head_bytes: int) -> Group:
    planes = [Plane(layer=n, kind=PlaneKind.LATENT, region=0, offset_bytes=0) for n in range(num_layers)]
    return Group(
        num_layers=num_layers,
        num_blocks=9,
        block_size=block_size,
        num_heads=1,
        head_bytes=head_bytes,
        dtype="uint8",
        block_stride_bytes=block_size * head_bytes,
        token_stride_bytes=head_bytes,
        head_stride_bytes=0,
        planes=tuple(planes),
    )


GROUPS = st.lists(
    st.builds(group, st.integers(1, 5), st.sampled_from([1, 2, 4]), st.integers(1, 9)), min_size=1, max_size=3
)


@given(GROUPS, st.integers(1, 400))
def test_parts_are_the_planes_of_a_chunk_in_order(groups: list[Group], limit_bytes: int) -> None:
    plans = plan_groups(groups, 8)
    parts = cut_chunk(plans, limit_bytes)
    offset_bytes = 0
    seen = []
    for part in parts:
        assert part.offset_bytes == offset_bytes
        planes = [(number, plane) for number, some in part.planes for plane in some]
        assert part.size_bytes == sum(plane_bytes(plans[number]) for number, _ in planes)
        assert part.size_bytes <= limit_bytes or len(planes) == 1
        assert [number for number, _ in part.planes] == sorted({number for number, _ in planes})
        for number, plane in planes:
            assert plans[number].chunk_offsets.flat[plane] == offset_bytes
            offset_bytes += plane_bytes(plans[number])
        seen += planes
    assert offset_bytes == chunk_bytes(plans)
    assert seen == [(number, plane) for number, plan in enumerate(plans) for plane in range(plan.chunk_offsets.size)]


@given(GROUPS, st.integers(1, 400))
def test_no_two_parts_would_have_fitted_into_one(groups: list[Group], limit_bytes: int) -> None:
    plans = plan_groups(groups, 8)
    parts = cut_chunk(plans, limit_bytes)
    for part, after in itertools.pairwise(parts):
        assert part.size_bytes + plane_bytes(plans[after.planes[0][0]]) > limit_bytes


@given(st.integers(0, 20), st.integers(1, 7))
def test_steps_are_all_copies_once(num_copies: int, chunks_per_step: int) -> None:
    (part,) = cut_chunk(plan_groups([group(1, 1, 1)], 8), 8)
    cut = list(steps(num_copies, [part], chunks_per_step))
    assert [copy for step in cut for copy in step.copies] == list(range(num_copies))
    assert all(len(step.copies) == chunks_per_step for step in cut[:-1])


def test_a_chunk_of_several_parts_is_done_before_the_next() -> None:
    parts = cut_chunk(plan_groups([group(3, 1, 1)], 8), 8)
    assert [(list(step.copies), step.part) for step in steps(2, parts, 1)] == [
        ([copy], part) for copy in (0, 1) for part in parts
    ]


def test_blocks_of_some_copies_are_counted_from_the_first() -> None:
    blocks = GroupBlocks(np.array([5, 6, 7, 8, 4]), np.array([0, 4, 5, 5]))
    assert [blocks.of_copies(1, 3).of_copy(number).tolist() for number in range(2)] == [[4], []]


@given(GROUPS, st.integers(1, 99), st.data())
def test_touched_bytes_are_the_last_blocks_of_every_plane(groups: list[Group], limit: int, data: st.DataObject) -> None:
    plans = plan_groups(groups, 8)
    num_blocks = [data.draw(st.integers(0, plan.blocks_per_chunk)) for plan in plans]
    touched, expected = np.zeros(chunk_bytes(plans), dtype=np.int64), np.zeros(chunk_bytes(plans), dtype=np.int64)
    for plan, count in zip(plans, num_blocks, strict=True):
        for plane_end in plan.chunk_offsets.ravel() + plane_bytes(plan):
            expected[plane_end - count * plan.block_bytes : plane_end] = 1
    for part in cut_chunk(plans, limit):
        ranges = touched_bytes(part, plans, num_blocks)
        for first, end in ranges:
            touched[part.offset_bytes + first : part.offset_bytes + end] += 1
        assert all(end < first for (_, end), (first, _) in itertools.pairwise(ranges)), "what meets is one"
    assert (touched == expected).all()
