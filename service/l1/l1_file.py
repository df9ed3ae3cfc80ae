"""The file that L1 lies in: a memfd of this process, or a named file that outlives it.

Nothing is changed in a file before it is clear that it is an L1 file of this user, and that no other process uses it.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
from pathlib import Path

from service.l1.file_use import is_l1, lock, used_by
from service.l1.format import HUGE_PAGE_BYTES
from service.units import format_size

_TMPFS_MAGIC = 0x01021994
_HUGETLBFS_MAGIC = 0x958458F6
_STATFS_BYTES = 120
_ALLOCATE_PIECE_BYTES = 1 << 30
_SETTABLE = stat.S_IRWXG | stat.S_IRWXO


class L1FileUnusable(Exception):
    """L1's file can't be used. Nothing in it was changed."""


def open_memfd(*, reserved_huge_pages: bool) -> int:
    """Return an empty memory file without a name.

    Raises: OSError.
    """
    flags = os.MFD_CLOEXEC | (os.MFD_HUGETLB if reserved_huge_pages else 0)
    return os.memfd_create("kvdepot-l1", flags)


def open_named(path: Path) -> tuple[int, bool]:
    """Return the descriptor of a named file, and whether the file was made. It stays locked until `close`.

    The file is a regular one in tmpfs or hugetlbfs, has the mode 0600, is the process's user's, and is empty or an L1
    file.

    Raises: L1FileUnusable.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    is_made = False
    try:
        try:
            fd = os.open(path, flags)
        except FileNotFoundError:
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
            is_made = True
    except FileNotFoundError as error:
        raise L1FileUnusable(f"{path}: its folder does not exist") from error
    except OSError as error:
        raise L1FileUnusable(f"{path}: {open_refusal(error)}") from error
    try:
        _check(path, fd)
    except BaseException:
        os.close(fd)
        if is_made:
            path.unlink()
        raise
    return fd, is_made


def close(fd: int) -> None:
    """Unlock and close the file. Without the first, a mapping would keep the lock."""
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def open_refusal(error: OSError) -> str:
    """Return why a file can't be opened."""
    if error.errno == errno.ELOOP:
        return "it is a symbolic link, which is not followed"
    return os.strerror(error.errno or 0)


def _check(path: Path, fd: int) -> None:
    """Check that the file may be used, and lock it.

    Raises: L1FileUnusable.
    """
    check_kind(path, fd)
    if not lock(fd):
        raise L1FileUnusable(f"{path}: another process uses it{used_by(fd)}")
    check_contents(path, fd)


def check_kind(path: Path, fd: int) -> None:
    """Check that the file is a regular one of this user, for no one else, and in memory.

    Raises: L1FileUnusable.
    """
    about = os.fstat(fd)
    if not stat.S_ISREG(about.st_mode):
        raise L1FileUnusable(f"{path}: it is no regular file")
    if about.st_uid != os.geteuid():
        raise L1FileUnusable(f"{path}: it belongs to the user {about.st_uid}, this process is {os.geteuid()}")
    if about.st_mode & _SETTABLE:
        mode = stat.S_IMODE(about.st_mode)
        raise L1FileUnusable(f"{path}: its mode is {mode:04o}, so others can use it; `chmod 600` it or remove it")
    check_file_system(path, fd)


def check_file_system(path: Path, fd: int) -> None:
    """Check that the file, or the folder of one, is in memory.

    Raises: L1FileUnusable.
    """
    if file_system(fd) not in (_TMPFS_MAGIC, _HUGETLBFS_MAGIC):
        raise L1FileUnusable(f"{path}: it is on a disk; L1's file must be in memory: a tmpfs as /dev/shm, or hugetlbfs")


def check_contents(path: Path, fd: int) -> None:
    """Check that the file is empty or an L1 file.

    Raises: L1FileUnusable.
    """
    if not is_blank(fd) and not is_l1(fd):
        raise L1FileUnusable(f"{path}: it is no L1 file of a depot, and is left as it is; name another path")


def is_named(fd: int) -> bool:
    """Return whether the file has a name, so that it can outlive all processes."""
    return os.fstat(fd).st_nlink > 0


def is_blank(fd: int) -> bool:
    """Return whether nothing was ever written to the file."""
    return os.fstat(fd).st_blocks == 0


def write_start(fd: int, header: bytes) -> None:
    """Write the header of a file that may not have its size yet. hugetlbfs has no write calls, so this maps it.

    Raises: OSError.
    """
    if os.fstat(fd).st_size < HUGE_PAGE_BYTES:
        os.ftruncate(fd, HUGE_PAGE_BYTES)
    with mmap.mmap(fd, HUGE_PAGE_BYTES) as start:
        start[: len(header)] = header


def check_space(fd: int, total_bytes: int) -> None:
    """Check that the file's file system has space for so large a file.

    Raises: L1FileUnusable.
    """
    space = os.fstatvfs(fd)
    free_bytes = space.f_bavail * space.f_frsize + allocated_bytes(fd)
    if space.f_blocks and free_bytes < total_bytes:  # no blocks: no limit
        free, needed = format_size(free_bytes), format_size(total_bytes)
        raise L1FileUnusable(f"its file system has space for {free}, L1 and its records take {needed}")


def file_system(fd: int) -> int:
    """Return the magic number of the file's file system.

    Raises: OSError.
    """
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if ctypes.CDLL(None, use_errno=True).fstatfs(fd, buffer) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return int.from_bytes(buffer.raw[:8], "little") & 0xFFFFFFFF


def is_hugetlbfs(fd: int) -> bool:
    """Return whether the file is made of reserved huge pages."""
    return file_system(fd) == _HUGETLBFS_MAGIC


def allocated_bytes(fd: int) -> int:
    """Return how much memory the file has already."""
    return os.fstat(fd).st_blocks * 512


def allocate(fd: int, total_bytes: int) -> None:
    """Give the file its size, and make all its pages, so that no later touch can fail. This takes a second for 4 GiB.

    Raises: L1FileUnusable.
    """
    try:
        os.ftruncate(fd, total_bytes)
        for offset_bytes in range(0, total_bytes, _ALLOCATE_PIECE_BYTES):
            os.posix_fallocate(fd, offset_bytes, min(_ALLOCATE_PIECE_BYTES, total_bytes - offset_bytes))
    except OSError as error:
        raise L1FileUnusable(f"it can't get {format_size(total_bytes)}: {os.strerror(error.errno or 0)}") from error
