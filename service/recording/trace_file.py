"""The file of a recording: bounded by rotation, for its owner alone, and never over an earlier recording."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from service.units import format_size

logger = logging.getLogger(__name__)

NUM_PARTS = 8
"""A file that has an eighth of all bytes gets a number, and a new one begins."""
MAX_FILES = 64
MODE = 0o600

Write = Callable[[int, bytes], int]


class CannotRecord(Exception):
    """The file can't be opened, or not be written any more. The message says which one, and why."""


class TraceFile:
    """FILE, which grows, and its earlier parts FILE.1, FILE.2 and so on, the oldest first. Not for the event loop.

    All parts together have at most `max_bytes`: the oldest one is removed for a new one. If somebody moves FILE away, a
    new one begins. `write` is `os.write`. `num_lines` counts the lines that were appended.

    Raises: CannotRecord.
    """

    def __init__(self, path: Path, max_bytes: int, write: Write = os.write) -> None:
        self.path = path.absolute()
        self._max_bytes = max_bytes
        self._write = write
        self.num_lines = 0
        self._fd = -1
        self._size_bytes = 0
        try:
            if self.path.is_symlink():
                raise CannotRecord(f"{self.path}: is a symbolic link")
            self._open_first()
        except OSError as error:
            self.close()
            raise CannotRecord(f"{self.path}: {error.strerror or error}") from error
        except CannotRecord:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<TraceFile {self.path}, {format_size(self._size_bytes)}>"

    def append(self, lines: Sequence[str]) -> None:
        """Append lines, each with its end of line. If this fails, the file ends with a whole line.

        Raises: CannotRecord.
        """
        try:
            if not self._is_in_place():
                self._open_new()
            together: list[bytes] = []
            num_bytes = 0
            for line in map(str.encode, lines):
                if self._size_bytes + num_bytes and (
                    self._size_bytes + num_bytes + len(line) > self._max_bytes // NUM_PARTS
                ):
                    self._append(b"".join(together))
                    together, num_bytes = [], 0
                    self._rotate()
                together.append(line)
                num_bytes += len(line)
            self._append(b"".join(together))
        except OSError as error:
            raise CannotRecord(f"{self.path}: {error.strerror or error}") from error

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, data: bytes) -> None:
        num_written = 0
        try:
            while num_written < len(data):
                num_written += self._write(self._fd, data[num_written:])
        except OSError:
            num_written = data.rfind(b"\n", 0, num_written) + 1
            with suppress(OSError):
                os.ftruncate(self._fd, self._size_bytes + num_written)
            raise
        finally:
            self._size_bytes += num_written
            self.num_lines += data.count(b"\n", 0, num_written)

    def _open_first(self) -> None:
        """Begin FILE. What an earlier recording has left there gets a number."""
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            self._open_new()
            return
        self._fd = fd
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise CannotRecord(f"{self.path}: is not a file")
        self._lock()
        if status.st_size:
            self._rotate()
        else:
            os.fchmod(fd, MODE)

    def _open_new(self) -> None:
        self.close()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self.path, flags, MODE)
        self._size_bytes = 0
        self._lock()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotRecord(f"{self.path}: another process records into it") from None

    def _is_in_place(self) -> bool:
        """Return whether FILE is still the file that is open."""
        try:
            there = self.path.lstat()
        except FileNotFoundError:
            return False
        return os.path.samestat(there, os.fstat(self._fd))

    def _rotate(self) -> None:
        """Give FILE the next number, begin a new one, and remove the oldest parts beyond the limits."""
        parts = self._parts()
        number = max(parts, default=0) + 1
        target = self.path.with_name(f"{self.path.name}.{number}")
        parts[number] = self.path.rename(target).stat().st_size
        self._open_new()
        limit_bytes = self._max_bytes - self._max_bytes // NUM_PARTS
        for oldest in sorted(parts):
            if sum(parts.values()) <= limit_bytes and len(parts) < MAX_FILES:
                break
            removed = self.path.with_name(f"{self.path.name}.{oldest}")
            removed.unlink(missing_ok=True)
            logger.info("removed %s of a recording, %s, for newer requests", removed, format_size(parts.pop(oldest)))

    def _parts(self) -> dict[int, int]:
        """Return the bytes of the earlier parts, by number."""
        parts: dict[int, int] = {}
        prefix = f"{self.path.name}."
        with os.scandir(self.path.parent) as entries:
            for entry in entries:
                number = entry.name.removeprefix(prefix)
                is_part = entry.name.startswith(prefix) and re.fullmatch("[1-9][0-9]{0,8}", number)
                if is_part and entry.is_file(follow_symlinks=False):
                    parts[int(number)] = entry.stat(follow_symlinks=False).st_size
        return parts
