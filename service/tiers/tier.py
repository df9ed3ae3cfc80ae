"""A tier behind L1: what lookups, loads and writes see of it, and its life."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

from service.l1.chunk import Chunk
from service.l1.keys import ChunkKey
from service.tiers.address.limits import TierLimits
from service.tiers.answer import Answer, Doubt
from service.tiers.breaker import Breaker
from service.tiers.clears.clear_note import ClearNote
from service.tiers.clears.erasing import Erasing
from service.tiers.clears.forgotten import Cleared
from service.tiers.clears.local_clears import LocalClears
from service.tiers.clears.placing import Placing
from service.tiers.crew import Crew, TierJob
from service.tiers.io_worker.process import IoWorker, Launch
from service.tiers.load import Load, LoadEnd
from service.tiers.local_index import LocalIndex
from service.tiers.opening import Opening, RunSteps
from service.tiers.record import Owner, tag_of
from service.tiers.snapshot import TierSnapshot, TierState
from service.tiers.store import Role
from service.tiers.traffic.accounts import Accounts
from service.tiers.traffic.asking import Asking
from service.tiers.traffic.finding import Finding
from service.tiers.traffic.reading import Reading
from service.tiers.traffic.write_budget import WriteBudget
from service.tiers.traffic.write_queue import WriteQueue
from service.tiers.traffic.writing import L1Chunks, Writing
from telemetry.events import Publisher

FLUSH_SECONDS = 2.0
CLEAR_SECONDS = 5.0


class Tier:
    """One tier. `launch` says how its I/O workers start, and `bit` is its own in `Chunk.in_tiers`.

    A local tier has an `index`; a remote one has None. `run_steps` does its adoption in slices. `on_corrupt` is called
    with a chunk whose bytes in L1 are not those of its checksum. `clock` is monotonic, in seconds.
    """

    def __init__(
        self,
        launch: Launch,
        bit: int,
        *,
        l1: L1Chunks,
        index: LocalIndex | None,
        bus: Publisher,
        run_steps: RunSteps,
        on_corrupt: Callable[[Chunk], None],
        limits: TierLimits | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert (index is not None) == launch.kind.capabilities.is_local, "a local tier has an index, others have none"
        limits = limits or TierLimits.of(launch.address.options)
        self.name = launch.address.name
        self.bit = bit
        self.is_local = index is not None
        self.answer_seconds = limits.answer_seconds
        self._launch = launch
        self._index = index
        self._clock = clock
        self._accounts = accounts = Accounts(self.name, bus)
        self._breaker = Breaker(clock, self._note_state)
        self._placing = placing = Placing(index, clock)
        self._erasing = Erasing(placing, accounts, lambda: self._crew.wake(Role.WRITE))
        self._clear_note = ClearNote(
            self.name,
            placing.forgotten,
            lambda: self._crew.wake(Role.READ),
            lambda: self._crew.wake(Role.WRITE),
        )
        self._asking = Asking(lambda: self._crew.wake(Role.ASK), clock)
        self._finding = Finding(self._asking, placing, accounts, clock)
        self._reading = Reading(
            placing,
            accounts,
            num_workers=limits.read_workers,
            wake=lambda: self._crew.wake(Role.READ),
            on_end=self._note_load,
            clock=clock,
        )
        self._writing = Writing(
            WriteQueue(limits.queue_bytes, clock),
            WriteBudget(limits.write_bytes_per_day, clock),
            placing,
            self._erasing,
            accounts,
            l1,
            bit=bit,
            num_workers=limits.write_workers,
            wake=lambda: self._crew.wake(Role.WRITE),
            on_corrupt=on_corrupt,
            clock=clock,
        )
        self._local_clears = (
            LocalClears(self.name, index, self._erasing, self._writing.is_writing) if index is not None else None
        )
        jobs: dict[Role, Callable[[], TierJob | None]] = {
            Role.ASK: self._asking.take,
            Role.READ: lambda: self._clear_note.take_read() or self._reading.take(),
            Role.WRITE: lambda: self._clear_note.take_write() or self._erasing.take() or self._writing.take(),
        }
        self._crew = Crew(launch, self._breaker, accounts, jobs)
        self._opening = Opening(self._crew, self._breaker, index, self._clear_note, run_steps, self._note_state)
        self._num_workers = {
            Role.ASK: 0 if self.is_local else limits.ask_workers,
            Role.READ: limits.read_workers,
            Role.WRITE: limits.write_workers,
        }
        self._state = TierState.OPENING
        self._has_failed = asyncio.Event()
        self._is_closing = False
        self._stop = asyncio.Event()
        self._ended = asyncio.Event()
        self._ended.set()

    def __repr__(self) -> str:
        return f"<Tier {self.name} {self._state}, {self._reading!r}, {self._writing.queue!r}>"

    def lacks(self, key: ChunkKey) -> bool:
        """Return whether the tier certainly has no chunk of a key: only a local one that can be used knows that."""
        return self._is_usable and self._finding.lacks(key)

    def holds(self, key: ChunkKey) -> bool:
        """Return whether a local tier can read a chunk. This is no use of it. A remote tier does not know."""
        return self._is_usable and self._index is not None and self._index.holds(key)

    async def find(self, keys: Sequence[ChunkKey], owner: Owner, timeout_seconds: float) -> Answer:
        """Return which chunks the tier has, within the timeout. A local tier answers without a wait."""
        if not self._is_usable:
            return Answer([False] * len(keys), Doubt.UNAVAILABLE)
        return await self._finding.find(keys, owner, timeout_seconds)

    def load(self, loads: Sequence[Load]) -> None:
        """Begin to read chunks into L1, in this order. The end of each comes within the bounds of the tier."""
        self._reading.put(loads)
        if not self._is_usable:
            self._reading.fail_waiting()

    def seconds_to_read(self, num_bytes: int) -> float | None:
        """Return how long it takes by the measured rate, with what is queued already. None: nothing was measured."""
        all_bytes = num_bytes + self._reading.waiting_bytes + self._reading.running_bytes
        return self._accounts.read_rate.seconds_for(all_bytes / self._num_workers[Role.READ])

    def write(self, chunks: Sequence[Chunk]) -> None:
        """Queue chunks that the tier does not have. What the queue has no space for is dropped, oldest first.

        While the tier opens, they wait.
        """
        if not chunks:
            return
        if self._is_closing:
            self._accounts.drop(chunks, "shutdown")
        elif self._state in (TierState.FAILING, TierState.UNUSABLE):
            self._accounts.drop(chunks, "tier unavailable")
        else:
            self._writing.put(chunks)

    def set_tenants(self, disk_share_bytes: Mapping[str, int]) -> None:
        """Take all tenants that there are, with their shares of a local tier: 0 for a tenant without one.

        When a local tier opens, it forgets the chunks of all others.
        """
        if self._local_clears is not None:
            self._local_clears.set_tenants(disk_share_bytes)

    async def clear(self, tenant: str | None, model_name: str, cache_salt: str | None) -> int:
        """Forget the chunks of a tenant (None: of all), a model ("": any) and a salt (None: any). Return how many.

        No lookup here finds them when it ends. A local tier has erased their records then, unless it can't write.
        """
        cleared = Cleared.of(tenant, model_name, cache_salt)
        if self._local_clears is None:
            self._placing.forgotten.clear(cleared)
        self._reading.forget(lambda owner: cleared.matches(tag_of(owner)))
        self._writing.forget(lambda owner: cleared.matches(tag_of(owner)))
        wait_seconds = CLEAR_SECONDS if self._state is TierState.AVAILABLE else 0.0
        if self._local_clears is None:
            self._accounts.forgot_unknown()
            await self._clear_note.share(wait_seconds)
            return 0
        num_removed = await self._local_clears.clear(cleared)
        await self._erasing.until_empty(wait_seconds)
        return num_removed

    def snapshot(self) -> TierSnapshot:
        """Return the tier's state."""
        accounts, index = self._accounts, self._index
        return TierSnapshot(
            name=self.name,
            kind=self._launch.address.kind,
            is_local=self.is_local,
            state=self._state,
            detail=self._detail,
            used_bytes=index.used_bytes if index is not None else None,
            capacity_bytes=index.capacity_bytes if index is not None else None,
            num_chunks=index.num_chunks if index is not None else None,
            num_evicted=index.num_evicted if index is not None else 0,
            reads=dict(accounts.reads),
            writes=dict(accounts.writes),
            dropped=dict(accounts.dropped),
            read_bytes=accounts.read_bytes,
            written_bytes=accounts.written_bytes,
            num_asked=accounts.num_asked,
            num_found=accounts.num_found,
            read_bytes_per_second=accounts.read_rate.bytes_per_second,
            write_bytes_per_second=accounts.write_rate.bytes_per_second,
            queued_reads=len(self._reading),
            queued_writes=len(self._writing.queue),
            queued_write_bytes=self._writing.queue.num_bytes,
            running_writes=self._writing.num_running,
            num_io_workers=len(self._crew.workers),
            num_io_workers_killed=accounts.num_killed,
            seconds_to_probe=self._breaker.seconds_to_probe,
        )

    async def run(self) -> None:
        """Open the tier and serve it, until `close` or until the task is cancelled. Then no I/O worker is alive."""
        self._ended.clear()
        try:
            async with asyncio.TaskGroup() as tasks:
                serving = tasks.create_task(self._serve(), name=f"tier {self.name} serves")
                await self._stop.wait()
                serving.cancel()
        finally:
            self._is_closing = True
            self._end_waiting("shutdown")
            self._ended.set()

    async def close(self) -> None:
        """Write what waits, for `FLUSH_SECONDS` at most, and end. After this nothing of the tier touches L1."""
        self._is_closing = True
        self._reading.fail_waiting()
        if not self._ended.is_set() and self._state is TierState.AVAILABLE:
            await self._writing.until_idle(FLUSH_SECONDS)
        self._stop.set()
        await self._ended.wait()

    async def _serve(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            if self._launch.kind.capabilities.needs_owner:
                tasks.create_task(self._crew.own(tasks), name=f"tier {self.name} owner")
            worker: IoWorker | None = await self._opening.open()
            if self._local_clears is not None:
                await self._local_clears.clear_adopted()
            self._opening.has_opened = True
            self._note_state()
            for role, number in self._num_workers.items():
                for _ in range(number):
                    first, worker = (worker, None) if role is Role.WRITE else (None, worker)
                    tasks.create_task(self._crew.work(tasks, role, first), name=f"tier {self.name} {role}")
            if not self.is_local:
                tasks.create_task(self._clear_note.run(), name=f"tier {self.name} clears")
            while True:
                await self._has_failed.wait()
                await self._opening.probe()

    def _note_load(self, load: Load, end: LoadEnd) -> None:
        """Note what a load says of the tier's chunk."""
        if end not in (LoadEnd.ABSENT, LoadEnd.DAMAGED):
            return
        name = self._placing.name(load.key, load.owner)
        if not self.is_local:
            self._placing.absent.add(name)
        if (self.is_local and not self._writing.is_writing(load.key)) or end is LoadEnd.DAMAGED:
            self._erasing.erase(load.key, name)

    @property
    def _is_usable(self) -> bool:
        return self._state is TierState.AVAILABLE and not self._is_closing

    @property
    def _detail(self) -> str:
        return self._opening.unusable or (self._breaker.detail if self._breaker.is_open else "")

    def _note_state(self) -> None:
        """Take the state from the breaker and the opening, and have it known."""
        before, self._state = self._state, self._current_state()
        if self._breaker.is_open:
            self._has_failed.set()
            self._end_waiting("tier unavailable")
        else:
            self._has_failed.clear()
            self._crew.wake_all()
        if self._state is not before:
            self._accounts.state(self._state, self._detail)

    def _current_state(self) -> TierState:
        if self._opening.unusable:
            return TierState.UNUSABLE
        if self._breaker.is_open:
            return TierState.FAILING
        return TierState.AVAILABLE if self._opening.has_opened else TierState.OPENING

    def _end_waiting(self, reason: str) -> None:
        self._asking.fail_all()
        self._reading.fail_waiting()
        self._writing.drop_all(reason)
