"""The publisher of KV events: learns of changes from the bus, and tells readers in slices of the event loop's time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from telemetry.delivery import Subscriber
from telemetry.events import (
    ChunksCorrupt,
    ChunksEvicted,
    ChunksRemoved,
    ChunksStored,
    Event,
    TierRead,
    TierStateChanged,
    TierWritten,
)
from telemetry.kv_events.batches import Batches
from telemetry.kv_events.named_chunk import NamedChunk
from telemetry.kv_events.names import Names
from telemetry.kv_events.picture import MediaOf, Picture

logger = logging.getLogger(__name__)

SLICE_SECONDS = 0.0005
COALESCING_SECONDS = 0.005
"""From a change until it is told. The bus tells of a chunk two milliseconds after its name is known: one look is enough
for both."""
FAILURE_SECONDS = 10.0
MIN_RETELL_SECONDS = 2.0
"""Between two times that all is told again. Readers can ask for it, and it must not keep the depot busy."""

_ADDS = frozenset({("TierRead", "arrived"), ("TierWritten", "ok")})
_REMOVES = frozenset({("TierRead", "absent"), ("TierRead", "damaged")})
_RELEVANT = frozenset(
    each.__name__
    for each in (ChunksStored, ChunksEvicted, ChunksCorrupt, ChunksRemoved, TierRead, TierWritten, TierStateChanged)
)


class KvEventPublisher(Subscriber):
    """A subscriber that keeps readers up to date. `run` does the telling; `handle` only notes what may have changed.

    `shared_tiers` are the tiers whose content other depots change, too. `num_retold` counts by reason how often readers
    had to forget all and were told all: a gap in the events, or a reader that came or lost too much. `clock` is
    monotonic, in seconds.
    """

    name = "kv_events"

    def __init__(
        self,
        names: Names,
        media_of: MediaOf,
        batches: Batches,
        *,
        shared_tiers: frozenset[str] = frozenset(),
        min_retell_seconds: float = MIN_RETELL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.names = names
        self.batches = batches
        self.num_retold: Counter[str] = Counter({"gap": 0, "reader": 0})
        self._picture = Picture(names, media_of, batches)
        self._shared_tiers = shared_tiers
        self._min_retell_seconds = min_retell_seconds
        self._clock = clock
        self._retell_time = -min_retell_seconds
        self._retell_reason = ""
        self._woken = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        names.on_change = self._note_change

    def __repr__(self) -> str:
        return f"<KvEventPublisher {self._picture!r}, {self.batches!r}>"

    @property
    def is_up_to_date(self) -> bool:
        """Whether readers were told of all that it knows."""
        return self._picture.is_up_to_date and not self._retell_reason

    def handle(self, batch: Sequence[Event]) -> None:
        """Note which chunks may have changed."""
        mark = self._picture.mark_key
        for event in batch:
            match event:
                case ChunksRemoved(keys=()):
                    self._forget_shared()
                case ChunksStored() | ChunksEvicted() | ChunksCorrupt() | ChunksRemoved():
                    for key in event.keys:
                        mark(key)
                case TierRead() | TierWritten():
                    self._note_shared(event)
                    mark(event.key)
                case TierStateChanged():
                    self._picture.mark_all()
        self._woken.set()

    def note_dropped(self, num_dropped_by_type: Mapping[str, int]) -> None:
        """Tell readers all again, if an event was dropped that says where chunks are."""
        if not _RELEVANT.isdisjoint(num_dropped_by_type):
            self._forget_shared()
            self.tell_again("gap")

    def tell_again(self, reason: str) -> None:
        """Let readers forget all and tell them all, soon. Before they were told anything, this does nothing."""
        if self.batches.has_topics or self.names:
            self._retell_reason = self._retell_reason or reason
            self._woken.set()

    async def run(self) -> None:
        """Tell readers of changes, until the task is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._woken.wait()
            await asyncio.sleep(COALESCING_SECONDS)
            self._woken.clear()
            try:
                await self._advance_all()
            except Exception:
                logger.exception("KvEventsFailed")
                self.tell_again("gap")
                await asyncio.sleep(FAILURE_SECONDS)
            if self._retell_reason and (self._timer is None or self._timer.when() <= loop.time()):
                self._timer = loop.call_later(self._seconds_to_retell, self._woken.set)

    async def _advance_all(self) -> None:
        has_more = True
        while has_more:
            has_more = self.advance()
            await asyncio.sleep(0)  # others have their turn

    def advance(self) -> bool:
        """Do one slice. Return whether there is more to do now."""
        if self._retell_reason and self._seconds_to_retell <= 0:
            self.num_retold[self._retell_reason] += 1
            self._retell_reason, self._retell_time = "", self._clock()
            self._picture.begin_anew()
        end = self._clock() + SLICE_SECONDS
        is_done = all(self._clock() < end for _ in self._picture.steps())
        self.batches.flush()
        return not is_done

    def say_goodbye(self) -> None:
        """Let readers forget all: the depot ends."""
        self.batches.cleared()
        self.batches.flush()

    @property
    def _seconds_to_retell(self) -> float:
        return self._retell_time + self._min_retell_seconds - self._clock()

    def _note_change(self, chunk: NamedChunk) -> None:
        self._picture.mark(chunk)
        self._woken.set()

    def _note_shared(self, event: TierRead | TierWritten) -> None:
        if event.tier not in self._shared_tiers or self.names.of_key(event.key) is None:
            return
        kind = type(event).__name__, str(event.outcome)
        if kind in _ADDS:
            self.names.external.add(event.key)
        elif kind in _REMOVES:
            self.names.external.discard(event.key)

    def _forget_shared(self) -> None:
        """Forget what shared tiers have: they were cleared, or it is not certain any more."""
        self.names.external.clear()
        self._picture.mark_all()
