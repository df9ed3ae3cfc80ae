"""The note of what was cleared, in step with the tier: read every few seconds, and written when it lacks something."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from service.tiers.clears.forgotten import ALL, Forgotten
from service.tiers.io_worker.job import JobEnd, SmallJob
from service.tiers.io_worker.messages import Verb

logger = logging.getLogger(__name__)

READ_SECONDS = 2.0
WRITE_SECONDS = 5.0
INTERVAL_SECONDS = 5.0
"""A clear on one depot is known to the others after this time."""


class ClearNote:
    """Reads and writes the note. `wake_reader` and `wake_writer` are called when there is a job for them."""

    def __init__(
        self, tier: str, forgotten: Forgotten, wake_reader: Callable[[], None], wake_writer: Callable[[], None]
    ) -> None:
        self._tier = tier
        self._forgotten = forgotten
        self._wake_reader = wake_reader
        self._wake_writer = wake_writer
        self._must_read = False
        self._must_write = False
        self._written = asyncio.Event()

    def read_job(self) -> NoteJob:
        """Return a job that reads the note and takes what it has."""
        return NoteJob({"verb": Verb.READ_NOTE}, READ_SECONDS, self._take_note)

    def take_read(self) -> NoteJob | None:
        """Return the read that is due, if one is."""
        is_due, self._must_read = self._must_read, False
        return self.read_job() if is_due else None

    def take_write(self) -> NoteJob | None:
        """Return the write that is due, if one is."""
        is_due, self._must_write = self._must_write, False
        if not is_due:
            return None
        note = self._forgotten.pack()
        return NoteJob({"verb": Verb.WRITE_NOTE, "note": note.hex()}, WRITE_SECONDS, self._note_written)

    async def run(self) -> None:
        """Have the note read every few seconds, until this is cancelled."""
        while True:
            await asyncio.sleep(INTERVAL_SECONDS)
            self._must_read = True
            self._wake_reader()

    async def share(self, timeout_seconds: float) -> None:
        """Write what was cleared here, so that other depots, and later processes, forget it too."""
        self._want_write()
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._written.wait()
        except TimeoutError:
            logger.warning(
                "tier %s was cleared for this depot only: other depots, and this one after a restart, find the chunks "
                "until the tier can be written",
                self._tier,
            )

    def _want_write(self) -> None:
        self._must_write = True
        self._written.clear()
        self._wake_writer()

    def _take_note(self, job: NoteJob) -> None:
        """Merge a note that was read. A damaged one leaves nothing to be found: what it had is not known."""
        if job.end is not JobEnd.DONE:
            return
        if not job.blobs:
            if job.is_damaged and not len(self._forgotten):
                logger.error(
                    "what was cleared in tier %s is damaged, so that all of its chunks are forgotten", self._tier
                )
                self._forgotten.clear(ALL)
            if len(self._forgotten):
                self._want_write()
            return
        try:
            lacks = self._forgotten.merge(b"".join(job.blobs))
        except ValueError:
            lacks = bool(len(self._forgotten))
        if lacks:
            self._want_write()

    def _note_written(self, job: NoteJob) -> None:
        if job.end is JobEnd.DONE:
            if not self._must_write:
                self._written.set()
        else:
            self._must_write = True


class NoteJob(SmallJob):
    """A read or a write of the note. `is_damaged`: there is one, and it is not what a depot wrote."""

    failure = ""

    def __init__(self, request: dict[str, object], seconds: float, take: Callable[[NoteJob], None]) -> None:
        super().__init__(request, seconds=seconds)
        self.is_damaged = False
        self._take = take

    def on_end(self, end: JobEnd, detail: str, result: list[int]) -> None:
        """Take the end: see `Job`."""
        super().on_end(end, detail, result)
        self.is_damaged = result == [1]
        self._take(self)
