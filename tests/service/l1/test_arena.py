"""The arena: zeroed memory that is writable, populated in advance, or refused."""

from __future__ import annotations

import gc
import mmap
import threading
from pathlib import Path

import pytest

from kvdepot.memory.available import memory_left
from service.l1.arena import Arena, HugePages, MemoryUnavailable
from service.l1.memory import open_l1

SIZE_BYTES = 40 << 20  # more than two pieces


def populated(arena: Arena) -> Arena:
    arena.start_populating()
    for thread in threading.enumerate():
        if thread.name == "kvdepot-populate":
            thread.join()
    return arena


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.parametrize("huge_pages", [HugePages.NONE, HugePages.TRANSPARENT])
def test_populating_brings_every_page_into_memory(huge_pages: HugePages) -> None:
    arena = open_l1(SIZE_BYTES, huge_pages).arena
    before = resident_bytes()
    populated(arena)
    assert arena.populated_bytes == SIZE_BYTES
    assert resident_bytes() - before > 0.9 * SIZE_BYTES


def test_populating_leaves_what_was_written_meanwhile() -> None:
    arena = open_l1(SIZE_BYTES).arena
    arena.view[-4096:] = b"x" * 4096
    populated(arena)
    assert arena.view[-4096:] == b"x" * 4096


def test_the_view_is_all_of_the_memory_and_writable_and_zeroed() -> None:
    arena = open_l1(10_000, HugePages.NONE).arena
    assert not arena.view.readonly
    assert arena.view.nbytes == 10_000
    assert bytes(arena.view) == bytes(10_000)
    arena.view[:3] = b"abc"
    assert bytes(arena.view[:4]) == b"abc\0"


def test_more_than_the_machine_has_is_refused_with_both_sizes() -> None:
    size_bytes = memory_left().limit_bytes + 1
    with pytest.raises(MemoryUnavailable, match=r"[\d.,]+ GiB of memory are needed, the .* has [\d.,]+ [GM]iB left"):
        open_l1(size_bytes)


@pytest.mark.parametrize("size_bytes", [1 << 50, 1 << 62, 1 << 70])
@pytest.mark.parametrize("huge_pages", HugePages)
def test_more_than_an_address_space_is_refused(huge_pages: HugePages, size_bytes: int) -> None:
    with pytest.raises(MemoryUnavailable):
        open_l1(size_bytes, huge_pages)


@pytest.mark.parametrize("huge_pages", [HugePages.NONE, HugePages.TRANSPARENT])
def test_what_is_missing_is_what_has_no_pages_yet(huge_pages: HugePages) -> None:
    arena = open_l1(SIZE_BYTES, huge_pages).arena
    tables_bytes = arena.tables.nbytes
    assert SIZE_BYTES < arena.missing_bytes <= SIZE_BYTES + tables_bytes
    arena.view[: SIZE_BYTES // 2] = bytes(SIZE_BYTES // 2)
    assert arena.missing_bytes <= SIZE_BYTES // 2 + tables_bytes
    assert populated(arena).missing_bytes <= tables_bytes


def test_populating_that_is_stopped_ends_before_all_pages_are_made() -> None:
    arena = open_l1(64 << 20).arena
    arena.stop_populating()  # before it starts, so that no page is made
    populated(arena)
    assert arena.populated_bytes == 0


def test_stopping_waits_for_the_thread() -> None:
    arena = open_l1(SIZE_BYTES).arena
    arena.start_populating()
    arena.stop_populating()
    assert not [thread for thread in threading.enumerate() if thread.name == "kvdepot-populate"]


def test_the_memory_is_unmapped_with_the_last_reference_to_it() -> None:
    def num_mappings() -> int:
        gc.collect()
        return Path("/proc/self/maps").read_text().count("/memfd:kvdepot-l1")

    before = num_mappings()
    memory = open_l1(SIZE_BYTES)
    view = memory.arena.view
    memory.close()
    del memory
    assert num_mappings() > before
    del view
    assert num_mappings() == before
