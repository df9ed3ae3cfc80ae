"""The cache's memory while the depot runs: opened, adopted, populated, kept in step with the index, and left behind."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from service.depot.running_transfer import to_the_end
from service.depot.slices import Slices
from service.l1.adoption import Adoption, adopt
from service.l1.index import Index
from service.l1.l1_file import is_named
from service.l1.memory import open_l1
from service.l1.pool import Pool
from service.l1.verify import Verify
from service.process.garbage import paused_collection
from service.settings import Settings

logger = logging.getLogger(__name__)

NOTE_USES_SECONDS = 5.0


class CacheMemory:
    """L1's memory and the `index` of its chunks. `view` has the slots. `adoption` says what an earlier process left.

    `inherited_fd` is a descriptor of the memory of an earlier process. `is_in_file` says whether the memory is a named
    file, which outlives all processes. `is_handed_over` is set when a later process has the memory.

    Raises: MemoryUnavailable, L1FileUnusable.
    """

    def __init__(self, settings: Settings, inherited_fd: int | None = None) -> None:
        path = Path(settings.l1_file) if settings.l1_file else None
        self._memory = open_l1(
            settings.l1_size,
            settings.l1_huge_pages,
            path=path,
            inherited_fd=inherited_fd,
            chunk_size=settings.chunk_size,
            cache_epoch=settings.cache_epoch,
        )
        self.is_handed_over = False
        if path is not None and inherited_fd is not None and not self._memory.is_file(path):
            logger.warning("L1 stays in the memory that the depot before this one had, and %s is not used", path)
        self._arena = self._memory.arena
        self.is_in_file = is_named(self._arena.fd)
        self.view = self._arena.view
        self.adoption = Adoption()
        if self._memory.has_records:
            unverified = settings.verify is Verify.OFF  # what can't be verified is not taken over
            with paused_collection():
                self.index, self.adoption = adopt(
                    self._memory.ledger, settings.l1_size, settings.eviction, without_checksum=unverified
                )
        else:
            self.index = Index(Pool(settings.l1_size), self._memory.ledger, settings.eviction)
        self._log(str(path) if inherited_fd is None else "the depot before this one")

    def __repr__(self) -> str:
        return f"<CacheMemory {self.index!r}>"

    @property
    def fd(self) -> int:
        """The descriptor of the memory."""
        return self._arena.fd

    @property
    def populated_bytes(self) -> int:
        """The bytes of L1 whose pages this process has made or mapped."""
        return self._arena.populated_bytes

    def missing_bytes(self) -> int:
        """Return the memory that L1 will still take."""
        return self._arena.missing_bytes

    def start_populating(self, populated: Callable[[int, int], None]) -> None:
        """Begin to make the pages: see `Arena.start_populating`."""
        self._arena.start_populating(populated)

    async def note_uses(self, slices: Slices) -> None:
        """Write into the records every few seconds when chunks were last used. It ends when it is cancelled."""
        while True:
            await asyncio.sleep(NOTE_USES_SECONDS)
            noted = slices.run(self.index.noting_uses())
            if noted is not None:
                await to_the_end(noted)

    def close(self) -> None:
        """Write the last uses, and close the file. Nothing may change the index after this. Idempotent."""
        if self.index.ledger is None:
            return
        for _ in self.index.noting_uses():
            pass
        self.index.ledger = None  # what ends later must not touch records that another process may own by then
        self._arena.stop_populating()
        self._memory.close(unlock=not self.is_handed_over)

    def _log(self, origin: str) -> None:
        if self._memory.why_empty:
            logger.warning("L1 starts empty, the chunks in %s can't be used: %s", origin, self._memory.why_empty)
        if self._memory.has_records:
            logger.info("L1 adopts %d chunks from %s", self.adoption.num_chunks, origin)
        for doubt, count in self.adoption.num_rejected.items():
            logger.warning("L1 does not adopt %d chunks: %s", count, doubt)
