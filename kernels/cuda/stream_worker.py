"""A stream worker: carries out the transfers of one direction of an attachment, step by step."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kernels.copies import Copies
from kernels.cuda.chunk_sums import ChunkSums
from kernels.cuda.phase_clock import PhaseClock
from kernels.cuda.runtime import CudaDevice, CudaError, Event
from kernels.cuda.staging_ring import StagingRing, StepEvents
from kernels.cuda.steps import Step, num_steps, steps
from kernels.cuda.transfer import CudaTransfer
from kernels.cuda.uploads import UploadBuffer, UploadedCopies
from kernels.errors import DeviceFailed

MIN_PAUSE_SECONDS = 50e-6
MAX_PAUSE_SECONDS = 1e-3


@dataclass(slots=True, eq=False)
class _Upload:
    """Some copies of a transfer, from number `first` on, in an upload buffer.

    The buffer is free again when their last step is done.
    """

    first: int
    buffer: UploadBuffer
    copies: UploadedCopies
    steps: Iterator[Step]
    num_to_issue: int
    num_in_flight: int = 0


@dataclass(slots=True, eq=False)
class _Running:
    """A transfer that is not settled: the copies that are not uploaded, and the upload that is being issued."""

    transfer: CudaTransfer
    sums: ChunkSums
    rest: Copies
    is_ready: bool
    ready_event: Event | None = None
    upload: _Upload | None = None
    is_begun: bool = False
    num_in_flight: int = 0

    @property
    def is_issued(self) -> bool:
        return self.upload is None and not len(self.rest)

    @property
    def is_copied(self) -> bool:
        return self.is_issued and not self.num_in_flight


@dataclass(frozen=True, slots=True, eq=False)
class _Issued:
    """A step on the streams."""

    running: _Running
    upload: _Upload
    events: StepEvents
    is_first: bool


class StreamWorker:
    """A worker that issues steps of its transfers round robin, so that a short transfer need not wait for a long one.

    At most `len(step_events)` steps are on the streams. That is enough to keep them busy while the thread waits for
    the GIL, and so few that a transfer stops soon. Any thread may start and stop transfers; one thread calls `advance`.
    A failure stops all transfers, and is passed to `on_failure`.

    `sums_of` makes what adds up the checksums of a transfer's copies. The worker sums one slice of the host's share
    between two steps. So other transfers hardly wait for that.
    """

    def __init__(
        self,
        device: CudaDevice,
        ring: StagingRing,
        clock: PhaseClock,
        *,
        upload_buffers: Sequence[UploadBuffer],
        copies_per_upload: int,
        step_events: Sequence[StepEvents],
        sums_of: Callable[[Copies], ChunkSums],
        on_failure: Callable[[DeviceFailed], None],
    ) -> None:
        self._device = device
        self._ring = ring
        self._clock = clock
        self._free_buffers = list(upload_buffers)
        self._copies_per_upload = copies_per_upload
        self._free_events = deque(step_events)
        self._sums_of = sums_of
        self._on_failure = on_failure
        self._started: list[CudaTransfer] = []
        self._running: deque[_Running] = deque()
        self._issued: deque[_Issued] = deque()
        self._stop_error: Exception | None = None
        self._pause_seconds = MIN_PAUSE_SECONDS
        self._lock = threading.Lock()
        self._woken = threading.Event()

    def start(self, copies: Copies, ready_event: bytes) -> CudaTransfer:
        """Start a transfer, which begins after the event if there is one.

        If the worker is stopped, the transfer ends immediately with the worker's error.
        """
        transfer = CudaTransfer(copies, ready_event, self._woken.set)
        with self._lock:
            if self._stop_error is None:
                self._started.append(transfer)
                self._woken.set()
                return transfer
        transfer.stop(self._stop_error)
        transfer.settle()
        return transfer

    def stop(self, error: Exception) -> None:
        """Stop all transfers with an error, and start no more."""
        with self._lock:
            if self._stop_error is None:
                self._stop_error = error
        self._woken.set()

    @property
    def is_over(self) -> bool:
        """Whether the worker is stopped and touches no memory."""
        return self._stop_error is not None and not (self._started or self._running)

    def run(self) -> None:
        """Advance until the worker is over."""
        while not self.is_over:
            pause_seconds = self.advance()
            if pause_seconds != 0:
                self._woken.wait(pause_seconds)
                self._woken.clear()

    def advance(self) -> float | None:
        """Issue one step, or wait for one, and sum a slice. Return the seconds to pause, None to pause until woken."""
        self._admit()
        try:
            is_busy = self._issue_step() or self._wait_for_oldest()
            is_busy = self._sum_slice() or is_busy
        except Exception as error:  # whatever it is, the state of the streams is unknown
            self._fail(error)
            is_busy = True
        self._settle()
        return 0 if is_busy else self._pause()

    def _admit(self) -> None:
        with self._lock:
            started, self._started = self._started, []
            self._running.extend(
                _Running(transfer, self._sums_of(transfer.copies), transfer.copies, not transfer.ready_event)
                for transfer in started
            )
        if started:
            self._pause_seconds = MIN_PAUSE_SECONDS
        if self._stop_error is not None:
            for running in self._running:
                running.transfer.stop(self._stop_error)

    def _issue_step(self) -> bool:
        """Issue the next step of the next transfer that has one. Return False if there is none, or no free events."""
        if not self._free_events:
            return False
        for _ in range(len(self._running)):
            running = self._running[0]
            self._running.rotate(-1)
            if not running.is_issued and not running.transfer.is_stopped and self._is_ready(running):
                if not (self._issued or any(each.is_begun for each in self._running)):
                    self._clock.calibrate()
                upload = running.upload or self._upload(running)
                if upload is not None:
                    self._issue(running, upload)
                    return True
        return False

    def _is_ready(self, running: _Running) -> bool:
        """Return whether the event that the transfer waits for has happened.

        The worker asks, and never makes a stream wait. A stream can't give up, and the event of a killed engine never
        happens. Unmapping the engine's memory waits for all streams, so it would never end.
        """
        if running.is_ready:
            return True
        try:
            if running.ready_event is None:
                running.ready_event = self._device.open_event(running.transfer.ready_event)
            running.is_ready = self._device.has_happened(running.ready_event)
        except CudaError as error:
            running.transfer.stop(DeviceFailed(f"the ready_event can't be waited for: {error}"))
        return running.is_ready

    def _upload(self, running: _Running) -> _Upload | None:
        """Upload the next copies of a transfer, if a buffer is free.

        A step must follow: its last event also says that the upload is done.
        """
        if not self._free_buffers:
            return None
        buffer = self._free_buffers.pop()
        first = len(running.transfer.copies) - len(running.rest)
        copies, running.rest = running.rest[: self._copies_per_upload], running.rest[self._copies_per_upload :]
        uploaded = self._ring.upload(copies, buffer)
        cut = (len(copies), self._ring.parts, self._ring.chunks_per_step)
        running.upload = _Upload(first, buffer, uploaded, steps(*cut), num_steps(*cut))
        return running.upload

    def _issue(self, running: _Running, upload: _Upload) -> None:
        step, events = next(upload.steps), self._free_events.popleft()
        upload.num_to_issue -= 1
        is_last = not upload.num_to_issue
        if is_last:
            running.upload = None
        is_first, running.is_begun = not running.is_begun, True
        to_download = upload.buffer if is_last else None
        self._ring.issue(step, upload.copies, events, record_begins=is_first, to_download=to_download)
        self._issued.append(_Issued(running, upload, events, is_first))
        upload.num_in_flight += 1
        running.num_in_flight += 1

    def _wait_for_oldest(self) -> bool:
        """Wait for the oldest step on the streams. Return False if there is none."""
        if not self._issued:
            return False
        oldest = self._issued[0]
        _, done = oldest.events[-1]
        self._device.synchronize(done)
        oldest.running.num_in_flight -= 1
        oldest.upload.num_in_flight -= 1
        self._note_times(oldest)
        self._issued.popleft()
        self._free_events.append(oldest.events)
        if not oldest.upload.num_in_flight and not oldest.upload.num_to_issue:
            if oldest.upload.copies.sums is not None:
                oldest.running.sums.add(oldest.upload.first, oldest.upload.copies.sums.words)
            self._free_buffers.append(oldest.upload.buffer)
        return True

    def _sum_slice(self) -> bool:
        """Sum a slice for the next transfer that has copied everything. Return False if none has a slice left."""
        for running in self._running:
            if running.is_copied and not running.sums.is_complete:
                running.sums.add_slice()
                self._running.remove(running)
                self._running.append(running)
                return True
        return False

    def _note_times(self, issued: _Issued) -> None:
        """Note the first begin and the last end of each phase; most steps have neither."""
        transfer = issued.running.transfer
        for phase, (begin, end) in zip(self._ring.phases, issued.events, strict=True):
            if issued.is_first:
                transfer.begun[phase] = self._clock.read(begin)
            if not issued.running.num_in_flight:
                transfer.ended[phase] = self._clock.read(end)

    def _fail(self, error: Exception) -> None:
        failure = DeviceFailed(str(error))
        failure.__cause__ = error
        self.stop(failure)
        self._on_failure(failure)
        with contextlib.suppress(CudaError):  # then the device does nothing more
            self._ring.drain()
        self._issued.clear()
        for running in self._running:
            running.transfer.stop(failure)
            running.num_in_flight = 0

    def _settle(self) -> None:
        for running in list(self._running):
            is_done = running.is_copied and running.sums.is_complete
            if running.num_in_flight or not (is_done or running.transfer.is_stopped):
                continue
            self._running.remove(running)
            if running.upload is not None:
                self._free_buffers.append(running.upload.buffer)
            if running.ready_event is not None:
                with contextlib.suppress(CudaError):  # the event is the engine's, which may be gone
                    self._device.destroy_event(running.ready_event)
            running.transfer.settle(None if running.transfer.is_stopped else running.sums.totals())

    def _pause(self) -> float | None:
        if all(running.is_ready for running in self._running):
            return None
        pause_seconds = self._pause_seconds
        self._pause_seconds = min(2 * pause_seconds, MAX_PAUSE_SECONDS)
        return pause_seconds
