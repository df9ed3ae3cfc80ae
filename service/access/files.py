"""Reading files that somebody else replaces at any time, with whatever they like."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

MAX_FILE_BYTES = 16 << 20


def read_file(path: Path) -> bytes:
    """The content of an ordinary file of at most `MAX_FILE_BYTES`. A FIFO or a device, which could block, is not read.

    A file system that does not answer does block. Raises: OSError, whose `strerror` tells why.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "is not an ordinary file")
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"is larger than {MAX_FILE_BYTES} bytes")
    return content
