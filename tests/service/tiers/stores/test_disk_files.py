"""The files of a disk tier: their space, other sizes, folders that are refused, and one depot at a time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from service.l1.l1_file import file_system
from service.tiers.store import StoreError, StoreUnusable
from service.tiers.stores import disk_files
from tests.fakes.disk_tier import A, bytes_of, keys, open_store, opened, write


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tier"


def test_a_larger_tier_keeps_all_chunks_and_has_more_space(folder: Path) -> None:
    with opened(folder) as tier:
        write(tier, dict.fromkeys(keys(5), 500000))
        before = tier.index.capacity_bytes
    with opened(folder, "32MiB") as tier:
        assert tier.index.capacity_bytes == before + (16 << 20)
        assert tier.keys() == keys(5)
        assert tier.get(keys(5)[4], 500_000) == bytes_of(keys(5)[4], 500_000)
        assert (folder / "chunks").stat().st_blocks * 512 >= tier.index.capacity_bytes


def test_a_smaller_tier_keeps_the_chunks_that_lie_inside(folder: Path) -> None:
    with opened(folder, "32MiB") as tier:
        for key in keys(25):
            write(tier, {key: 1 << 20})
    with opened(folder, "16MiB") as tier:
        assert tier.keys() == keys(tier.index.capacity_bytes >> 20)
        assert (folder / "chunks").stat().st_size == tier.index.capacity_bytes
        assert tier.get(A, 1 << 20) is None or tier.get(keys(1)[0], 1 << 20) == bytes_of(keys(1)[0], 1 << 20)
    with opened(folder, "32MiB") as tier:
        assert tier.keys() == keys(11), "chunks whose bytes were cut off come back"


def test_all_space_is_taken_at_the_start(folder: Path) -> None:
    with opened(folder):
        for name in ("records", "chunks"):
            about = (folder / name).stat()
            assert about.st_blocks * 512 >= about.st_size
            assert about.st_mode & 0o777 == 0o600
        assert sum((folder / name).stat().st_size for name in ("records", "chunks")) <= 16 << 20
        assert folder.stat().st_mode & 0o777 == 0o700


def test_a_reservation_that_was_broken_off_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_files, "_ALLOCATE_PIECE_BYTES", 1 << 20)
    open_store(folder).close()
    os.truncate(folder / "chunks", 5 << 20)
    with opened(folder) as tier:
        assert (folder / "chunks").stat().st_blocks * 512 >= tier.index.capacity_bytes


def test_holes_in_a_file_are_filled(folder: Path) -> None:
    open_store(folder).close()
    size = (folder / "chunks").stat().st_size
    os.truncate(folder / "chunks", 0)
    os.truncate(folder / "chunks", size)
    open_store(folder).close()
    assert (folder / "chunks").stat().st_blocks * 512 >= size


def test_too_large_a_tier_says_what_the_disk_lacks_and_takes_nothing(folder: Path) -> None:
    with pytest.raises(StoreUnusable, match=r"lacks [0-9.]+GiB for a tier of 1000TiB"):
        open_store(folder, "1000TiB")
    assert (folder / "chunks").stat().st_size == 0
    open_store(folder).close()


def file_at(folder: Path) -> None:
    folder.write_text("mine")


def link_at(folder: Path) -> None:
    (folder.parent / "target").mkdir()
    folder.symlink_to(folder.parent / "target")


def linked_chunks(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder.parent / "target").write_text("mine")
    (folder / "chunks").symlink_to(folder.parent / "target")


def open_to_all(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def foreign_records(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / "records").touch(mode=0o600)
    (folder / "records").write_text("mine")


def foreign_chunks(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / "chunks").touch(mode=0o600)
    (folder / "chunks").write_text("mine")


def readable_chunks(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    (folder / "chunks").touch()
    (folder / "chunks").chmod(0o644)


def pipe(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    os.mkfifo(folder / "records", 0o600)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (file_at, "it is no folder"),
        (link_at, "symbolic link, which is not followed"),
        (linked_chunks, "symbolic link, which is not followed"),
        (open_to_all, "every user can change it"),
        (foreign_records, "records: it is no file of a disk tier, and is left as it is"),
        (foreign_chunks, "chunks: it is no file of a disk tier, and is left as it is"),
        (readable_chunks, "its mode is 0644"),
        (pipe, "it is no regular file"),
    ],
)
def test_a_folder_that_is_not_ours_alone_is_refused_and_left_as_it_is(
    folder: Path, make: Callable[[Path], None], message: str
) -> None:
    make(folder)
    before = contents(folder.parent)
    with pytest.raises(StoreUnusable, match=message):
        open_store(folder)
    assert {name: content for name, content in contents(folder.parent).items() if content} == {
        name: content for name, content in before.items() if content
    }


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_without_a_parent_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreUnusable, match="missing does not exist"):
        open_store(tmp_path / "missing" / "tier")


def test_a_network_file_system_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = os.open(folder.parent, os.O_RDONLY)
    monkeypatch.setitem(disk_files.NETWORK_FILE_SYSTEMS, file_system(fd), "NFS")
    os.close(fd)
    with pytest.raises(StoreUnusable, match="it is on NFS; a disk tier must be on a disk of this machine"):
        open_store(folder)


OPEN_AND_SAY = """
import sys
from pathlib import Path
from service.tiers.store import StoreError
from tests.fakes.disk_tier import open_store
try:
    open_store(Path(sys.argv[1]))
    print("opened", flush=True)
    sys.stdin.read()
except StoreError as error:
    print(error)
"""


def other_depot(folder: Path) -> subprocess.Popen[str]:
    """Open the store in a process whose parent is another one than this process's."""
    return subprocess.Popen(
        [sys.executable, "-c", OPEN_AND_SAY, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_one_depot_at_a_time_uses_a_folder(folder: Path) -> None:
    store = open_store(folder)
    second = open_store(folder)  # another I/O worker of the same depot
    refused, _ = other_depot(folder).communicate("")
    assert f"another depot uses it, process {os.getppid()}" in refused
    store.close()
    second.close()
    with other_depot(folder) as other:
        assert other.stdout is not None and other.stdout.readline() == "opened\n"
        with pytest.raises(StoreError, match=f"another depot uses it, process {os.getpid()}"):
            open_store(folder)
        other.kill()
    open_store(folder).close()
