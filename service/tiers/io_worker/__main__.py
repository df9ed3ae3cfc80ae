"""The process of an I/O worker: `python -m service.tiers.io_worker NAME ROLE PARENT_PID SOCKET_FD L1_FD`."""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

from service.tiers.io_worker.frame import Frame

PR_SET_PDEATHSIG = 1  # from linux/prctl.h, as the next one
PR_SET_NAME = 15


def main(name: str, role: str, parent_pid: int, socket_fd: int, l1_fd: int) -> None:
    """Serve the depot until it closes the socket or dies."""
    # The depot decides when this ends. A signal to the group or to the unit would end it in the depot's drain.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    prctl = ctypes.CDLL(None).prctl
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        return  # the depot died before that
    _close_all_but(socket_fd, l1_fd)
    prctl(PR_SET_NAME, f"kvdepot-{role}".encode(), 0, 0, 0)
    logging.basicConfig(format=f"%(levelname)s tier {name}, {role}: %(message)s")

    def map_l1(offset_bytes: int, size_bytes: int) -> memoryview:
        # Python's mapping keeps a duplicate of the descriptor, which shares the lock of L1's file with the depot. So if
        # the depot is killed, no other one can use the file before this process, which may write into it, is dead, too.
        memory = mmap.mmap(l1_fd, size_bytes, mmap.MAP_SHARED, offset=offset_bytes)
        os.close(l1_fd)
        memory.madvise(mmap.MADV_DONTDUMP)  # a crash must not write prompts to a disk, nor all of L1
        return memoryview(memory)

    with socket.socket(fileno=socket_fd) as channel, suppress(BrokenPipeError, ConnectionResetError):
        Frame(channel, map_l1).serve()


def _close_all_but(*kept: int) -> None:
    """Close what else a library in the depot left open for its child processes, such as a socket that listens."""
    for link in list(Path("/proc/self/fd").iterdir()):
        fd = int(link.name)
        if fd > 2 and fd not in kept:
            with suppress(OSError):  # that of the list itself
                os.close(fd)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
