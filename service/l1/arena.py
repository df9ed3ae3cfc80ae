"""The memory of L1: one mapping, whose pages are made in the background before stores need them."""

from __future__ import annotations

import ctypes
import errno
import logging
import mmap
import os
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

from service.l1.format import HUGE_PAGE_BYTES, Layout
from service.l1.l1_file import allocated_bytes
from service.units import format_size

logger = logging.getLogger(__name__)

POPULATE_PIECE_BYTES = 16 << 20
BACKGROUND_NICENESS = 10
SHARED_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
# From the Linux headers; Python has no names for them.
_MADV_HUGEPAGE = 14
_MADV_NOHUGEPAGE = 15
_MADV_POPULATE_WRITE = 23
_MADV_COLLAPSE = 25
_MAP_FIXED = 0x10
_PROT_NONE = 0
_MAP_FAILED = ctypes.c_void_p(-1).value


class HugePages(StrEnum):
    """The kind of pages of L1."""

    NONE = "none"
    TRANSPARENT = "transparent"
    RESERVED = "reserved"


class MemoryUnavailable(Exception):
    """The machine lacks the memory for an L1 of this size."""


class Arena:
    """L1's bytes: the `tables`, header first, and the slots as `view`. Both are writable.

    The memory is that of a file, which already has its size. A thread of low priority makes its pages, lowest address
    first, because the first touch of a page costs about twenty times its copy. `is_allocated` says that the file has
    all its memory. The mapping stays until nothing refers to `tables` and `view`.

    Raises: MemoryUnavailable.
    """

    def __init__(self, fd: int, layout: Layout, huge_pages: HugePages, *, is_allocated: bool) -> None:
        self.fd = fd
        self._layout = layout
        self._huge_pages = huge_pages
        self._is_allocated = is_allocated
        try:
            self._address = _map(fd, layout.total_bytes)
        except OSError as error:
            raise MemoryUnavailable(
                f"mapping {layout.total_bytes:,} bytes with huge pages {huge_pages}: {error.strerror}"
            ) from error
        array = (ctypes.c_uint8 * layout.total_bytes).from_address(self._address)
        # Not at exit: threads that end with the process may touch the memory until then.
        weakref.finalize(array, _unmap, self._address, layout.total_bytes).atexit = False
        memory = memoryview(array).cast("B")
        self.tables = memory[: layout.slots_offset]
        self.view = memory[layout.slots_offset : layout.slots_offset + layout.l1_bytes]
        self._has_huge_faults = huge_pages is HugePages.TRANSPARENT and _shared_memory_has_huge_pages()
        if huge_pages is not HugePages.RESERVED:
            with suppress(OSError):  # there is no such advice without support for huge pages
                advice = _MADV_NOHUGEPAGE if huge_pages is HugePages.NONE else _MADV_HUGEPAGE
                _advise(self._address, layout.total_bytes, advice)
        self.populated_bytes = 0
        self._huge_bytes = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def missing_bytes(self) -> int:
        """The memory that L1 will still take. Stores make pages as well as the thread."""
        if self._is_allocated or self._huge_pages is HugePages.RESERVED:
            return 0
        return max(0, self._layout.slots_offset + self._layout.l1_bytes - allocated_bytes(self.fd))

    def start_populating(self, populated: Callable[[int, int], None] = lambda offset_bytes, size_bytes: None) -> None:
        """Begin to make the pages. The thread calls `populated(offset_bytes, size_bytes)` after each piece of slots."""
        self._thread = threading.Thread(target=self._populate, args=(populated,), name="kvdepot-populate", daemon=True)
        self._thread.start()

    def stop_populating(self) -> None:
        """Stop making pages. The memory is freed with the last reference to `view` and the last descriptor."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _populate(self, populated: Callable[[int, int], None]) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), BACKGROUND_NICENESS)
        start, l1_bytes = self._layout.slots_offset, self._layout.l1_bytes
        wants_huge_pages = self._huge_pages is HugePages.TRANSPARENT
        for offset_bytes in range(0, l1_bytes, POPULATE_PIECE_BYTES):
            if self._stop.is_set():
                return
            piece_bytes = min(POPULATE_PIECE_BYTES, l1_bytes - offset_bytes)
            try:
                if not (self._is_allocated or self._has_huge_faults):
                    # Pages that are allocated but never touched become huge ones without a copy.
                    os.posix_fallocate(self.fd, start + offset_bytes, piece_bytes)
                if self._has_huge_faults:
                    _advise(self._address + start + offset_bytes, piece_bytes, _MADV_POPULATE_WRITE)
                if wants_huge_pages:
                    wants_huge_pages = self._make_huge(start + offset_bytes, piece_bytes)
                _advise(self._address + start + offset_bytes, piece_bytes, _MADV_POPULATE_WRITE)
            except OSError as error:
                # Linux before 5.14, or a cgroup at its limit: stores make the pages as they come.
                logger.warning("populating L1 stopped: %s", error.strerror)
                return
            self.populated_bytes = offset_bytes + piece_bytes
            populated(offset_bytes, piece_bytes)
        if self._huge_pages is HugePages.TRANSPARENT and l1_bytes >= HUGE_PAGE_BYTES:
            logger.info("%s of L1's %s are huge pages", format_size(self._huge_bytes), format_size(l1_bytes))

    def _make_huge(self, offset_bytes: int, size_bytes: int) -> bool:
        """Make huge pages of a piece. Return False if the machine can't make any."""
        size_bytes = size_bytes // HUGE_PAGE_BYTES * HUGE_PAGE_BYTES
        if not size_bytes:
            return True
        try:
            _advise(self._address + offset_bytes, size_bytes, _MADV_COLLAPSE)
        except OSError as error:
            # EINVAL: this system can't. Anything else: no huge page is free now, and one may be for the next piece.
            return error.errno != errno.EINVAL
        self._huge_bytes += size_bytes
        return True


