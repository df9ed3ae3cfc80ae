"""Checksums of pieces, reports of corrupt chunks, and the error that names the bad tokens."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernels.checksum import kvsum64
from service.depot.depot import DepotLimits
from service.depot.inline_checksum import InlineChecksum
from service.depot.tenant_depots import TenantDepots
from service.depot.verification import LINES_PER_MINUTE
from service.errors import MAX_BAD_RANGES, ChunkCorrupt
from service.l1.chunk import Chunk, NamespaceStats
from service.l1.keys import ChunkKey, Namespace
from service.l1.past import RemovalReason
from service.l1.pool import Pool
from telemetry.events import ChunksCorrupt, Event
from telemetry.kinds import Hop
from tests.fakes.resident_chunks import PlainMemory, resident_chunk

CHUNK_BYTES = 1_003


class Published(list[Event]):
    """Everything that was published."""

    def publish(self, event: Event) -> None:
        self.append(event)


@pytest.fixture
def memory() -> PlainMemory:
    return PlainMemory(1 << 18)


@pytest.fixture
def published() -> Published:
    return Published()


@pytest.fixture
async def depots(memory: PlainMemory, published: Published) -> TenantDepots:
    return TenantDepots(memory.l1, memory, DepotLimits(), published)


@given(chunk_bytes=st.integers(1, 300), data=st.data())
def test_pieces_of_any_cutting_have_the_checksum_of_the_whole(chunk_bytes: int, data: st.DataObject) -> None:
    memory = PlainMemory(4096)
    slot = Pool[Chunk](4096).take(4096)
    assert slot is not None
    chunk = Chunk(ChunkKey(b"k"), NamespaceStats(Namespace(b"n"), "m", "", 0), slot, None)
    content = np.random.default_rng(chunk_bytes).bytes(chunk_bytes)
    cuts = data.draw(st.lists(st.integers(1, chunk_bytes), unique=True).map(sorted))
    checksum = InlineChecksum(memory, chunk, chunk_bytes)
    filled_bytes = 0
    for end in [*(cut for cut in cuts if cut < chunk_bytes), chunk_bytes]:
        memory.l1[filled_bytes:end] = content[filled_bytes:end]
        checksum.add(end)
        filled_bytes = end
    assert checksum.value == kvsum64(memoryview(content))
    assert sum(size for _, size in memory.reads) == chunk_bytes, "each byte is read once"


async def test_a_corrupt_chunk_leaves_at_once_and_counts_once(
    depots: TenantDepots, memory: PlainMemory, published: Published
) -> None:
    verification, index = depots.verification, depots.index
    bad, good = (resident_chunk(depots, memory, number, CHUNK_BYTES, tenant="red") for number in range(2))
    index.pin([bad, good])
    assert bad.checksum is not None and good.checksum is not None
    verification.compare([(bad, bad.checksum ^ 1), (good, good.checksum)], Hop.RETRIEVE)
    verification.compare([(bad, bad.checksum ^ 1)], Hop.SCRUB)
    verification.compare([(bad, bad.checksum)], Hop.SCRUB)
    assert index.get(bad.key) is None and index.get(good.key) is good
    assert bad.is_corrupt and not bad.is_verified and good.is_verified
    assert verification.num_corrupt == dict.fromkeys(Hop, 0) | {Hop.RETRIEVE: 1}
    assert verification.num_verified == dict.fromkeys(Hop, 0) | {Hop.RETRIEVE: 1}
    [event] = published
    assert isinstance(event, ChunksCorrupt)
    assert (event.tenant, event.model_name, event.rank, event.hop) == ("red", "m", 0, "retrieve")
    assert (event.keys, event.l1_offsets, event.num_bytes) == ((bad.key,), (bad.slot.offset_bytes,), CHUNK_BYTES)
    index.unpin([bad, good])
    index.check()
    assert index.pool.used_bytes == good.slot.size_bytes, "the slot is free without its pin"


async def test_a_chunk_that_was_cleared_while_it_was_read_is_reported_too(
    depots: TenantDepots, memory: PlainMemory
) -> None:
    chunk = resident_chunk(depots, memory, 1, CHUNK_BYTES)
    depots.index.pin([chunk])
    depots.index.remove(chunk, RemovalReason.CLEARED)
    depots.verification.compare([(chunk, 0)], Hop.INLINE)
    assert chunk.is_corrupt and depots.verification.num_corrupt[Hop.INLINE] == 1
    depots.index.unpin([chunk])
    depots.index.check()


async def test_each_event_is_an_error_in_the_log_up_to_a_limit(
    depots: TenantDepots, memory: PlainMemory, caplog: pytest.LogCaptureFixture
) -> None:
    chunks = [resident_chunk(depots, memory, number, CHUNK_BYTES) for number in range(LINES_PER_MINUTE + 3)]
    for chunk in chunks:
        depots.verification.compare([(chunk, 0)], Hop.SCRUB)
    lines = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(lines) == LINES_PER_MINUTE
    assert all("ChunksCorrupt" in record.getMessage() and "hop=" in record.getMessage() for record in lines)
    assert f"l1_offsets=[{chunks[0].slot.offset_bytes}]" in lines[0].getMessage()


def test_the_error_names_all_bad_tokens_as_ranges() -> None:
    error = ChunkCorrupt([2, 3, 5], 16)
    assert error.metadata == {"first_bad_token": "32", "bad_tokens": "32:64,80:96"}
    assert "from 32 on" in str(error)


def test_too_many_ranges_are_cut_and_still_cover_all_bad_tokens() -> None:
    positions = range(0, 1_000, 2)
    bad_tokens = ChunkCorrupt(positions, 16).metadata["bad_tokens"]
    ranges = [tuple(map(int, text.split(":"))) for text in bad_tokens.split(",")]
    assert len(ranges) == MAX_BAD_RANGES
    assert all(any(first <= 16 * position < end for first, end in ranges) for position in positions)
    assert ranges[-1][1] == 999 * 16
