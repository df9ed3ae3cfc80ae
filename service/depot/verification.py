"""Verification: the bytes of chunks against their checksums, and the end of a chunk whose bytes are wrong."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Sequence

from service.depot.chunk_index import ChunkIndex
from service.errors import ChunkCorrupt
from service.l1.chunk import Chunk
from service.l1.past import RemovalReason
from service.l1.verify import Verify
from telemetry.events import ChunksCorrupt, Publisher
from telemetry.kinds import Hop
from telemetry.logs.line_format import log_event
from telemetry.rate_limit import RateLimit

logger = logging.getLogger(__name__)

LINES_PER_MINUTE = 10  # of one hop and tenant: bad memory may damage many chunks
MAX_KEYS = 1_024  # pairs of hop and tenant
MAX_LOGGED_OFFSETS = 8
LOGGED_FACTS = ("tenant", "model_name", "rank", "hop", "num_bytes")


class Verification:
    """The comparisons of all tenants' chunks. `num_verified` and `num_corrupt` count chunks by hop.

    A corrupt chunk counts once, at the hop that found it first. Only the event loop uses this.
    """

    def __init__(self, verify: Verify, index: ChunkIndex, bus: Publisher | None) -> None:
        self.verify = verify
        self.num_verified: Counter[Hop] = Counter(dict.fromkeys(Hop, 0))
        self.num_corrupt: Counter[Hop] = Counter(dict.fromkeys(Hop, 0))
        self._index = index
        self._bus = bus
        self._limit = RateLimit[tuple[str, str]](LINES_PER_MINUTE, period_seconds=60.0, max_keys=MAX_KEYS)

    def __repr__(self) -> str:
        return f"<Verification {self.verify}, {self.num_corrupt.total()} chunks corrupt>"

    def note_stored(self, chunk: Chunk, checksum: int) -> None:
        """Keep the checksum of a chunk that a store has just written."""
        chunk.checksum = checksum
        chunk.note_verified(time.monotonic())

    def note_loaded(self, chunk: Chunk, checksum: int) -> None:
        """Keep the checksum of a chunk from a tier. An I/O worker has compared its bytes with it."""
        self.note_stored(chunk, checksum)
        chunk.was_compared = True

    def is_due_at_retrieve(self, chunk: Chunk, *, reads_all: bool) -> bool:
        """Return whether a retrieve compares a chunk. `reads_all` is False if it does not want all groups' blocks.

        To compare means to read the whole chunk. A retrieve that wants a part of the groups would read much more than
        it copies, each time. So it compares a chunk at its first use only.
        """
        return self.verify.at_retrieves and chunk.checksum is not None and (reads_all or not chunk.was_compared)

    def compare(self, checksums: Iterable[tuple[Chunk, int]], hop: Hop) -> None:
        """Compare what was read of chunks, all of one namespace, and drop each chunk that has other bytes.

        A dropped chunk is invisible at once and `is_corrupt`. Its slot is freed when nobody has it pinned.
        """
        now = time.monotonic()
        corrupt: list[Chunk] = []
        for chunk, checksum in checksums:
            if chunk.is_corrupt:
                continue
            if checksum == chunk.checksum:
                self.num_verified[hop] += 1
                chunk.note_verified(now)
                chunk.was_compared = True
            else:
                corrupt.append(chunk)
        self.drop(corrupt, hop)

    def drop(self, chunks: Sequence[Chunk], hop: Hop) -> None:
        """Drop chunks, all of one namespace, whose bytes are wrong. Those that were dropped before do not count."""
        corrupt = [chunk for chunk in dict.fromkeys(chunks) if not chunk.is_corrupt]
        for chunk in corrupt:
            chunk.is_corrupt = True
            if not chunk.removed:
                self._index.remove(chunk, RemovalReason.CORRUPT)
        if corrupt:
            self.num_corrupt[hop] += len(corrupt)
            self._report(corrupt, hop)

    def _report(self, chunks: Sequence[Chunk], hop: Hop) -> None:
        stats = chunks[0].namespace_stats
        event = ChunksCorrupt(
            tenant=stats.tenant,
            model_name=stats.model_name,
            rank=stats.rank,
            hop=hop.value,
            keys=tuple(chunk.key for chunk in chunks),
            l1_offsets=tuple(chunk.slot.offset_bytes for chunk in chunks),
            num_bytes=len(chunks) * stats.chunk_bytes,
        )
        if self._bus is not None:
            self._bus.publish(event)
        # Not left to the subscriber that logs events: a depot without events has to report this, too.
        num_suppressed = self._limit.admit((hop.value, stats.tenant), event.monotonic)
        if num_suppressed is not None:
            facts = {name: getattr(event, name) for name in LOGGED_FACTS}
            facts |= {"num_chunks": len(chunks), "l1_offsets": list(event.l1_offsets[:MAX_LOGGED_OFFSETS])}
            log_event(logger, logging.ERROR, "ChunksCorrupt", facts | {"num_suppressed": num_suppressed})


def check_none_corrupt(
    chunks: Iterable[Chunk], first_position: int, chunk_size: int, *, first_bad_token: int | None = None
) -> None:
    """Check the chunks of a prefix from `first_position` on, once all that a call reads of them is compared.

    The error names `first_bad_token`, by default that of the first corrupt chunk.

    Raises: ChunkCorrupt.
    """
    positions = [position for position, chunk in enumerate(chunks, start=first_position) if chunk.is_corrupt]
    if positions:
        raise ChunkCorrupt(positions, chunk_size, first_bad_token=first_bad_token)
