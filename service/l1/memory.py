"""L1's memory: found as an earlier process left it, or prepared anew."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

from kvdepot.memory.available import check_memory
from service.l1 import file_use, l1_file
from service.l1.arena import Arena, HugePages, MemoryUnavailable
from service.l1.format import HEADER_BYTES, PID_OFFSET, RECORD_BYTES, Header, Layout, State
from service.l1.l1_file import L1FileUnusable
from service.l1.ledger import Ledger
from service.l1.namespace_table import NamespaceTable
from service.l1.records import RecordTable


@dataclass(frozen=True, slots=True, eq=False)
class L1Memory:
    """The arena, and its tables behind a ledger.

    `has_records` says that the tables are those of an earlier process, whose chunks are to be adopted. If an earlier
    process left memory that can't be used, `why_empty` says why.
    """

    arena: Arena
    ledger: Ledger
    has_records: bool
    why_empty: str = ""

    def is_file(self, path: Path) -> bool:
        """Return whether the memory is that of the file of this name."""
        try:
            return os.path.samestat(os.fstat(self.arena.fd), path.stat())
        except OSError:
            return False

    def close(self, *, unlock: bool = True) -> None:
        """Close the file. Its lock ends, unless another process has this descriptor by now and `unlock` is False.

        The mapping stays until nothing refers to it.
        """
        if unlock:
            l1_file.close(self.arena.fd)
        else:
            os.close(self.arena.fd)


def open_l1(
    l1_bytes: int,
    huge_pages: HugePages = HugePages.TRANSPARENT,
    *,
    path: Path | None = None,
    inherited_fd: int | None = None,
    chunk_size: int = 0,
    cache_epoch: int = 0,
) -> L1Memory:
    """Open the memory of L1: a descriptor of an earlier process, a named file, or by default a new memfd.

    What an earlier process left is used if its format, `l1_bytes` and `cache_epoch` are equal. An inherited descriptor
    is closed if it can't be used.

    Raises: MemoryUnavailable, L1FileUnusable.
    """
    wanted = Header(l1_bytes=l1_bytes, chunk_size=chunk_size, cache_epoch=cache_epoch)
    if inherited_fd is not None:
        return _inherited(inherited_fd, wanted, huge_pages)
    if path is None:
        return _new(wanted, huge_pages)
    fd, is_made = l1_file.open_named(path)
    try:
        return _opened(fd, wanted, huge_pages)
    except BaseException as error:
        l1_file.close(fd)
        if is_made:
            path.unlink()
        if isinstance(error, L1FileUnusable):
            raise L1FileUnusable(f"{path}: {error}") from error
        raise


def _new(wanted: Header, huge_pages: HugePages) -> L1Memory:
    """Return L1 in a new memfd."""
    layout = Layout(wanted.l1_bytes)
    is_reserved = huge_pages is HugePages.RESERVED
    if not is_reserved:
        _check_memory(layout.total_bytes)
    try:
        fd = l1_file.open_memfd(reserved_huge_pages=is_reserved)
    except OSError as error:
        raise MemoryUnavailable(f"a memory file with huge pages {huge_pages}: {error.strerror}") from error
    try:
        try:
            os.ftruncate(fd, layout.total_bytes)
        except (OSError, OverflowError) as error:
            raise MemoryUnavailable(f"a memory file of {layout.total_bytes:,} bytes: {error}") from error
        return _prepared(Arena(fd, layout, huge_pages, is_allocated=is_reserved), wanted)
    except BaseException:
        os.close(fd)
        raise


def _inherited(fd: int, wanted: Header, huge_pages: HugePages) -> L1Memory:
    """Return L1 in the memory that an earlier process handed over.

    Raises: L1FileUnusable, MemoryUnavailable.
    """
    try:
        if not file_use.is_l1(fd):
            raise L1FileUnusable("the descriptor that was handed over is no memory of L1")
        # Usually the lock came with the descriptor. It did not if the other process gave it up as it ended.
        if not file_use.lock(fd):
            raise L1FileUnusable(f"another process uses the memory that was handed over{file_use.used_by(fd)}")
        return _opened(fd, wanted, huge_pages)
    except BaseException:
        os.close(fd)
        raise


def _opened(fd: int, wanted: Header, huge_pages: HugePages) -> L1Memory:
    """Return L1 in a file that is this process's alone.

    Raises: L1FileUnusable, MemoryUnavailable.
    """
    layout = Layout(wanted.l1_bytes)
    if l1_file.is_hugetlbfs(fd):
        huge_pages = HugePages.RESERVED
    elif huge_pages is HugePages.RESERVED:
        raise L1FileUnusable(
            "it is not on hugetlbfs, so it has no reserved huge pages; choose others with l1_huge_pages"
        )
    is_new = l1_file.is_blank(fd)
    before = Header.unpack(file_use.read_start(fd))
    size_bytes = os.fstat(fd).st_size
    why_empty = "" if is_new else why_unusable(fd, wanted)
    if is_new or why_empty:
        l1_file.check_space(fd, layout.total_bytes)
    if huge_pages is not HugePages.RESERVED:
        _check_memory(layout.total_bytes - l1_file.allocated_bytes(fd))
    if is_new or why_empty:
        l1_file.write_start(fd, wanted.pack())
    is_named = l1_file.is_named(fd)
    if not is_named:
        os.ftruncate(fd, layout.total_bytes)  # the thread that populates it makes the rest of its pages
    elif l1_file.allocated_bytes(fd) < layout.total_bytes or size_bytes != layout.total_bytes:
        l1_file.allocate(fd, layout.total_bytes)
    arena = Arena(fd, layout, huge_pages, is_allocated=is_named)
    if before is None or is_new or why_empty:
        return _prepared(arena, wanted, why_empty, clear=not is_new)
    _note_pid(arena)
    return L1Memory(arena, _ledger(arena, layout, before), has_records=True)


def why_unusable(fd: int, wanted: Header) -> str:
    """Return why the chunks in a file that is not blank can't be adopted. Empty: they can."""
    before = Header.unpack(file_use.read_start(fd))
    if before is None:
        return "its header is damaged"
    size_bytes, total_bytes = os.fstat(fd).st_size, Layout(before.l1_bytes).total_bytes
    if size_bytes < total_bytes and before.state is State.READY:
        return f"it is cut short, it has {size_bytes:,} of {total_bytes:,} bytes"
    return wanted.difference(before)


