"""The chunk size of an attachment is what the engine wants, or the multiple of its blocks next to the depot's."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.geometry import Group
from service.depot.chunk_size import chunk_size_for
from service.errors import ChunkSizeMismatch
from service.l1.keys import MAX_CHUNK_SIZE


def groups(*block_sizes: int) -> list[Group]:
    return [
        Group(
            num_layers=1,
            num_blocks=1,
            block_size=block_size,
            num_heads=1,
            head_bytes=1,
            dtype="uint8",
            block_stride_bytes=0,
            token_stride_bytes=0,
            head_stride_bytes=0,
            planes=(),
        )
        for block_size in block_sizes
    ]


@pytest.mark.parametrize(
    "block_sizes, chunk_size",
    [
        ([16], 256),
        ([64], 256),
        ([1], 256),
        ([16, 64, 32], 256),
        ([400], 400),
        ([544], 544),
        ([784], 784),
        ([48], 240),
        ([100], 300),
        ([16, 24], 240),
        ([512], 512),
        ([170], 340),  # 84 more; 170 is 86 less
        ([171], 171),  # 85 less; 342 is 86 more
        ([342], 342),
    ],
)
def test_a_depot_of_256_gives_blocks_a_multiple_nearby(block_sizes: list[int], chunk_size: int) -> None:
    assert chunk_size_for(groups(*block_sizes), 0, 256) == chunk_size


@pytest.mark.parametrize(("block_sizes", "chunk_size"), [([16, 128], 128), ([544, 16], 544), ([48, 32], 96)])
def test_with_states_each_block_of_them_can_end_a_chunk(block_sizes: list[int], chunk_size: int) -> None:
    first, *others = groups(*block_sizes)
    assert chunk_size_for([replace(first, holds_state=True), *others], 0, 256) == chunk_size
    assert chunk_size_for([replace(first, holds_state=True), *others], 2 * chunk_size, 256) == 2 * chunk_size


def test_of_two_multiples_as_near_it_is_the_smaller_one() -> None:
    assert chunk_size_for(groups(4), 0, 6) == 4


BLOCK_SIZES = st.lists(st.integers(1, 1_000), min_size=1, max_size=3).filter(
    lambda sizes: math.lcm(*sizes) <= MAX_CHUNK_SIZE
)


@given(BLOCK_SIZES, st.integers(1, 4_096))
def test_no_multiple_is_nearer(block_sizes: list[int], usual: int) -> None:
    chunk_size = chunk_size_for(groups(*block_sizes), 0, usual)
    step = math.lcm(*block_sizes)
    assert chunk_size > 0 and chunk_size % step == 0
    assert abs(chunk_size - usual) == min(abs(number * step - usual) for number in range(1, usual // step + 2))


@given(BLOCK_SIZES, st.integers(1, 4), st.integers(1, 4_096))
def test_what_the_engine_wants_counts_if_its_blocks_divide_it(block_sizes: list[int], times: int, usual: int) -> None:
    wanted = times * math.lcm(*block_sizes)
    assert chunk_size_for(groups(*block_sizes), wanted, usual) == wanted


def test_a_wanted_size_that_a_block_does_not_divide_is_refused_with_its_group() -> None:
    with pytest.raises(ChunkSizeMismatch, match="chunk_size 48 is not a multiple of group 1's block_size 32"):
        chunk_size_for(groups(16, 32), 48, 256)


def test_blocks_without_a_common_multiple_of_a_possible_size_are_refused() -> None:
    with pytest.raises(ChunkSizeMismatch, match=f"is {1_021 * 1_049}, more than the {MAX_CHUNK_SIZE}"):
        chunk_size_for(groups(1_021, 1_049), 0, 256)
