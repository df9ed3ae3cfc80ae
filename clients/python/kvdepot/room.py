"""Whether there is room for memory that is about to be shared.

To run out of it halfway would be worse than an exception: writing to /dev/shm beyond its size is a SIGBUS, and using up
the machine's memory has some process killed.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

SHM = Path("/dev/shm")


def check_memory(size_bytes: int) -> None:
    """Checks what the machine has left.

    Raises:
        OSError: ENOMEM, if that is too little.
    """
    available = re.search(r"^MemAvailable:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    if available and int(available[1]) * 1024 < size_bytes:
        raise OSError(errno.ENOMEM, f"{int(available[1])} KiB of memory are available, {size_bytes} bytes are needed")


def check_shm(size_bytes: int) -> None:
    """Checks what the machine and /dev/shm have left.

    Raises:
        OSError: ENOMEM or ENOSPC, if that is too little.
    """
    check_memory(size_bytes)
    room = os.statvfs(SHM)
    if room.f_blocks and room.f_bavail * room.f_frsize < size_bytes:  # no blocks: no limit
        raise OSError(errno.ENOSPC, f"{SHM} has room for {room.f_bavail * room.f_frsize} bytes, not for {size_bytes}")
