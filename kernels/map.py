"""A mapping: the shared memory of an engine in the depot's own address space, while it is attached."""

from __future__ import annotations

import ctypes
import errno
import itertools
import mmap
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.errors import AccessDenied, BackendError, GeometryError, RegionError
from kernels.geometry import CudaIpc, PosixShm, ProcessFd, Region
from kernels.plan import MAX_PLANES

# From the Linux headers; Python has no names for them.
_TMPFS_MAGIC = 0x01021994
_MAP_FIXED = 0x10
_MADV_POPULATE_WRITE = 23

_MAP_FAILED = ctypes.c_void_p(-1).value
_STAT_BLOCK_BYTES = 512  # the unit of st_blocks on every file system
_POPULATE_BYTES = 64 << 20  # at a time, because other threads that map memory wait for it

MAX_OBJECTS = MAX_PLANES
"""Most objects of one attachment: a plane lies in one object, so no engine needs more."""

Reserve = Callable[[int], AbstractContextManager[object]]
"""Sets bytes of the machine's memory aside while the block runs. Too few bytes are an error.

Raises: OSError.
"""


@dataclass(frozen=True, slots=True)
class _Object:
    """Open shared memory. `region` is the number of the first region in it."""

    fd: int
    device: int
    inode: int
    size_bytes: int
    region: int


class Mapping:
    """Mapped regions, writable and shared, one behind the other in one range of addresses.

    Engines often have a buffer for each layer. In one range, buffers of equal size are at equal distances, so that one
    strided copy spans them. Behind each region is a page that faults. An object is opened and mapped once, even if
    several regions lie in it.

    Each page is populated: no transfer pays for a first touch, and a file system without space for a page fails here.
    `reserve` sets memory aside for pages that do not exist yet. An engine can still take pages away, so call
    `check_size` before each transfer, and guard the transfer itself.

    A RegionError says that an object can't be opened or mapped, is not shared memory, has another size, or that there
    is no memory for its pages. AccessDenied is for another user's process or object, and for a ProcessFd unless
    `allow_process_fd`. BackendError is for a CudaIpc. GeometryError is for more than MAX_OBJECTS objects.

    Raises: RegionError, AccessDenied, BackendError, GeometryError.
    """

    def __init__(self, regions: Sequence[Region], *, allow_process_fd: bool, reserve: Reserve = nullcontext) -> None:
        self._reserve = reserve
        self._objects: list[_Object] = []
        self._address = 0
        self._span_bytes = 0
        try:
            of_regions = self._open(regions, allow_process_fd)
            pitches = [(each.size_bytes + 2 * mmap.PAGESIZE - 1) & -mmap.PAGESIZE for each in self._objects]
            starts = tuple(itertools.accumulate(pitches, initial=0))
            self.offsets = tuple(starts[number] for number in of_regions)
            self.objects = frozenset((each.device, each.inode) for each in self._objects)
            if pitches:
                self._address, self._span_bytes = _reserve_addresses(starts[-1]), starts[-1]
            with self._missing_reserved():
                for start, each in zip(starts, self._objects, strict=False):
                    _map(self._address + start, each.size_bytes, each.fd)
                    _populate(self._address + start, each.size_bytes, each.fd)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Mapping {len(self._objects)} objects, {self.mapped_bytes} bytes>"

    @property
    def mapped_bytes(self) -> int:
        """Bytes of the objects; 0 after `close`."""
        return sum(each.size_bytes for each in self._objects) if self._span_bytes else 0

    @property
    def addresses(self) -> range:
        """The addresses of the memory in this process."""
        return range(self._address, self._address + self._span_bytes)

    def memory(self) -> NDArray[np.uint8]:
        """Return the range as an array. Region `i` is at `offsets[i]`. A touch after `close` is a segfault."""
        return np.ctypeslib.as_array((ctypes.c_uint8 * self._span_bytes).from_address(self._address))

    def check_size(self) -> None:
        """Check that each object has its announced size, and that there is memory to fill its holes.

        A touch fills a hole, so a hole for which there is memory does no harm.

        Raises: RegionError.
        """
        with self._missing_reserved():
            pass

    def close(self) -> None:
        """Unmap everything, even if views of it exist. The caller makes sure that no transfer runs."""
        if self._span_bytes:
            _checked(_libc().munmap(ctypes.c_void_p(self._address), ctypes.c_size_t(self._span_bytes)))
            self._span_bytes = 0
        while self._objects:
            os.close(self._objects.pop().fd)

    def _open(self, regions: Sequence[Region], allow_process_fd: bool) -> list[int]:
        """Open each object once; return the number of each region's object."""
        by_handle: dict[object, int] = {}
        by_inode: dict[tuple[int, int], int] = {}
        for index, region in enumerate(regions):
            if region.handle not in by_handle:
                fd = _open_handle(region.handle, allow_process_fd)
                status = os.fstat(fd)
                known = by_inode.setdefault((status.st_dev, status.st_ino), len(self._objects))
                by_handle[region.handle] = known
                if known < len(self._objects):
                    os.close(fd)
                else:
                    self._objects.append(_Object(fd, status.st_dev, status.st_ino, region.size_bytes, index))
                if len(self._objects) > MAX_OBJECTS:
                    raise GeometryError("regions", f"they lie in more than {MAX_OBJECTS} objects of shared memory")
            actual_bytes = os.fstat(self._objects[by_handle[region.handle]].fd).st_size
            if actual_bytes != region.size_bytes:
                raise _another_size(index, actual_bytes, region.size_bytes)
        return [by_handle[region.handle] for region in regions]

    @contextmanager
    def _missing_reserved(self) -> Iterator[None]:
        """Set memory aside for the pages that do not exist yet."""
        missing_bytes = self._missing_bytes()
        with ExitStack() as reserved:
            if missing_bytes:
                try:
                    reserved.enter_context(self._reserve(missing_bytes))
                except OSError as error:
                    message = f"{missing_bytes} bytes of the regions are not populated"
                    raise RegionError(f"{message}: {error.strerror}") from error
            yield

    def _missing_bytes(self) -> int:
        """Return the bytes of the objects' holes.

        Raises: RegionError.
        """
        missing_bytes = 0
        for each in self._objects:
            status = os.fstat(each.fd)
            if status.st_size != each.size_bytes:
                raise _another_size(each.region, status.st_size, each.size_bytes)
            missing_bytes += max(0, each.size_bytes - status.st_blocks * _STAT_BLOCK_BYTES)
        return missing_bytes


