"""Whether there is room for memory that is about to be shared in /dev/shm.

To run out of it halfway would be worse than an exception: writing to /dev/shm beyond its size is a SIGBUS.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from kvdepot.memory.available import check_memory

SHM = Path("/dev/shm")


def check_shm(size_bytes: int) -> None:
    """Checks what the machine and /dev/shm have left.

    Raises:
        OSError: ENOMEM or ENOSPC, if that is too little.
    """
    check_memory(size_bytes)
    room = os.statvfs(SHM)
    if room.f_blocks and room.f_bavail * room.f_frsize < size_bytes:  # no blocks: no limit
        raise OSError(errno.ENOSPC, f"{SHM} has room for {room.f_bavail * room.f_frsize} bytes, not for {size_bytes}")
