"""Ids are small, in the order of first sight, and as many as the bound says."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from service.recording.chunk_ids import MAX_CHUNKS, NUM_SHARDS, ChunkIds


@given(st.lists(st.integers(0, 50)))
def test_ids_are_given_out_in_the_order_of_first_sight(numbers: list[int]) -> None:
    ids = ChunkIds()
    expected: dict[int, int] = {}
    for number in numbers:
        assert ids.of(number) == expected.setdefault(number, len(expected))


@given(st.lists(st.integers(0, 30), max_size=200), st.integers(1, 8))
def test_what_was_seen_lately_keeps_its_id_and_no_id_is_given_twice(numbers: list[int], num_recent: int) -> None:
    ids = ChunkIds(capacity=2 * NUM_SHARDS * num_recent)
    given_out: dict[int, int] = {}
    seen: list[int] = []
    for number in numbers:
        in_one_shard = NUM_SHARDS * number
        found = ids.of(in_one_shard)
        if number in seen[-num_recent:]:
            assert found == given_out[number]
        assert all(found != other for each, other in given_out.items() if each != number)
        given_out[number] = found
        seen = [each for each in seen if each != number] + [number]
        assert len(ids) <= 2 * num_recent


def test_a_forgotten_chunk_gets_a_new_id() -> None:
    ids = ChunkIds(capacity=2 * NUM_SHARDS)
    first = ids.of(0)
    for number in range(1, 10):
        ids.of(NUM_SHARDS * number)
    assert ids.of(0) == 10 != first


def test_all_ids_take_the_memory_that_the_bound_says() -> None:
    ids = ChunkIds()
    for number in range(MAX_CHUNKS // 2, 2 * MAX_CHUNKS):
        ids.of(number * 0x9E37_79B9_7F4A_7C15 % (1 << 64))
    assert len(ids) <= MAX_CHUNKS
    shards = [*ids._recent, *ids._older]
    num_bytes = sum(sys.getsizeof(shard) for shard in shards) + 68 * len(ids)  # two integers each
    assert num_bytes < 80 << 20, f"{num_bytes / (1 << 20):.0f} MiB"
