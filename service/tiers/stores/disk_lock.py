"""The lock of a disk tier: the I/O workers of one depot share it, and those of another one are kept out.

Workers come and go while the depot runs, so each of them has the lock. Without it two depots would do no harm, but
overwrite each other's chunks.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

from service.tiers.store import StoreError

OWNER_OFFSET = 3072
"""Where in the header the depot is that uses the tier. No sum covers it."""
OWNER_BYTES = 128
_WAIT_SECONDS = 4.0
_PAUSE_SECONDS = 0.02


def lock(fd: int, path: Path, prepare: Callable[[], None]) -> None:
    """Take the lock for the depot of this I/O worker. The first of its workers calls `prepare` meanwhile, alone.

    Raises: StoreError: another depot has it. What `prepare` raises.
    """
    depot = _depot()
    give_up_at = time.monotonic() + _WAIT_SECONDS
    while time.monotonic() < give_up_at:
        if _try(fd, fcntl.LOCK_EX):
            prepare()
            os.pwrite(fd, depot.ljust(OWNER_BYTES, b"\0"), OWNER_OFFSET)
        if _try(fd, fcntl.LOCK_SH):  # in place of the one above, if there was one
            owner = os.pread(fd, OWNER_BYTES, OWNER_OFFSET).rstrip(b"\0")
            if owner == depot:
                return
            fcntl.flock(fd, fcntl.LOCK_UN)
            raise StoreError(f"{path}: another depot uses it, process {pid_of(owner)}")
        time.sleep(_PAUSE_SECONDS)  # another worker prepares the files
    raise StoreError(f"{path}: another process has prepared it for {_WAIT_SECONDS:g} s and goes on")


def pid_of(owner: bytes) -> str:
    """Return the id of the process in what `OWNER_OFFSET` has, as text."""
    return owner.partition(b" ")[0].decode(errors="replace")


def _try(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _depot() -> bytes:
    """Return what tells the parent of this process from every other one, also one of another container."""
    pid = os.getppid()
    try:
        started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        started, namespace = "", ""
    return f"{pid} {started} {namespace}".encode()
