"""Who uses an L1 file: a process that locks it."""

from __future__ import annotations

import fcntl
import os
import time

from service.l1.format import HEADER_BYTES, MAGIC, PID_OFFSET

_TRIES = 5
_PAUSE_SECONDS = 0.02


def is_l1(fd: int) -> bool:
    """Return whether the file is an L1 file, of any format."""
    start = read_start(fd)
    return start[: len(MAGIC)] == MAGIC and len(start) == HEADER_BYTES


def read_start(fd: int) -> bytes:
    """Return the bytes of the header; fewer if the file is shorter."""
    return os.pread(fd, HEADER_BYTES, 0)


def last_pid(fd: int) -> int:
    """Return the id of the process that used an L1 file last. 0: it is unknown."""
    return int.from_bytes(read_start(fd)[PID_OFFSET:], "little") if is_l1(fd) else 0


def is_locked(fd: int) -> bool:
    """Return whether a process uses the file. This takes the lock for a moment, which `lock` outlasts."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def lock(fd: int) -> bool:
    """Lock the file for this process. Return False if another one uses it."""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE_SECONDS)  # it may be a look at the file by `is_locked`, which ends at once
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        return True
    return False


def used_by(fd: int) -> str:
    """Return which process uses a locked file, for the end of a message. Empty: it is unknown."""
    pid = last_pid(fd)
    return f", the one of id {pid}" if pid else ""
