"""The opening of a tier, and the probes of one that failed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from service.tiers.breaker import MAX_PROBE_SECONDS, Breaker
from service.tiers.clears.clear_note import ClearNote
from service.tiers.crew import Crew
from service.tiers.io_worker.job import JobEnd, SmallJob
from service.tiers.io_worker.messages import Verb, unpacked_scanned
from service.tiers.io_worker.process import IoWorker
from service.tiers.local_index import LocalIndex
from service.tiers.record import ChunkRecord
from service.tiers.store import Place, Role, StoreError, StoreUnusable

SCAN_SECONDS = 60.0
PROBE_SECONDS = 1.0
NAME_BYTES = 32

_T = TypeVar("_T")

RunSteps = Callable[[Iterator[None]], asyncio.Future[None] | None]
"""Does steps in slices. The future ends with the last one; None: all are done."""


class Opening:
    """Opens a tier. `unusable` says why it can't be used as it is set up; empty: it can, as far as is known.

    `on_change` is called when that changes. The caller of `open` sets `has_opened` when the tier can be used.
    """

    def __init__(
        self,
        crew: Crew,
        breaker: Breaker,
        index: LocalIndex | None,
        clear_note: ClearNote,
        run_steps: RunSteps,
        on_change: Callable[[], None],
    ) -> None:
        self.has_opened = False
        self.unusable = ""
        self._crew = crew
        self._breaker = breaker
        self._index = index
        self._clear_note = clear_note
        self._run_steps = run_steps
        self._on_change = on_change

    async def open(self) -> IoWorker:
        """Open the tier, however often that fails. Return the I/O worker that did it, which can write."""
        while (worker := await self._try(self._open)) is None:
            await self._until_probe()
        return worker

    async def probe(self) -> None:
        """Try a tier whose breaker is open when it is time, until it works."""
        while self._breaker.is_open:
            await self._until_probe()
            await self._try(self._probe)

    async def _until_probe(self) -> None:
        await asyncio.sleep(self._breaker.seconds_to_probe or 0.0)

    async def _try(self, attempt: Callable[[], Coroutine[Any, Any, _T]]) -> _T | None:
        """Make an attempt, and have the breaker note how it ended. None: it failed."""
        try:
            result = await attempt()
        except StoreError as error:
            is_unusable = isinstance(error, StoreUnusable)
            self.unusable = str(error) if is_unusable else ""
            wait_seconds = MAX_PROBE_SECONDS if is_unusable else None
            if self._breaker.is_open:
                self._breaker.note_probe(str(error), probe_seconds=wait_seconds)
            else:
                self._breaker.open_now(str(error), wait_seconds)
            self._on_change()
            return None
        self.unusable = ""
        if self._breaker.is_open:
            self._breaker.note_probe("")
        return result

    async def _open(self) -> IoWorker:
        """Start an I/O worker, and learn from it what a local store has.

        Raises: StoreError.
        """
        worker = await self._crew.start(Role.WRITE)
        try:
            if self._index is not None:
                await self._adopt(worker, self._index)
            else:
                await _done(worker, self._clear_note.read_job())  # no chunk is found that was cleared before
        except BaseException:
            await self._crew.stop(worker)
            raise
        return worker

    async def _adopt(self, worker: IoWorker, index: LocalIndex) -> None:
        scan = SmallJob({"verb": Verb.SCAN}, seconds=SCAN_SECONDS)
        await _done(worker, scan)
        adopted = self._run_steps(index.adopting(_found(scan.blobs)))
        if adopted is not None:
            await adopted

    async def _probe(self) -> None:
        """Use the tier once, in an I/O worker of its own.

        Raises: StoreError.
        """
        worker = await self._crew.start(Role.READ)
        try:
            names = [os.urandom(NAME_BYTES).hex()]
            await _done(worker, SmallJob({"verb": Verb.EXISTS, "names": names}, seconds=PROBE_SECONDS))
            if self._index is None:
                await _done(worker, self._clear_note.read_job())
        finally:
            await self._crew.stop(worker)


async def _done(worker: IoWorker, job: SmallJob) -> None:
    """Do a job.

    Raises: StoreError.
    """
    end, detail = await worker.carry_out(job)
    if end is not JobEnd.DONE:
        raise StoreError(f"{job.verb}: {detail}")


def _found(blobs: list[bytes]) -> Iterator[tuple[Place, ChunkRecord]]:
    """Yield what a scan found. The blobs are dropped on the way."""
    blobs.reverse()
    while blobs:
        yield from unpacked_scanned(blobs.pop())
