"""The doctor's facts of L1 files are what a depot would meet, and no file is changed by it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.doctor import l1_files
from service.doctor.facts import L1FileFacts
from service.l1.arena import huge_page_error
from service.l1.l1_file import L1FileUnusable
from service.l1.memory import open_l1
from service.settings import Settings
from tests.fakes.l1_file import L1_BYTES, filled


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        monkeypatch.setattr(l1_files, "SHARED_MEMORY", Path(path))
        yield Path(path)


def settings(path: Path | None, **given: Any) -> Settings:
    fields = {"l1_file": str(path) if path is not None else "", "l1_size": L1_BYTES, "chunk_size": 256, **given}
    return Settings.model_construct(**fields)


def configured(path: Path, **given: Any) -> L1FileFacts:
    facts = l1_files.configured(settings(path, **given))
    assert facts is not None
    return facts


def refusal_at_start(path: Path, l1_bytes: int = L1_BYTES) -> str:
    with pytest.raises(L1FileUnusable) as caught:
        open_l1(l1_bytes, path=path, chunk_size=256)
    return str(caught.value)


def test_a_file_that_would_be_adopted_is_said(folder: Path) -> None:
    path = folder / "l1"
    assert not configured(path).exists
    assert not path.exists()
    filled(path, [("", "a")]).close()
    before = path.read_bytes()
    facts = configured(path)
    assert (facts.exists, facts.is_blank, facts.error, facts.why_empty, facts.used_by) == (True, False, "", "", None)
    assert facts.allocated_bytes == path.stat().st_blocks * 512
    assert path.read_bytes() == before


def test_a_file_on_which_a_depot_would_start_empty_is_said(folder: Path) -> None:
    path = folder / "l1"
    filled(path, []).close()
    assert configured(path, cache_epoch=1).why_empty == "its cache_epoch is 0, this depot's is 1"
    os.truncate(path, 100_000)
    assert "cut short" in configured(path).why_empty


def test_a_file_in_use_names_its_process(folder: Path) -> None:
    memory = filled(folder / "l1", [])
    assert configured(folder / "l1").used_by == os.getpid()
    memory.close()


def test_each_refusal_is_the_one_of_a_start(folder: Path, tmp_path: Path) -> None:
    for name in ("foreign", "mode", "link"):
        filled(folder / name, []).close()
    (folder / "foreign").write_bytes(b"foreign" * 10_000)
    (folder / "mode").chmod(0o640)
    (folder / "link").rename(folder / "target")
    (folder / "link").symlink_to(folder / "target")
    for path in (folder / "foreign", folder / "mode", folder / "link", folder / "none" / "l1", tmp_path / "l1"):
        error = configured(path).error
        assert error == refusal_at_start(path)
    huge = 1 << 50
    assert configured(folder / "l1", l1_size=huge).error == refusal_at_start(folder / "l1", huge)


def test_files_that_no_process_uses_are_left_over(folder: Path) -> None:
    (folder / "inner").mkdir()
    filled(folder / "own", []).close()
    filled(folder / "old", [("", "a")]).close()
    filled(folder / "inner" / "older", []).close()
    (folder / "linked").symlink_to(folder / "old")
    (folder / "other").write_bytes(b"kvdepot" * 1_000)
    os.mkfifo(folder / "fifo")
    used = filled(folder / "used", [])
    found = l1_files.left_over(settings(folder / "own"))
    assert {(Path(each.path).name, each.num_chunks, each.owner) for each in found} == {
        ("old", 1, None),
        ("older", 0, None),
    }
    assert all(each.seconds_since_store < 60 for each in found)
    used.close()
    assert {Path(each.path).name for each in l1_files.left_over(settings(None))} == {"own", "old", "older", "used"}


def test_the_folder_of_the_settings_is_looked_at(folder: Path, tmp_path: Path) -> None:
    filled(folder / "old", []).close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(l1_files, "SHARED_MEMORY", tmp_path)
        assert [Path(each.path).name for each in l1_files.left_over(settings(folder / "l1"))] == ["old"]
        assert l1_files.left_over(settings(None)) == ()


def test_folders_of_hugetlbfs_are_found_with_spaces_in_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text("none /dev/shm tmpfs rw 0 0\nnone /mnt/a\\040b hugetlbfs rw,pagesize=2M 0 0\nbroken\n")
    monkeypatch.setattr(l1_files, "MOUNTS", mounts)
    assert l1_files._hugetlbfs_mounts() == [Path("/mnt/a b")]


def test_the_attempt_at_a_huge_page_leaves_no_descriptor() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert huge_page_error() >= 0
    assert len(list(Path("/proc/self/fd").iterdir())) == before
