"""What a hit saves follows from the tokens of a chunk, not from its bytes alone."""

from __future__ import annotations

import pytest

from service.l1.chunk import Chunk, NamespaceStats
from service.l1.eviction.worth import COPY_BYTES_PER_SECOND, Worth
from service.l1.keys import ChunkKey, Namespace
from service.l1.pool import Slot, SlotState

SLOT_BYTES = 4096
COPY_SECONDS = SLOT_BYTES / COPY_BYTES_PER_SECOND


def chunk(chunk_size: int, world_size: int = 1) -> Chunk:
    stats = NamespaceStats(
        Namespace(b"n"), "m", "", 0, chunk_size=chunk_size, world_size=world_size, prefill_tokens_per_second=1_000.0
    )
    return Chunk(ChunkKey(b"k"), stats, Slot(0, SLOT_BYTES, SlotState.TAKEN), None)


def test_a_hit_saves_the_prefill_of_the_tokens_of_the_chunk() -> None:
    worth = Worth()
    assert worth.saved_seconds(chunk(256)) == pytest.approx(0.256 - COPY_SECONDS)
    assert worth.saved_seconds(chunk(64)) == pytest.approx(0.064 - COPY_SECONDS)
    assert worth.saved_seconds(chunk(64, world_size=2)) == pytest.approx(0.032 - COPY_SECONDS)


def test_later_tokens_are_counted_by_the_size_of_the_chunks_before() -> None:
    worth = Worth()
    late = chunk(64)
    late.position = 512  # behind 32,768 tokens, where a token costs twice as much
    assert worth.saved_seconds(late) == pytest.approx(0.128 - COPY_SECONDS)


def test_of_two_chunks_in_equal_slots_the_one_with_more_tokens_is_worth_more() -> None:
    worth = Worth()
    assert worth.level(chunk(64)) < worth.level(chunk(256))
