"""What is seen of an L1 file: right while a depot uses it and after, and never a change to it."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.l1.file_use import is_locked, lock
from service.l1.format import RECORD_BYTES, Layout
from service.l1.inspection import Holding, inspect
from service.l1.l1_file import L1FileUnusable
from tests.fakes.l1_file import L1_BYTES, SLOT_BYTES, filled


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder) / "l1"


def test_chunks_are_counted_by_tenant_and_model(path: Path) -> None:
    filled(path, [("red", "a"), ("red", "a"), ("blue", "a"), ("blue", "b"), ("red", "a")], chunk_size=128).close()
    contents = inspect(path)
    assert contents.holdings == [
        Holding("red", "a", "", 256, 3, 3 * SLOT_BYTES),
        Holding("blue", "a", "", 256, 1, SLOT_BYTES),
        Holding("blue", "b", "", 256, 1, SLOT_BYTES),
    ]
    assert (contents.num_chunks, contents.num_damaged, contents.is_cut_short) == (5, 0, False)
    assert contents.header is not None
    assert (contents.header.chunk_size, contents.header.l1_bytes) == (128, L1_BYTES)
    assert time.time() - 60 < contents.last_store_time <= time.time()


def test_a_file_in_use_is_seen_as_it_is_and_names_its_process(path: Path) -> None:
    memory = filled(path, [("", "a")])
    before = path.read_bytes(), path.stat().st_blocks, path.stat().st_mtime_ns
    assert inspect(path).used_by == os.getpid()
    memory.close()
    contents = inspect(path)
    assert (contents.used_by, contents.num_chunks) == (None, 1)
    assert (path.read_bytes(), path.stat().st_blocks, path.stat().st_mtime_ns) == before


def test_damaged_records_and_records_of_damaged_namespaces_are_counted(path: Path) -> None:
    filled(path, [("red", "a"), ("red", "a"), ("blue", "b")]).close()
    layout = Layout(L1_BYTES)
    with path.open("r+b") as file:
        file.seek(layout.records_offset + 40)
        file.write(b"\xff")
        file.seek(path.read_bytes().index(b'"blue"'))  # its namespace
        file.write(b"\xff")
    contents = inspect(path)
    assert (contents.num_chunks, contents.num_damaged) == (1, 2)


def test_every_record_is_read_in_pieces_of_any_size(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(path, [("", "a")] * 7).close()
    monkeypatch.setattr("service.l1.inspection._PIECE_RECORDS", 3)
    assert inspect(path).num_chunks == 7


def test_a_damaged_header_and_a_file_that_was_cut_are_said(path: Path) -> None:
    filled(path, [("", "a")] * 7).close()
    layout = Layout(L1_BYTES)
    os.truncate(path, layout.records_offset + 3 * RECORD_BYTES + 5)
    contents = inspect(path)
    assert (contents.is_cut_short, contents.num_chunks) == (True, 3)
    with path.open("r+b") as file:
        file.seek(20)
        file.write(b"\xff")
    assert inspect(path).header is None


def test_what_is_no_l1_file_is_refused(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(L1FileUnusable, match="no L1 file"):
        inspect(path)
    path.unlink()
    path.write_bytes(bytes(10_000))
    with pytest.raises(L1FileUnusable, match="no L1 file"):
        inspect(path)
    path.unlink()
    with pytest.raises(L1FileUnusable, match="No such file"):
        inspect(path)
    with pytest.raises(L1FileUnusable, match="no L1 file"):
        inspect(path.parent)


def test_a_look_at_a_file_keeps_no_depot_from_its_lock(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"")
    depot, look = os.open(path, os.O_RDWR), os.open(path, os.O_RDONLY)
    fcntl.flock(look, fcntl.LOCK_SH)
    monkeypatch.setattr("service.l1.file_use.time.sleep", lambda seconds: fcntl.flock(look, fcntl.LOCK_UN))
    assert lock(depot)
    os.close(depot)
    os.close(look)


def test_a_lock_is_seen_and_lasts_until_its_process_ends(path: Path) -> None:
    path.write_bytes(b"")
    ours, theirs = os.open(path, os.O_RDWR), os.open(path, os.O_RDONLY)
    assert not is_locked(theirs)
    assert lock(ours)
    assert is_locked(theirs)
    assert not lock(theirs)
    os.close(ours)
    assert lock(theirs)
    os.close(theirs)