def _prepared(arena: Arena, header: Header, why_empty: str = "", *, clear: bool = False) -> L1Memory:
    """Return empty memory whose header is written. `clear` erases tables that have entries."""
    ledger = _ledger(arena, Layout(header.l1_bytes), header)
    if clear:
        ledger.records.clear()
        ledger.namespaces.clear()
    ready = dataclasses.replace(header, state=State.READY).pack()
    arena.tables[: len(ready)] = ready
    _note_pid(arena)
    return L1Memory(arena, ledger, has_records=False, why_empty=why_empty)


def _ledger(arena: Arena, layout: Layout, header: Header) -> Ledger:
    records_end = layout.records_offset + layout.num_records * RECORD_BYTES
    return Ledger(
        RecordTable(arena.tables[layout.records_offset : records_end], header.memory_id),
        NamespaceTable(arena.tables[HEADER_BYTES : layout.records_offset], header.memory_id),
        header.chunk_size,
    )


def _note_pid(arena: Arena) -> None:
    arena.tables[PID_OFFSET:HEADER_BYTES] = os.getpid().to_bytes(HEADER_BYTES - PID_OFFSET, "little")


def _check_memory(size_bytes: int) -> None:
    """Check that the machine, and each cgroup around the process, has so much memory left.

    Raises: MemoryUnavailable.
    """
    try:
        check_memory(size_bytes)
    except OSError as error:
        raise MemoryUnavailable(f"L1 does not fit: {error.strerror}") from error
