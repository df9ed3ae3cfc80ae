"""The recorder: takes what depots saw on the event loop, and writes it in a thread. It never waits for a disk."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import deque
from concurrent.futures import Future
from pathlib import Path
from threading import Event as ThreadEvent
from threading import Thread
from typing import Any

from service.depot.recording import LookedUp, RequestEnded, Seen
from service.recording.open_requests import OpenRequests
from service.recording.trace_file import CannotRecord, TraceFile, Write
from telemetry.events import Publisher, RecordingEnded

logger = logging.getLogger(__name__)

MAX_WAITING_BYTES = 64 << 20
"""Of the tokens and hashes that wait for the thread. What comes when there are more is dropped and counted."""
MAX_WAITING = 100_000
GATHER_SECONDS = 0.1  # from the wake-up: then one write is for many requests
STEP_SECONDS = 0.0002  # to give way to the event loop more often costs both more than it gains
CLOSE_SECONDS = 2.0
NO_REASON = ""


class Recorder:
    """Records the requests of all depots, from `start` to `close`. All methods are for the event loop.

    It ends early, with one event, when the file can't be written any more.

    Raises: CannotRecord.
    """

    def __init__(
        self,
        path: Path,
        max_bytes: int,
        *,
        bus: Publisher | None,
        write: Write = os.write,
    ) -> None:
        self._bus = bus
        self._num_dropped = 0
        self._num_lines = 0
        self._num_left = 0
        self._file = TraceFile(path, max_bytes, write)
        self._requests = OpenRequests(time.monotonic())
        self._waiting: deque[tuple[Seen, int]] = deque()
        # Each has one writer, the event loop or the thread, so that they need no lock.
        self._added_bytes = 0
        self._taken_bytes = 0
        self._idle = False
        self._woken = ThreadEvent()
        self._closing = ThreadEvent()
        self._is_started = False
        self._has_ended = False
        self._done: Future[None] = Future()

    def __repr__(self) -> str:
        return f"<Recorder {self._file!r}, {self.num_recorded} recorded, {self.num_dropped} dropped>"

    @property
    def num_recorded(self) -> int:
        """The requests in the file and its earlier parts."""
        return self._file.num_lines

    @property
    def num_dropped(self) -> int:
        """The lookups and stores that are missing: too much waited, or the recording has ended."""
        return self._num_dropped + self._num_left

    @property
    def is_recording(self) -> bool:
        """Whether the file is written."""
        return self._is_started and not self._has_ended

    @property
    def path(self) -> Path:
        """The file that grows."""
        return self._file.path

    def start(self) -> None:
        """Begin to write."""
        self._is_started = True
        self._done.set_running_or_notify_cancel()
        Thread(target=self._run, name="recorder", daemon=True).start()

    def note(self, seen: Seen) -> None:
        """Take over what a depot saw. If too much waits, or the recording has ended, drop and count it."""
        num_bytes = _size_bytes(seen)
        waiting_bytes = self._added_bytes - self._taken_bytes
        if waiting_bytes + num_bytes > MAX_WAITING_BYTES or len(self._waiting) >= MAX_WAITING or self._has_ended:
            self._num_dropped += not isinstance(seen, RequestEnded)
            return
        self._added_bytes += num_bytes
        self._waiting.append((seen, num_bytes))
        if self._idle:
            self._idle = False
            self._woken.set()

    async def close(self) -> None:
        """Write what is left, in `CLOSE_SECONDS` at most."""
        if not self._is_started:
            self._file.close()
            return
        self._closing.set()
        self._woken.set()
        await asyncio.wait([asyncio.wrap_future(self._done)], timeout=CLOSE_SECONDS)
        if not self._done.done():
            logger.warning("RecordingAbandoned file=%s seconds=%g", self.path, CLOSE_SECONDS)

    def _run(self) -> None:
        reason = NO_REASON
        try:
            while not self._closing.is_set():
                self._take()
                self._write()
                self._sleep()
            self._take()
            self._append(list(self._requests.all_lines()))
        except CannotRecord as error:
            reason = str(error)
        except Exception as error:
            logger.exception("RecorderFailed")
            reason = f"{type(error).__name__}: {error}"
        finally:
            self._file.close()
            self._finish(reason)
            self._done.set_result(None)

    def _take(self) -> None:
        """Take what waits, in steps. Between two of them the event loop has the interpreter."""
        begin = time.monotonic()
        while self._waiting:
            seen, num_bytes = self._waiting.popleft()
            for _ in self._requests.take(seen):
                if time.monotonic() - begin > STEP_SECONDS:
                    time.sleep(0)
                    begin = time.monotonic()
            self._taken_bytes += num_bytes

    def _write(self) -> None:
        self._append(list(self._requests.lines(time.monotonic())))

    def _append(self, lines: list[str]) -> None:
        if lines:
            self._num_lines += len(lines)
            self._file.append(lines)

    def _sleep(self) -> None:
        """Sleep until something waits, or a line is due."""
        self._woken.clear()
        self._idle = True
        if not self._waiting and not self._closing.is_set():
            due = self._requests.next_due()
            self._woken.wait(None if due is None else max(0.0, due - time.monotonic()))
        self._idle = False
        self._closing.wait(GATHER_SECONDS)

    def _finish(self, reason: str) -> None:
        """Say that the recording has ended. The bus still takes events: it stops after `close`."""
        self._has_ended = True
        num_waiting = sum(isinstance(seen, LookedUp) for seen, _ in list(self._waiting))
        self._num_left = num_waiting + len(self._requests) + self._num_lines - self.num_recorded
        self._waiting.clear()
        ended: dict[str, Any] = {
            "file": str(self.path),
            "reason": reason,
            "num_requests": self.num_recorded,
            "num_dropped": self.num_dropped,
        }
        if self._bus is not None:
            self._bus.publish(RecordingEnded(**ended))
        elif reason:
            logger.warning("RecordingEnded file=%(file)s reason=%(reason)r num_requests=%(num_requests)d", ended)


def _size_bytes(seen: Seen) -> int:
    if isinstance(seen, RequestEnded):
        return 0
    return seen.prefix.token_ids.nbytes + 100 * len(seen.prefix.block_hashes)