def huge_page_error() -> int:
    """Try to make a huge page of shared memory, as `Arena` does. Return the number of the error, 0 if it works.

    Settings of the system alone do not decide this.
    """
    fd = os.memfd_create("kvdepot-try", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, 2 * HUGE_PAGE_BYTES)
        os.posix_fallocate(fd, 0, 2 * HUGE_PAGE_BYTES)
        address = _map(fd, 2 * HUGE_PAGE_BYTES)
        try:
            _advise(address, 2 * HUGE_PAGE_BYTES, _MADV_COLLAPSE)
        finally:
            _unmap(address, 2 * HUGE_PAGE_BYTES)
    except OSError as error:
        return error.errno or errno.EINVAL
    finally:
        os.close(fd)
    return 0


def _shared_memory_has_huge_pages() -> bool:
    """Return whether the system makes huge pages at the first touch of shared memory that asks for them."""
    try:
        modes = SHARED_HUGE_PAGES.read_text()
    except OSError:
        return False
    return not ("[never]" in modes or "[deny]" in modes)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def _map(fd: int, size_bytes: int) -> int:
    """Map a file at an address that is a multiple of a huge page, since only such a mapping can have huge pages.

    Raises: OSError.
    """
    reserved_bytes = size_bytes + HUGE_PAGE_BYTES
    if reserved_bytes >= 1 << 62:
        raise OSError(0, "no address space is so large")
    reserved = _mmap(None, reserved_bytes, _PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
    address = -(-reserved // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    try:
        _mmap(address, size_bytes, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | _MAP_FIXED, fd)
    except OSError:
        _unmap(reserved, reserved_bytes)
        raise
    if address > reserved:
        _unmap(reserved, address - reserved)
    rest = reserved + reserved_bytes - (address + size_bytes)
    if rest:
        _unmap(address + size_bytes, rest)
    return address


def _mmap(address: int | None, size_bytes: int, protection: int, flags: int, fd: int) -> int:
    mapped: int = _libc.mmap(address, size_bytes, protection, flags, fd, 0)
    if mapped == _MAP_FAILED:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return mapped


def _unmap(address: int, size_bytes: int) -> None:
    _libc.munmap(address, size_bytes)


def _advise(address: int, size_bytes: int, advice: int) -> None:
    if _libc.madvise(address, size_bytes, advice) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
