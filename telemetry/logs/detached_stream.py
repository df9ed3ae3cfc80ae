"""Standard output and error for a process that must not wait for their reader."""

from __future__ import annotations

import io
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic

MAX_WAITING_BYTES = 1 << 20  # some thousand lines
MAX_LINE_BYTES = 64 << 10  # of a text without a newline; a longer one is written in pieces
WRITE_BYTES = 64 << 10  # of whole lines in one write
RETRY_SECONDS = 1.0  # after a failed write, as on a full disk


def _missing_lines(num_lines: int) -> str:
    return f"kvdepot: {num_lines} lines are missing here: their reader was too slow, or the write failed"


class DetachedStream(io.TextIOBase):
    """A text stream over a file descriptor. Its own thread writes whole lines.

    `write` and `flush` never block and never raise. At most `capacity_bytes` wait. More lines are dropped and counted,
    and so are lines that can't be written. After a drop, all lines are dropped until the waiting ones are written. Then
    one more line, made by `report`, says how many are missing.

    The thread is a daemon, so the process can end in the middle of a write. Any thread may call `write`, and so may a
    finalizer in the middle of another `write`.
    """

    def __init__(self, fd: int, name: str, *, capacity_bytes: int = MAX_WAITING_BYTES) -> None:
        super().__init__()
        self.name = name
        self.report: Callable[[int], str] = _missing_lines
        self.num_dropped_lines = 0
        self._fd = fd
        self._capacity_bytes = capacity_bytes
        self._changed = threading.Condition()  # its lock is re-entrant
        self._partial_line = ""
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._num_missing_lines = 0  # dropped, and not reported yet
        self._is_torn = False  # the last write ended within a line
        self._closing = False
        self._thread = threading.Thread(target=self._work, name=f"write {name}", daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<DetachedStream {self.name}, {self._waiting_bytes} bytes wait, {self.num_dropped_lines} lines dropped>"

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """UTF-8."""
        return "utf-8"

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._fd

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return os.isatty(self._fd)

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str) -> int:
        """Queue the lines that the text completes, or drop and count them. Keep the rest for the next call."""
        with self._changed:
            lines, newline, rest = (self._partial_line + text).rpartition("\n")
            if len(rest) > MAX_LINE_BYTES:
                lines, newline, rest = lines + newline + rest, "\n", ""
            self._partial_line = rest
            if newline:
                self._queue(lines + newline)
        return len(text)

    def flush(self) -> None:
        """Do nothing: lines are written as soon as possible."""

    def finish(self, deadline: float) -> bool:
        """Let the thread write what waits, until a time of `monotonic` at most. Return whether it wrote all."""
        with self._changed:
            if self._partial_line:
                self.write("\n")
            self._closing = True
            self._changed.notify_all()
        self._thread.join(max(0.0, deadline - monotonic()))
        return not self._thread.is_alive()

    def _queue(self, lines: str) -> None:
        data = _encoded(lines)
        if self._num_missing_lines or self._waiting_bytes + len(data) > self._capacity_bytes:
            self._drop(data)
            return
        self._waiting.append(data)
        self._waiting_bytes += len(data)
        self._changed.notify()

    def _drop(self, lines: bytes) -> None:
        num_lines = lines.count(b"\n")
        self.num_dropped_lines += num_lines
        self._num_missing_lines += num_lines

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._num_missing_lines or self._closing)
                lines = self._take()
                num_reported = 0
                if not lines:
                    num_reported, self._num_missing_lines = self._num_missing_lines, 0
            if not lines and not num_reported:
                return  # all is written, and the stream is closing
            unwritten = self._write_all(lines or _encoded(f"{self.report(num_reported)}\n"))
            if unwritten:
                with self._changed:
                    self._num_missing_lines += num_reported
                    if not num_reported:
                        self._drop(unwritten)
                    if self._closing:
                        return
                    self._changed.wait_for(lambda: self._closing, RETRY_SECONDS)

    def _take(self) -> bytes:
        """Return some of the waiting lines."""
        taken: list[bytes] = []
        num_bytes = 0
        while self._waiting and (not taken or num_bytes + len(self._waiting[0]) <= WRITE_BYTES):
            taken.append(self._waiting.popleft())
            num_bytes += len(taken[-1])
        self._waiting_bytes -= num_bytes
        return b"".join(taken)

    def _write_all(self, lines: bytes) -> bytes:
        """Write lines and return the rest that could not be written. The rest may begin in the middle of a line."""
        rest = lines
        try:
            if self._is_torn:
                self._write_some(b"\n")
            while rest:
                rest = rest[self._write_some(rest) :]
        except OSError:  # the disk is full, the reader is gone, the terminal is closed
            pass
        return rest

    def _write_some(self, data: bytes) -> int:
        """Write some bytes, and return their number."""
        while True:
            try:
                num_written = os.write(self._fd, data)
            except BlockingIOError:  # another process that shares the pipe made it non-blocking
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()
                continue
            self._is_torn = not data[:num_written].endswith(b"\n")
            return num_written


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
