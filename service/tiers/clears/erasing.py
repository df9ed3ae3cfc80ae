"""Chunks that are to be erased in a tier: damaged ones, and those that were cleared."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from service.l1.keys import ChunkKey
from service.tiers.clears.placing import Placing
from service.tiers.io_worker.job import JobEnd
from service.tiers.io_worker.messages import Message, ProtocolBroken, Verb, packed_place
from service.tiers.store import Place
from service.tiers.traffic.accounts import Accounts

ERASE_SECONDS = 5.0
MAX_PLACES = 256
MAX_NAMES = 65_536


class Erasing:
    """Places that wait for an I/O worker, or are being erased. `wake` is called when there is a new one.

    A place in a local tier is pinned until its record is erased, so that no later chunk loses its record.
    """

    def __init__(self, placing: Placing, accounts: Accounts, wake: Callable[[], None]) -> None:
        self._placing = placing
        self._accounts = accounts
        self._wake = wake
        self._waiting: dict[bytes, Place] = {}
        self._running: set[bytes] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._waiting)

    def is_leaving(self, name: bytes) -> bool:
        """Return whether a chunk is still being erased. Nothing may write it before that has ended."""
        return name in self._waiting or name in self._running

    def erase(self, key: ChunkKey, name: bytes) -> bool:
        """Make a chunk of a local tier invisible and erase it, or erase one of a remote tier by its name.

        Return whether it was there; a remote tier does not know.
        """
        if self.is_leaving(name) or (self._placing.index is None and len(self._waiting) >= MAX_NAMES):
            return False
        place: Place | None = Place(name)
        if self._placing.index is not None:
            if not self._placing.index.has(key):
                return False
            self._placing.index.pin(key)
            place = self._placing.index.remove(key)
            if place is None:
                self._placing.index.unpin(key)
                return False
            self._accounts.removed(key, "erased")
        assert place is not None
        self._waiting[name] = place
        self._empty.clear()
        self._wake()
        return True

    def take(self) -> EraseJob | None:
        """Return the next job."""
        names = list(self._waiting)[:MAX_PLACES]
        if not names:
            return None
        places = [self._waiting.pop(name) for name in names]
        self._running.update(names)
        return EraseJob(self, names, places)

    def end_running(self, names: Sequence[bytes], places: Sequence[Place], *, is_done: bool) -> None:
        """End a job. A local tier tries again what failed: a later start would find those chunks."""
        self._running.difference_update(names)
        index = self._placing.index
        for name, place in zip(names, places, strict=True):
            if index is None:
                continue
            if is_done:
                index.unpin(ChunkKey(name))
            else:
                self._waiting[name] = place
        if not self._waiting and not self._running:
            self._empty.set()
        self._wake()  # writes may have waited for this

    async def until_empty(self, timeout_seconds: float) -> bool:
        """Wait until all is erased. Return whether it is."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True


class EraseJob:
    """Places that one I/O worker erases."""

    verb = Verb.DELETE
    seconds = ERASE_SECONDS
    failure = ""

    def __init__(self, erasing: Erasing, names: Sequence[bytes], places: Sequence[Place]) -> None:
        self.num_parts = len(names)
        self._erasing = erasing
        self._names = names
        self._places = places

    def request(self) -> Message:
        """Return the request: see `Job`."""
        return {"verb": self.verb, "places": [packed_place(place) for place in self._places]}

    def on_reply(self, reply: Message) -> None:
        """Refuse the reply: see `Job`."""
        raise ProtocolBroken("a deletion has no parts")

    def on_blob(self, blob: bytes) -> None:
        """Refuse the blob: see `Job`."""
        raise ProtocolBroken("a deletion has no blobs")

    def on_end(self, end: JobEnd, detail: str, result: list[int]) -> None:
        """Note that the places are erased, or try again: see `Job`."""
        self._erasing.end_running(self._names, self._places, is_done=end is JobEnd.DONE)
