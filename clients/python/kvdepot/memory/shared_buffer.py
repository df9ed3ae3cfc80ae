"""Shared memory for an engine that has no torch tensors to share."""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import re
import secrets
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from kvdepot.errors import InvalidArgument, invalid
from kvdepot.memory.available import SHM, check_memory, check_shm
from kvdepot.v1.cache_pb2 import MemoryRegion, PosixSharedMemory, ProcessFd

if TYPE_CHECKING:  # NumPy takes 0.1 s to import, which a client without buffers saves
    import numpy as np
    import numpy.typing as npt

By: TypeAlias = Literal["name", "fd"]
"""How a depot opens the memory: by its name in /dev/shm, or through a descriptor of this process."""

_NAME = re.compile(r"kvdepot-\d+-[0-9a-f]{16}")


class SharedBuffer:
    """Zeroed shared memory, made by `create`.

    `array` is all of it, as bytes, and `region` describes it for `attach`. `close`, or else the end of the process,
    removes the name or closes the descriptor. Mapped memory stays valid, so arrays may outlive the buffer.
    """

    def __init__(self, array: npt.NDArray[np.uint8], region: MemoryRegion, fd: int | None, path: Path | None) -> None:
        self.array = array
        self.region = region
        self._release = weakref.finalize(self, _release, os.getpid(), fd, path)

    @classmethod
    def create(cls, size_bytes: int, *, by: By = "name") -> Self:
        """Allocate memory with all of its pages, so that a lack of memory shows here and not later.

        A process that is killed leaves a named buffer in /dev/shm until the same user makes another one. A buffer made
        with `by="fd"` is gone with its process. An OSError means too little memory, or too little space in /dev/shm.

        Raises: InvalidArgument, OSError.
        """
        if size_bytes < 1:
            raise invalid("size_bytes", f"must be at least 1, not {size_bytes}")
        region = MemoryRegion(size_bytes=size_bytes)
        if by == "fd":
            check_memory(size_bytes)
            fd = os.memfd_create("kvdepot", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            region.process_fd.CopyFrom(ProcessFd(pid=os.getpid(), fd=fd))
            try:
                array = _map(fd, size_bytes)
                # Memory that shrinks ends the attachment, and kills every other process that touches it.
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
                return cls(array, region, fd, None)
            except BaseException:
                os.close(fd)
                raise
        _remove_orphans()
        check_shm(size_bytes)
        path, fd = _create_named()
        region.posix_shm.CopyFrom(PosixSharedMemory(name=path.name))
        try:
            return cls(_map(fd, size_bytes), region, None, path)
        except BaseException:
            path.unlink()
            raise
        finally:
            os.close(fd)

    def view(self, dtype: npt.DTypeLike, shape: tuple[int, ...], *, offset_bytes: int = 0) -> npt.NDArray[Any]:
        """Return a part of the memory as an array.

        Raises: InvalidArgument.
        """
        import numpy as np

        try:
            return np.ndarray(shape, dtype, self.array.data, offset_bytes)
        except (TypeError, ValueError) as error:
            raise _wrong_view(self.array.nbytes, dtype, shape, offset_bytes, error) from None

    def close(self) -> None:
        """Remove the name, or close the descriptor. Idempotent."""
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _wrong_view(
    size_bytes: int, dtype: npt.DTypeLike, shape: tuple[int, ...], offset_bytes: int, error: Exception
) -> InvalidArgument:
    import numpy as np

    try:
        item_bytes = np.dtype(dtype).itemsize
    except TypeError:
        return invalid(
            "dtype", f"NumPy has no {dtype!r}: view it as an integer, and name it by `from_tensors(…, dtype={dtype!r})`"
        )
    try:
        end = offset_bytes + item_bytes * math.prod(shape)
    except TypeError:
        return invalid("shape", f"is {shape!r}: {error}")
    if end > size_bytes:
        return invalid(
            "shape", f"{shape} of {np.dtype(dtype)} from byte {offset_bytes} ends at {end}, the buffer at {size_bytes}"
        )
    return invalid("shape", f"is {shape!r}: {error}")


def _create_named() -> tuple[Path, int]:
    """Make an empty object under a new name. It stays locked while any process has it open or mapped."""
    while True:
        path = SHM / f"kvdepot-{os.getpid()}-{secrets.token_hex(8)}"
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_SH)
        if os.fstat(fd).st_nlink:
            return path, fd
        os.close(fd)  # another process removed it as an orphan before it was locked


def _remove_orphans() -> None:
    """Remove the names that ended processes left behind. The locks of such objects are free."""
    for path in SHM.iterdir():
        if not _NAME.fullmatch(path.name):
            continue
        with suppress(OSError):  # another user's, in use, or gone
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(fd)


def _map(fd: int, size_bytes: int) -> npt.NDArray[np.uint8]:
    import numpy as np

    os.posix_fallocate(fd, 0, size_bytes)
    return np.frombuffer(mmap.mmap(fd, size_bytes), np.uint8)


def _release(owner: int, fd: int | None, path: Path | None) -> None:
    if os.getpid() != owner:  # a fork of the owner ends: the owner still needs it
        return
    if fd is not None:
        os.close(fd)
    if path is not None:
        path.unlink(missing_ok=True)
