"""The loads of a tier: queued in order, and read in batches into their slots in L1."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from service.tiers.address.limits import MAX_BATCH_BYTES, MAX_PARTS
from service.tiers.clears.placing import Placing
from service.tiers.io_worker.job import JobEnd
from service.tiers.io_worker.messages import Message, ProtocolBroken, ReadPart, Verb, number_in, packed_read
from service.tiers.load import Load, LoadEnd
from service.tiers.record import Owner, tag_of
from service.tiers.traffic.accounts import Accounts
from service.tiers.traffic.rates import MAX_READ_SECONDS, READ_SECONDS

_BELOW_64_BITS = 1 << 64
_MAX_GROUPS = 1 << 10
_MAX_TOKENS = 1 << 24


class Reading:
    """Loads that wait or are being read. `wake` is called when there are new ones. `clock` is in seconds.

    `num_workers` share what waits. `on_end` is called with each load that began, and with its end.
    """

    def __init__(
        self,
        placing: Placing,
        accounts: Accounts,
        *,
        num_workers: int,
        wake: Callable[[], None],
        on_end: Callable[[Load, LoadEnd], None],
        clock: Callable[[], float],
    ) -> None:
        self.accounts = accounts
        self.clock = clock
        self.waiting_bytes = 0
        self.placing = placing
        self._num_workers = num_workers
        self._wake = wake
        self._on_end = on_end
        self._waiting: deque[QueuedLoad] = deque()
        self._running: dict[Load, QueuedLoad] = {}
        self._forgotten: set[Load] = set()  # that are running

    def __repr__(self) -> str:
        return f"<Reading {len(self._running)} loads, {len(self._waiting)} wait>"

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def running_bytes(self) -> int:
        """The bytes of the loads that are being read."""
        return sum(load.chunk_bytes for load in self._running)

    def put(self, loads: Sequence[Load]) -> None:
        """Queue loads."""
        now = self.clock()
        for load in loads:
            self._waiting.append(QueuedLoad(load, now))
            self.waiting_bytes += load.chunk_bytes
        self._wake()

    def take(self) -> ReadJob | None:
        """Return the next job. Loads that are not wanted any more, or whose chunk has left, end here."""
        max_parts = min(MAX_PARTS, -(-len(self._waiting) // self._num_workers))
        left_bytes = self.accounts.read_rate.batch_bytes(MAX_BATCH_BYTES, MAX_READ_SECONDS - READ_SECONDS)
        parts: list[tuple[QueuedLoad, ReadPart]] = []
        while self._waiting and len(parts) < max_parts:
            if parts and self._waiting[0].load.chunk_bytes > left_bytes:
                break
            queued = self._pop()
            load = queued.load
            if load.done.done() or not load.is_wanted():
                self._end(queued, LoadEnd.UNWANTED, 0.0)
                continue
            place = self.placing.begin_reading(load.key, load.owner)
            if place is None:
                self._end(queued, LoadEnd.ABSENT, 0.0)
                continue
            left_bytes -= load.chunk_bytes
            self._running[load] = queued
            tenant = tag_of(load.owner).tenant
            part = ReadPart(place, load.key, tenant, load.offset_bytes, load.slot_bytes, load.chunk_bytes)
            parts.append((queued, part))
        return ReadJob(self, parts) if parts else None

    def end_running(self, queued: QueuedLoad, end: LoadEnd, seconds: float) -> None:
        """End a load that was taken."""
        load = queued.load
        del self._running[load]
        self.placing.end_reading(load.key)
        self._on_end(load, end)
        if load in self._forgotten:
            self._forgotten.remove(load)
            end = LoadEnd.ABSENT if end is LoadEnd.ARRIVED else end
        self._end(queued, end, seconds)

    def fail_waiting(self) -> None:
        """End all loads that wait: the tier can't be used."""
        while self._waiting:
            self._end(self._pop(), LoadEnd.FAILED, 0.0)

    def forget(self, matches: Callable[[Owner], bool]) -> int:
        """End the loads of owners as absent: those that wait now, the others when they end. Return how many."""
        waiting, self._waiting = self._waiting, deque()
        for queued in waiting:
            if matches(queued.load.owner):
                self.waiting_bytes -= queued.load.chunk_bytes
                self._end(queued, LoadEnd.ABSENT, 0.0)
            else:
                self._waiting.append(queued)
        running = {load for load in self._running if matches(load.owner)}
        self._forgotten |= running
        return len(waiting) - len(self._waiting) + len(running)

    def _pop(self) -> QueuedLoad:
        queued = self._waiting.popleft()
        self.waiting_bytes -= queued.load.chunk_bytes
        return queued

    def _end(self, queued: QueuedLoad, end: LoadEnd, seconds: float) -> None:
        load = queued.load
        self.accounts.read(load, end, self.clock() - queued.since - seconds, seconds)
        if not load.done.done():
            load.done.set_result(end)


