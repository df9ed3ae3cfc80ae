"""Block tables with vLLM's null block: which blocks are moved."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvdepot.connector.block_tables import cut_tables, num_blocks_written, storable_tokens, with_certain_states
from kvdepot.connector.cache_groups import CacheGroup, reported_group
from kvdepot.connector.commands import GroupTable

FULL = CacheGroup(block_size=4)
STATES = CacheGroup(block_size=4, holds_state=True)
CHUNK = 8
PLENTY = 1 << 20


def window(tokens: int, block_size: int = 4) -> CacheGroup:
    return CacheGroup(block_size=block_size, window=tokens)


def local(tokens: int) -> CacheGroup:
    return CacheGroup(block_size=4, local_chunk=tokens)


@pytest.mark.parametrize(
    ("group", "end", "first"),
    [
        (FULL, 100, 0),
        (window(7), 6, 0),
        (window(7), 15, 8),
        (window(7), 14, 4),
        (window(0), 16, 16),
        (window(4, 16), 40, 32),
        (local(12), 11, 0),
        (local(12), 12, 12),
        (local(12), 23, 12),
        (local(6), 12, 12),
        (local(6), 7, 4),
        (STATES, 16, 12),
        (STATES, 4, 0),
    ],
    ids=str,
)
def test_a_hit_needs_the_blocks_that_the_next_token_reads(group: CacheGroup, end: int, first: int) -> None:
    assert group.first_needed(end) == first


def test_what_precedes_a_null_block_is_absent() -> None:
    groups = (FULL, window(7), window(7, 8), FULL)
    tables = ([1, 2, 3, 4, 5], [0, 0, 6, 7, 8], [9, 0, 10], [11, 12, 0, 0, 0])
    assert cut_tables(groups, tables, 0, 16, 0) == (
        GroupTable(absent_blocks=0, block_ids=[1, 2, 3, 4]),
        GroupTable(absent_blocks=2, block_ids=[6, 7]),
        GroupTable(absent_blocks=2, block_ids=[]),
        GroupTable(absent_blocks=4, block_ids=[]),
    )
    assert cut_tables(groups[:2], tables[:2], 8, 20, 0) == (
        GroupTable(absent_blocks=0, block_ids=[3, 4, 5]),
        GroupTable(absent_blocks=0, block_ids=[6, 7, 8]),
    )


def test_a_load_writes_what_the_engine_has_not_and_the_window_needs() -> None:
    assert num_blocks_written((FULL, window(7), local(8)), 8, 32) == 6 + 2 + 0
    assert num_blocks_written((FULL, window(7)), 28, 32) == 1 + 1


@pytest.mark.parametrize(
    ("absent", "most_blocks", "stored"),
    [
        ((0, 0), PLENTY, (0, 32)),
        ((0, 1), PLENTY, (0, 32)),  # of the first chunk the window needs the last four tokens
        ((0, 2), PLENTY, (8, 32)),
        ((0, 3), PLENTY, (8, 32)),
        ((0, 6), PLENTY, (24, 32)),
        ((0, 8), PLENTY, (32, 32)),
        ((1, 0), PLENTY, (8, 32)),  # full attention needs all
        ((0, 0), 4, (0, 8)),
        ((0, 0), 3, (0, 0)),
        ((0, 3), 3, (8, 16)),  # absent blocks need no slot
        ((0, 3), 2, (8, 8)),
    ],
)
def test_chunks_are_stored_that_are_enough_for_any_hit(
    absent: tuple[int, int], most_blocks: int, stored: tuple[int, int]
) -> None:
    groups = (FULL, window(4))
    tables = tuple(GroupTable(absent_blocks=number, block_ids=[7] * (8 - number)) for number in absent)
    assert storable_tokens(groups, tables, 0, 32, CHUNK, most_blocks) == stored


@given(
    st.one_of(st.just(FULL), st.integers(0, 40).map(window), st.integers(1, 40).map(local)),
    st.integers(0, 12),
    st.integers(0, 12),
    st.integers(0, 12),
)
def test_what_is_stored_in_time_satisfies_every_later_hit(
    group: CacheGroup, first_chunk: int, step_start: int, more: int
) -> None:
    """In the step that makes a chunk whole vLLM has all that a hit at its end needs, and so has any later hit."""
    start, begun = first_chunk * CHUNK, first_chunk * CHUNK + min(step_start, CHUNK - 1)
    end = start + CHUNK
    ids = list(range(1, end // 4 + 1))
    dropped = group.first_needed(begun) // 4
    tables = cut_tables((group,), ([0] * dropped + ids[dropped:],), start, end, 0)
    assert storable_tokens((group,), tables, start, end, CHUNK, PLENTY) == (start, end)
    present_from = start + 4 * tables[0].absent_blocks
    assert present_from <= max(start, group.first_needed(end + CHUNK * more))


@pytest.mark.parametrize(("exact", "last"), [(16, 8), (12, 0), (20, 0), (0, 0)])
def test_only_the_state_of_the_end_of_a_step_is_certain(exact: int, last: int) -> None:
    tables = ([1, 2, 3, 4, 5], [6, 0, 7, 8, 9])
    assert with_certain_states((FULL, STATES), tables, 16, exact, 0) == (tables[0], [0, 0, 0, last])


def test_a_chunk_without_a_state_is_stored_and_a_hit_needs_one_state() -> None:
    groups = (STATES, FULL)
    tables = cut_tables(groups, ([0, 0, 0, 9], [1, 2, 3, 4]), 0, 16, 0)
    assert storable_tokens(groups, tables, 0, 16, CHUNK, PLENTY) == (0, 16)
    assert tables[0] == GroupTable(absent_blocks=3, block_ids=[9])
    assert num_blocks_written(groups, 0, 16) == 1 + 4


def test_blocks_of_the_first_group_of_full_attention_are_reported() -> None:
    assert reported_group((window(7), FULL, FULL)) == 1
    assert reported_group((window(7), local(8))) is None
