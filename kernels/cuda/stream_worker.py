"""Lanes: one direction of one attachment, whose transfers take turns at the streams."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kernels.cuda.batch import Batch, Marks, Moves, StepEvents
from kernels.cuda.phase_clock import PhaseClock
from kernels.cuda.runtime import CudaDevice, CudaError, Event
from kernels.cuda.staging_ring import StagingRing
from kernels.cuda.steps import Step, num_steps, steps
from kernels.cuda.tables import Table
from kernels.cuda.transfer import CudaTransfer
from kernels.errors import TransferFailed

SHORTEST_PAUSE_SECONDS = 50e-6
LONGEST_PAUSE_SECONDS = 1e-3


@dataclass(slots=True, eq=False)
class _Loaded:
    """A batch whose blocks are in a table. The table is free again when the last of its steps is done."""

    table: Table
    batch: Batch
    steps: Iterator[Step]
    num_to_issue: int
    num_in_flight: int = 0


@dataclass(slots=True, eq=False)
class _Running:
    """A transfer that is not settled: the moves that are in no table yet, and the batch that is being issued."""

    transfer: CudaTransfer
    rest: Moves
    is_ready: bool
    ready_event: Event | None = None
    loaded: _Loaded | None = None
    is_begun: bool = False
    num_in_flight: int = 0

    @property
    def is_issued(self) -> bool:
        return self.loaded is None and not len(self.rest)


@dataclass(frozen=True, slots=True, eq=False)
class _Issued:
    running: _Running
    loaded: _Loaded
    events: StepEvents
    is_first: bool


class StreamWorker:
    """Issues transfers step by step, in turns, so that a short one need not wait for a long one.

    So many steps as there are ``step_events`` are on the streams at once: enough that these stay busy while the thread
    waits for the GIL, few enough that a transfer can be stopped soon. Transfers may be started and stopped from any
    thread; `turn` belongs to one. When anything fails, all that runs is stopped and ``on_failure`` is called.
    """

    def __init__(
        self,
        device: CudaDevice,
        ring: StagingRing,
        clock: PhaseClock,
        *,
        tables: Sequence[Table],
        moves_per_table: int,
        step_events: Sequence[StepEvents],
        on_failure: Callable[[TransferFailed], None],
    ) -> None:
        self._device = device
        self._ring = ring
        self._clock = clock
        self._free_tables = list(tables)
        self._moves_per_table = moves_per_table
        self._free_events = deque(step_events)
        self._on_failure = on_failure
        self._started: list[CudaTransfer] = []
        self._running: deque[_Running] = deque()
        self._issued: deque[_Issued] = deque()
        self._stop_error: Exception | None = None
        self._pause_seconds = SHORTEST_PAUSE_SECONDS
        self._lock = threading.Lock()
        self._woken = threading.Event()

    def start(self, moves: Moves, ready_event: bytes) -> CudaTransfer:
        """Begins to carry moves out, after the event if there is one; a stopped lane does not, and says why."""
        transfer = CudaTransfer(moves, ready_event, self._woken.set)
        with self._lock:
            if self._stop_error is None:
                self._started.append(transfer)
                self._woken.set()
                return transfer
        transfer.stop(self._stop_error)
        transfer.settle()
        return transfer

    def stop(self, error: Exception) -> None:
        """Stops what runs with an error, and starts nothing any more."""
        with self._lock:
            if self._stop_error is None:
                self._stop_error = error
        self._woken.set()

    @property
    def is_over(self) -> bool:
        """Whether the lane is stopped and touches nothing any more."""
        return self._stop_error is not None and not (self._started or self._running)

    def run(self) -> None:
        """Takes turns until the lane is over."""
        while not self.is_over:
            pause_seconds = self.turn()
            if pause_seconds != 0:
                self._woken.wait(pause_seconds)
                self._woken.clear()

    def turn(self) -> float | None:
        """Issues a step or waits for one; returns the seconds to wait before the next turn, None for until woken."""
        self._admit()
        try:
            is_busy = self._issue_step() or self._wait_for_oldest()
        except Exception as error:  # whatever it was: nobody knows what the streams will do
            self._fail(error)
            is_busy = True
        self._settle()
        return 0 if is_busy else self._pause()

    def _admit(self) -> None:
        with self._lock:
            started, self._started = self._started, []
            self._running.extend(_Running(transfer, transfer.moves, not transfer.ready_event) for transfer in started)
        if started:
            self._pause_seconds = SHORTEST_PAUSE_SECONDS
        if self._stop_error is not None:
            for running in self._running:
                running.transfer.stop(self._stop_error)

    def _issue_step(self) -> bool:
        """Issues the next step of the transfer whose turn it is, if any has one and not too many are on their way."""
        if not self._free_events:
            return False
        for _ in range(len(self._running)):
            running = self._running[0]
            self._running.rotate(-1)
            if not running.is_issued and not running.transfer.is_stopped and self._is_ready(running):
                if not (self._issued or any(each.is_begun for each in self._running)):
                    self._clock.join()
                loaded = running.loaded or self._load(running)
                if loaded is not None:
                    self._issue(running, loaded)
                    return True
        return False

    def _is_ready(self, running: _Running) -> bool:
        """Whether the engine has done what the transfer must wait for.

        It is asked and not made a stream wait: a stream can't be told to give up, and if the engine is killed the
        event never happens. Unmapping the engine's memory waits for all streams, so it would never be free.
        """
        if running.is_ready:
            return True
        try:
            if running.ready_event is None:
                running.ready_event = self._device.open_event(running.transfer.ready_event)
            running.is_ready = self._device.has_happened(running.ready_event)
        except CudaError as error:
            running.transfer.stop(TransferFailed(f"the ready_event can't be waited for: {error}"))
        return running.is_ready

    def _load(self, running: _Running) -> _Loaded | None:
        """Puts the next moves into a table, if one is free. A step must follow: its event tells that it is uploaded."""
        if not self._free_tables:
            return None
        table = self._free_tables.pop()
        moves, running.rest = running.rest[: self._moves_per_table], running.rest[self._moves_per_table :]
        batch = self._ring.load(moves, table)
        cut = (len(moves), self._ring.parts, self._ring.chunks_per_step)
        running.loaded = _Loaded(table, batch, steps(*cut), num_steps(*cut))
        return running.loaded

    def _issue(self, running: _Running, loaded: _Loaded) -> None:
        step, events = next(loaded.steps), self._free_events.popleft()
        loaded.num_to_issue -= 1
        if not loaded.num_to_issue:
            running.loaded = None
        is_first, running.is_begun = not running.is_begun, True
        self._ring.issue(step, loaded.batch, [Marks(begin if is_first else None, end) for begin, end in events])
        self._issued.append(_Issued(running, loaded, events, is_first))
        loaded.num_in_flight += 1
        running.num_in_flight += 1

    def _wait_for_oldest(self) -> bool:
        """Waits for the oldest step on the streams, if there is one."""
        if not self._issued:
            return False
        oldest = self._issued[0]
        _, done = oldest.events[-1]
        self._device.synchronize(done)
        oldest.running.num_in_flight -= 1
        oldest.loaded.num_in_flight -= 1
        self._note_times(oldest)
        self._issued.popleft()
        self._free_events.append(oldest.events)
        if not oldest.loaded.num_in_flight and not oldest.loaded.num_to_issue:
            self._free_tables.append(oldest.loaded.table)
        return True

    def _note_times(self, issued: _Issued) -> None:
        """Only the first begin and the last end count, so most steps have nothing to note."""
        transfer = issued.running.transfer
        for name, (begin, end) in zip(self._ring.works, issued.events, strict=True):
            if issued.is_first:
                transfer.begun[name] = self._clock.read(begin)
            if not issued.running.num_in_flight:
                transfer.ended[name] = self._clock.read(end)

    def _fail(self, error: Exception) -> None:
        failure = TransferFailed(str(error))
        failure.__cause__ = error
        self.stop(failure)
        self._on_failure(failure)
        with contextlib.suppress(CudaError):  # then the device does nothing any more
            self._ring.drain()
        self._issued.clear()
        for running in self._running:
            running.transfer.stop(failure)
            running.num_in_flight = 0

    def _settle(self) -> None:
        for running in list(self._running):
            if running.num_in_flight or not (running.is_issued or running.transfer.is_stopped):
                continue
            self._running.remove(running)
            if running.loaded is not None:
                self._free_tables.append(running.loaded.table)
            if running.ready_event is not None:
                with contextlib.suppress(CudaError):  # it is the engine's, and may be gone
                    self._device.destroy_event(running.ready_event)
            running.transfer.settle()

    def _pause(self) -> float | None:
        if all(running.is_ready for running in self._running):
            return None
        pause_seconds = self._pause_seconds
        self._pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)
        return pause_seconds