class QueuedLoad(NamedTuple):
    """A load, queued at `since` of the clock."""

    load: Load
    since: float


class ReadJob:
    """Loads that one I/O worker reads."""

    verb = Verb.READ
    failure = ""

    def __init__(self, reading: Reading, parts: Sequence[tuple[QueuedLoad, ReadPart]]) -> None:
        self.num_parts = len(parts)
        self._reading = reading
        self._parts = [part for _, part in parts]
        self._open = dict(enumerate(queued for queued, _ in parts))
        self._start = reading.clock()
        self._arrived_bytes = 0
        self.seconds = reading.accounts.read_rate.read_bound_seconds(sum(part.chunk_bytes for part in self._parts))

    def request(self) -> Message:
        """Return the request: see `Job`."""
        return {"verb": self.verb, "parts": [packed_read(part) for part in self._parts]}

    def on_reply(self, reply: Message) -> None:
        """End one load: see `Job`."""
        number = number_in(reply, "part", self.num_parts)
        if number not in self._open:
            raise ProtocolBroken(f"part {number} has ended already")
        try:
            end = LoadEnd(str(reply.get("end")))
        except ValueError as error:
            raise ProtocolBroken(str(error)) from error
        load = self._open[number].load
        if end is LoadEnd.ARRIVED:
            load.checksum = number_in(reply, "checksum", _BELOW_64_BITS)
            load.absent_tokens = _absent_tokens(reply.get("absent"))
            self._arrived_bytes += load.chunk_bytes
        self._reading.end_running(self._open.pop(number), end, self._reading.clock() - self._start)

    def on_blob(self, blob: bytes) -> None:
        """Refuse the blob: see `Job`."""
        raise ProtocolBroken("a read has no blobs")

    def on_end(self, end: JobEnd, detail: str, result: list[int]) -> None:
        """End the loads that are left: see `Job`."""
        seconds = self._reading.clock() - self._start
        if end is JobEnd.DONE:
            if self._open:
                raise ProtocolBroken(f"{len(self._open)} parts were left out")
            self._reading.accounts.read_rate.note(self._arrived_bytes, seconds)
        load_end = LoadEnd.LATE if end is JobEnd.DEADLINE else LoadEnd.FAILED
        for queued in self._open.values():
            self._reading.end_running(queued, load_end, seconds)
        self._open.clear()


def _absent_tokens(absent: object) -> tuple[int, ...]:
    """Return absent tokens of a size that can be true.

    Raises: ProtocolBroken.
    """
    if not isinstance(absent, list) or len(absent) > _MAX_GROUPS:
        raise ProtocolBroken("the absent tokens are no list of numbers of groups")
    if not all(type(tokens) is int and 0 <= tokens < _MAX_TOKENS for tokens in absent):
        raise ProtocolBroken("the absent tokens of a group are no number")
    return tuple(absent)
