"""Standard output and error for a process that must not wait for whoever reads them."""

from __future__ import annotations

import io
import os
import select
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic

MAX_WAITING_BYTES = 1 << 20  # some thousand lines
MAX_LINE_BYTES = 64 << 10  # of a text without a newline, which is written in pieces then
WRITE_BYTES = 64 << 10  # of whole lines at once
RETRY_SECONDS = 1.0  # after a write that failed, as on a disk that is full


def _in_plain_words(num_lines: int) -> str:
    return f"kvdepot: {num_lines} lines are missing here: nobody read them, or they could not be written"


class DetachedStream(io.TextIOBase):
    """A text stream over a file descriptor, of which a thread of its own writes whole lines.

    ``write`` and ``flush`` never block and never raise. At most ``capacity_bytes`` wait. What is more than that is
    dropped and counted, and so is what can't be written. From then on all lines are dropped until those that wait are
    written. One more line, which ``report`` makes of their number, then tells how many are missing.

    The thread is a daemon: a process can end while it hangs in a write. ``write`` may be called by any thread, also by
    a finalizer in the middle of another ``write``.
    """

    def __init__(self, fd: int, name: str, *, capacity_bytes: int = MAX_WAITING_BYTES) -> None:
        super().__init__()
        self.name = name
        self.report: Callable[[int], str] = _in_plain_words
        self.num_dropped_lines = 0
        self._fd = fd
        self._capacity_bytes = capacity_bytes
        self._changed = threading.Condition()  # of a lock that is re-entrant
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
        """Always UTF-8."""
        return "utf-8"

    def fileno(self) -> int:
        """The descriptor, for whoever looks at what it is."""
        return self._fd

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self._fd)

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, text: str) -> int:
        """Queue the lines that the text completes, or drop and count them."""
        with self._changed:
            lines, newline, rest = (self._partial_line + text).rpartition("\n")
            if len(rest) > MAX_LINE_BYTES:
                lines, newline, rest = lines + newline + rest, "\n", ""
            self._partial_line = rest
            if newline:
                self._queue(lines + newline)
        return len(text)

    def flush(self) -> None:
        """Nothing: lines are written as soon as they can be."""

    def finish(self, deadline: float) -> bool:
        """Let the thread write what waits, until a time of `monotonic` at most; whether it could."""
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
                return  # nothing is left, and nothing more comes
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
        """Whole lines, or nothing."""
        taken: list[bytes] = []
        num_bytes = 0
        while self._waiting and (not taken or num_bytes + len(self._waiting[0]) <= WRITE_BYTES):
            taken.append(self._waiting.popleft())
            num_bytes += len(taken[-1])
        self._waiting_bytes -= num_bytes
        return b"".join(taken)

    def _write_all(self, lines: bytes) -> bytes:
        """Write lines; what is returned could not be written, and begins within a line where a part of that could."""
        rest = lines
        try:
            if self._is_torn:
                self._write_some(b"\n")
            while rest:
                rest = rest[self._write_some(rest) :]
        except OSError:  # the disk is full, the reader has gone, the terminal was closed
            pass
        return rest

    def _write_some(self, data: bytes) -> int:
        """The number of bytes that were written."""
        while True:
            try:
                num_written = os.write(self._fd, data)
            except BlockingIOError:  # somebody with whom the pipe is shared has made it so
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll()
                continue
            self._is_torn = not data[:num_written].endswith(b"\n")
            return num_written


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")
