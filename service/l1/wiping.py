"""Wiping: an L1 file is overwritten with zeros, and removed."""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from service.l1.file_use import is_l1, lock, used_by
from service.l1.format import HEADER_BYTES, HUGE_PAGE_BYTES, MAGIC, PID_OFFSET
from service.l1.l1_file import L1FileUnusable, close, is_hugetlbfs, open_refusal

_PIECE_BYTES = 32 << 20


def wipe(path: Path, wiped: Callable[[int], None] = lambda num_bytes: None) -> int:
    """Overwrite an L1 file with zeros, but for its name for the format, and remove it. Return its size in bytes.

    `wiped` is called with the bytes that are done so far. If this is stopped halfway, the file is still an L1 file,
    which can be wiped again; a depot starts empty on it.

    Raises: L1FileUnusable: it is no L1 file, another user's, or in use. Nothing was changed. OSError.
    """
    fd = _open(path)
    try:
        size_bytes = os.fstat(fd).st_size
        void = bytes(PID_OFFSET - len(MAGIC)) + os.getpid().to_bytes(HEADER_BYTES - PID_OFFSET, "little")
        (_wipe_mapped if is_hugetlbfs(fd) else _wipe_written)(fd, size_bytes, void, wiped)
        wiped(size_bytes)
        here, ours = path.lstat(), os.fstat(fd)
        if (here.st_dev, here.st_ino) != (ours.st_dev, ours.st_ino):
            raise L1FileUnusable(f"{path}: its bytes are zeros now, but another file has this name, which was left")
        path.unlink()
    finally:
        close(fd)
    return size_bytes


def _open(path: Path) -> int:
    """Return the descriptor of an L1 file of this user, locked.

    Raises: L1FileUnusable.
    """
    try:
        about = path.lstat()
        if about.st_uid != os.geteuid():
            raise L1FileUnusable(f"{path}: it belongs to the user {about.st_uid}, this process is {os.geteuid()}")
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise L1FileUnusable(f"{path}: {open_refusal(error)}") from error
    try:
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode) or not is_l1(fd):
            raise L1FileUnusable(f"{path}: it is no L1 file of a depot, and is left as it is")
        if about.st_uid != os.geteuid():
            raise L1FileUnusable(f"{path}: it belongs to the user {about.st_uid}, this process is {os.geteuid()}")
        if not lock(fd):
            raise L1FileUnusable(f"{path}: a process uses it{used_by(fd)}")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _wipe_written(fd: int, size_bytes: int, void: bytes, wiped: Callable[[int], None]) -> None:
    """Wipe a file that can be written to. What has no memory yet needs none."""
    os.pwrite(fd, void, len(MAGIC))
    zeros = bytes(_PIECE_BYTES)
    for begin, end in _data(fd, size_bytes):
        for offset_bytes in range(max(begin, HEADER_BYTES), end, _PIECE_BYTES):
            os.pwrite(fd, memoryview(zeros)[: min(_PIECE_BYTES, end - offset_bytes)], offset_bytes)
            wiped(offset_bytes)


def _data(fd: int, size_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield the stretches of the file that have data, as bytes from the beginning."""
    end = 0
    while end < size_bytes:
        try:
            begin = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:  # there is no more, or the file system does not know
            return
        end = os.lseek(fd, begin, os.SEEK_HOLE)
        yield begin, end


def _wipe_mapped(fd: int, size_bytes: int, void: bytes, wiped: Callable[[int], None]) -> None:
    """Wipe a file of hugetlbfs, which has no write calls."""
    if not size_bytes:
        return
    with mmap.mmap(fd, size_bytes) as file:
        file[len(MAGIC) : HEADER_BYTES] = void
        zeros = bytes(HUGE_PAGE_BYTES)
        file[HEADER_BYTES:HUGE_PAGE_BYTES] = bytes(HUGE_PAGE_BYTES - HEADER_BYTES)
        for offset_bytes in range(HUGE_PAGE_BYTES, size_bytes, HUGE_PAGE_BYTES):
            file[offset_bytes : offset_bytes + HUGE_PAGE_BYTES] = zeros
            wiped(offset_bytes)
