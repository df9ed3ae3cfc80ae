"""Mapping: the shared memory of an engine in the depot's own address space, for as long as it is attached."""

from __future__ import annotations

import ctypes
import errno
import itertools
import mmap
import os
import stat
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kernels.errors import BackendUnavailable, RegionForbidden, RegionUnavailable
from kernels.geometry import CudaIpc, PosixShm, ProcessFd, Region

# From the Linux headers; Python has no names for them.
_TMPFS_MAGIC = 0x01021994
_MAP_FIXED = 0x10
_MADV_POPULATE_WRITE = 23

_MAP_FAILED = ctypes.c_void_p(-1).value
_POPULATE_BYTES = 64 << 20  # at a time: whoever maps memory meanwhile waits for the piece


class Mapping:
    """Regions that are mapped, writable and shared, one behind the other into one range of addresses.

    One range, because engines often have a buffer for each layer: those of equal size are then at equal distances,
    and one strided copy spans them. Behind each region is a page that faults.

    Every page is populated, so that no transfer pays for a first touch, and so that a file system without room for it
    is found out here and not by a SIGBUS. What can still raise SIGBUS is an engine that shrinks its object: ask
    `check_size` before each transfer.

    Raises:
        RegionUnavailable: an object can't be opened or mapped, is not shared memory, or has another size.
        RegionForbidden: another user's process or object, or a ProcessFd while ``allow_process_fd`` is false.
        BackendUnavailable: a CudaIpc.
    """

    def __init__(self, regions: Sequence[Region], *, allow_process_fd: bool) -> None:
        self._sizes = [region.size_bytes for region in regions]
        self._fds: list[int] = []
        self._address = 0
        pitches = [(size + 2 * mmap.PAGESIZE - 1) & -mmap.PAGESIZE for size in self._sizes]
        self._span_bytes = 0
        self.offsets = tuple(itertools.accumulate(pitches, initial=0))[:-1]
        try:
            for region in regions:
                self._fds.append(_open_handle(region.handle, allow_process_fd))
            self.check_size()
            self.objects = frozenset((status.st_dev, status.st_ino) for status in map(os.fstat, self._fds))
            if regions:
                self._address, self._span_bytes = _reserve(sum(pitches)), sum(pitches)
            for offset, size_bytes, fd in zip(self.offsets, self._sizes, self._fds, strict=True):
                _map(self._address + offset, size_bytes, fd)
                _populate(self._address + offset, size_bytes, fd)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Mapping {len(self._fds)} regions, {self.mapped_bytes} bytes>"

    @property
    def mapped_bytes(self) -> int:
        """Bytes of the regions, 0 once they are unmapped."""
        return sum(self._sizes) if self._span_bytes else 0

    def memory(self) -> NDArray[np.uint8]:
        """The range as an array; region ``i`` is at ``offsets[i]``. Touching it after `close` is a segfault."""
        return np.ctypeslib.as_array((ctypes.c_uint8 * self._span_bytes).from_address(self._address))

    def check_size(self) -> None:
        """Raises RegionUnavailable if an object has not, or no longer, the size that was announced."""
        for index, (fd, size_bytes) in enumerate(zip(self._fds, self._sizes, strict=True)):
            actual_bytes = os.fstat(fd).st_size
            if actual_bytes != size_bytes:
                raise RegionUnavailable(f"the object of regions[{index}] has {actual_bytes} bytes, not {size_bytes}")

    def close(self) -> None:
        """Unmaps everything, whatever views of it exist. The caller sees to it that no transfer is running."""
        if self._span_bytes:
            _checked(_libc().munmap(ctypes.c_void_p(self._address), ctypes.c_size_t(self._span_bytes)))
            self._span_bytes = 0
        self._sizes = []
        while self._fds:
            os.close(self._fds.pop())


def _open_handle(handle: PosixShm | ProcessFd | CudaIpc, allow_process_fd: bool) -> int:
    try:
        match handle:
            case PosixShm(name=name):
                return _open_posix_shm(name)
            case ProcessFd(pid=pid, fd=fd) if allow_process_fd:
                return _open_process_fd(pid, fd)
            case ProcessFd():
                raise RegionForbidden(
                    "a process's descriptor is accepted over a unix socket or with a client's certificate only"
                )
            case CudaIpc():
                raise BackendUnavailable("CUDA memory needs CuPy and a CUDA device, which this depot runs without")
    except PermissionError as error:
        raise RegionForbidden(f"{handle}: {error.strerror}") from error
    except OSError as error:
        raise RegionUnavailable(f"{handle}: {error.strerror}") from error


def _open_posix_shm(name: str) -> int:
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(os.fsencode(name)) > 255:
        raise OSError(errno.EINVAL, "a name has 1 to 255 bytes, no slash, no NUL")
    return _open_shared_memory(f"/dev/shm/{name}", os.O_NOFOLLOW)


def _open_process_fd(pid: int, fd: int) -> int:
    # A descriptor of the process's directory goes on meaning this process, even if its pid is given to another.
    process = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.fstat(process).st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "the process belongs to another user")
        return _open_shared_memory(f"fd/{fd}", 0, process)
    finally:
        os.close(process)


def _open_shared_memory(path: str, flags: int, directory: int | None = None) -> int:
    """Opens a regular file on tmpfs. Anything else is looked at and not opened, which might block or act."""
    looked_at = os.open(path, os.O_PATH | os.O_CLOEXEC | flags, dir_fd=directory)
    try:
        if not stat.S_ISREG(os.fstat(looked_at).st_mode) or _file_system(looked_at) != _TMPFS_MAGIC:
            raise OSError(errno.EINVAL, "it is not shared memory")
        return os.open(f"/proc/self/fd/{looked_at}", os.O_RDWR | os.O_CLOEXEC)
    finally:
        os.close(looked_at)


def _file_system(fd: int) -> int:
    statfs = (ctypes.c_long * 64)()  # larger than the structure, which begins with f_type
    _checked(_libc().fstatfs(fd, statfs))
    return int(statfs[0])


def _reserve(span_bytes: int) -> int:
    return _mmap(0, span_bytes, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)


def _map(address: int, size_bytes: int, fd: int) -> None:
    _mmap(address, size_bytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED, fd)


def _mmap(address: int, size_bytes: int, protection: int, flags: int, fd: int) -> int:
    function = _libc().mmap
    function.restype = ctypes.c_void_p
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *3 * (ctypes.c_int,), ctypes.c_long)
    mapped = function(address, size_bytes, protection, flags, fd, 0)
    if mapped == _MAP_FAILED:
        raise RegionUnavailable(f"{size_bytes} bytes can't be mapped: {os.strerror(ctypes.get_errno())}")
    return int(mapped)


def _populate(address: int, size_bytes: int, fd: int) -> None:
    madvise = _libc().madvise
    try:
        for at in range(address, address + size_bytes, _POPULATE_BYTES):
            length = min(_POPULATE_BYTES, address + size_bytes - at)
            _checked(madvise(ctypes.c_void_p(at), ctypes.c_size_t(length), _MADV_POPULATE_WRITE))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise RegionUnavailable(f"{size_bytes} bytes can't be had (no room?): {error.strerror}") from error
        _allocate(size_bytes, fd)


def _allocate(size_bytes: int, fd: int) -> None:
    """What Linux before 5.14 can do: the memory is sure to be there, though transfers pay for the first touch."""
    try:
        os.posix_fallocate(fd, 0, size_bytes)
    except OSError as error:
        raise RegionUnavailable(f"{size_bytes} bytes can't be allocated: {error.strerror}") from error


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