def _another_size(region: int, actual_bytes: int, size_bytes: int) -> RegionError:
    return RegionError(f"the object of regions[{region}] has {actual_bytes} bytes, not {size_bytes}")


def _open_handle(handle: PosixShm | ProcessFd | CudaIpc, allow_process_fd: bool) -> int:
    try:
        match handle:
            case PosixShm(name=name):
                return _open_posix_shm(name)
            case ProcessFd(pid=pid, fd=fd) if allow_process_fd:
                return _open_process_fd(pid, fd)
            case ProcessFd():
                raise AccessDenied(
                    "a process's descriptor is accepted over a unix socket or with a client's certificate only"
                )
            case CudaIpc():
                raise BackendError("CUDA memory needs CuPy and a CUDA device, which this depot runs without")
    except PermissionError as error:
        raise AccessDenied(f"{handle}: {error.strerror}") from error
    except OSError as error:
        raise RegionError(f"{handle}: {error.strerror}") from error


def _open_posix_shm(name: str) -> int:
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(os.fsencode(name)) > 255:
        raise OSError(errno.EINVAL, "a name has 1 to 255 bytes, no slash, no NUL")
    return _open_shared_memory(f"/dev/shm/{name}", os.O_NOFOLLOW)


def _open_process_fd(pid: int, fd: int) -> int:
    # A descriptor of the process's directory always means this process, even if another one gets its pid.
    process = os.open(f"/proc/{pid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if os.fstat(process).st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "the process belongs to another user")
        return _open_shared_memory(f"fd/{fd}", 0, process)
    finally:
        os.close(process)


def _open_shared_memory(path: str, flags: int, directory: int | None = None) -> int:
    """Open a regular file on tmpfs. Do not open any other file, because that may block or have an effect."""
    examined = os.open(path, os.O_PATH | os.O_CLOEXEC | flags, dir_fd=directory)
    try:
        if not stat.S_ISREG(os.fstat(examined).st_mode) or _file_system(examined) != _TMPFS_MAGIC:
            raise OSError(errno.EINVAL, "it is not shared memory")
        return os.open(f"/proc/self/fd/{examined}", os.O_RDWR | os.O_CLOEXEC)
    finally:
        os.close(examined)


def _file_system(fd: int) -> int:
    statfs = (ctypes.c_long * 64)()  # larger than the structure, whose first field is f_type
    _checked(_libc().fstatfs(fd, statfs))
    return int(statfs[0])


def _reserve_addresses(span_bytes: int) -> int:
    return _mmap(0, span_bytes, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)


def _map(address: int, size_bytes: int, fd: int) -> None:
    _mmap(address, size_bytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED, fd)


def _mmap(address: int, size_bytes: int, protection: int, flags: int, fd: int) -> int:
    function = _libc().mmap
    function.restype = ctypes.c_void_p
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *3 * (ctypes.c_int,), ctypes.c_long)
    mapped = function(address, size_bytes, protection, flags, fd, 0)
    if mapped == _MAP_FAILED:
        raise RegionError(f"{size_bytes} bytes can't be mapped: {os.strerror(ctypes.get_errno())}")
    return int(mapped)


def _populate(address: int, size_bytes: int, fd: int) -> None:
    madvise = _libc().madvise
    try:
        for at in range(address, address + size_bytes, _POPULATE_BYTES):
            length = min(_POPULATE_BYTES, address + size_bytes - at)
            _checked(madvise(ctypes.c_void_p(at), ctypes.c_size_t(length), _MADV_POPULATE_WRITE))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise RegionError(f"{size_bytes} bytes can't be had (no space?): {error.strerror}") from error
        _allocate(size_bytes, fd)


def _allocate(size_bytes: int, fd: int) -> None:
    """Allocate memory on Linux before 5.14, where transfers pay for the first touch."""
    try:
        os.posix_fallocate(fd, 0, size_bytes)
    except OSError as error:
        raise RegionError(f"{size_bytes} bytes can't be allocated: {error.strerror}") from error


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
