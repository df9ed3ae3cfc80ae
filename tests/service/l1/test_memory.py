"""L1's file: used again, started empty with the reason, or refused without a change."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.l1.arena import HugePages
from service.l1.format import HEADER_BYTES, MAGIC, PID_OFFSET, Header, Layout, State
from service.l1.l1_file import L1FileUnusable
from service.l1.memory import L1Memory, open_l1

L1_BYTES = 1 << 20
REPOSITORY = Path(__file__).parents[3]


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        yield Path(path)


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "l1"


def opened(path: Path, **options: object) -> L1Memory:
    return open_l1(**{"l1_bytes": L1_BYTES, "path": path, "chunk_size": 256, **options})  # type: ignore[arg-type]


def prepared(path: Path) -> bytes:
    """Make a file, write into L1 and close it. Return its bytes."""
    memory = opened(path)
    memory.arena.view[:5] = b"chunk"
    memory.close()
    return path.read_bytes()


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(L1FileUnusable) as caught:
        opened(path, **options)
    return str(caught.value)


def rewrite_header(path: Path, **fields: object) -> None:
    with path.open("r+b") as file:
        header = Header.unpack(file.read(HEADER_BYTES))
        assert header is not None
        file.seek(0)
        file.write(dataclasses.replace(header, **fields).pack())  # type: ignore[arg-type]


def test_a_new_file_has_all_its_memory_and_is_this_users_alone(path: Path) -> None:
    memory = opened(path)
    about = path.stat()
    assert about.st_mode & 0o777 == 0o600
    assert about.st_size == Layout(L1_BYTES).total_bytes
    assert about.st_blocks * 512 == about.st_size
    assert not memory.has_records and not memory.why_empty
    assert memory.arena.missing_bytes == 0
    memory.close()


def test_a_file_is_used_again_with_its_bytes(path: Path) -> None:
    prepared(path)
    memory = opened(path)
    assert memory.has_records and not memory.why_empty
    assert bytes(memory.arena.view[:5]) == b"chunk"
    memory.close()


def test_a_preallocated_file_without_a_byte_is_used(path: Path) -> None:
    path.touch(mode=0o600)
    memory = opened(path)
    assert not memory.has_records and not memory.why_empty
    memory.close()


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"cache_epoch": 3}, "its cache_epoch is 0, this depot's is 3"),
        ({"l1_bytes": 2 * L1_BYTES}, "its l1_size is 1048576, this depot's is 2097152"),
        ({"l1_bytes": L1_BYTES // 2}, "its l1_size is 1048576, this depot's is 524288"),
    ],
)
def test_a_file_of_other_settings_starts_empty_and_says_why(path: Path, options: dict[str, int], reason: str) -> None:
    prepared(path)
    memory = opened(path, **options)
    assert not memory.has_records
    assert memory.why_empty == reason
    memory.close()
    again = opened(path, **options)
    assert again.has_records
    again.close()


def test_a_file_of_another_chunk_size_keeps_its_chunks_and_says_which_size_they_had(path: Path) -> None:
    prepared(path)
    for _ in range(2):
        memory = opened(path, chunk_size=16)
        assert memory.has_records
        assert memory.ledger.chunk_size == 256
        memory.close()


def test_a_file_of_another_format_starts_empty(path: Path) -> None:
    prepared(path)
    rewrite_header(path, format=2)
    memory = opened(path)
    assert memory.why_empty == "its format is 2, this depot's is 1"
    memory.close()


def test_a_file_that_was_not_finished_starts_empty(path: Path) -> None:
    prepared(path)
    rewrite_header(path, state=State.PREPARING)
    memory = opened(path)
    assert memory.why_empty == "the process that prepared it did not finish"
    memory.close()


def test_a_file_that_is_cut_short_starts_empty_and_gets_its_memory_back(path: Path) -> None:
    prepared(path)
    os.truncate(path, 3 << 20)
    memory = opened(path)
    assert memory.why_empty.startswith("it is cut short")
    assert path.stat().st_blocks * 512 == Layout(L1_BYTES).total_bytes
    memory.close()


def test_each_bit_of_the_header_is_guarded_but_those_of_the_process_id(path: Path) -> None:
    before = prepared(path)[:HEADER_BYTES]
    used = len(before[:PID_OFFSET].rstrip(b"\0"))
    right = Header.unpack(before)
    assert right is not None and right.state is State.READY
    for bit in range(8 * len(MAGIC), 8 * used):
        damaged = bytearray(before)
        damaged[bit // 8] ^= 1 << bit % 8
        assert Header.unpack(bytes(damaged)) is None, f"bit {bit}"


def test_a_damaged_header_starts_empty(path: Path) -> None:
    prepared(path)
    with path.open("r+b") as file:
        file.seek(len(MAGIC) + 2)
        file.write(b"\xff")
    memory = opened(path)
    assert memory.why_empty == "its header is damaged"
    memory.close()


def test_the_records_of_a_file_that_starts_empty_are_gone(path: Path) -> None:
    memory = opened(path)
    layout = Layout(L1_BYTES)
    memory.arena.tables[layout.records_offset : layout.records_offset + 4] = b"left"
    memory.close()
    memory = opened(path, cache_epoch=1)
    assert list(memory.ledger.records.scan()) == []
    memory.close()


def test_a_foreign_file_is_refused_and_left_as_it_is(path: Path) -> None:
    path.touch(mode=0o600)
    path.write_bytes(b"somebody's data" * 1000)
    assert "is no L1 file of a depot" in refusal(path)
    assert path.read_bytes() == b"somebody's data" * 1000


def test_a_file_of_zeros_is_foreign(path: Path) -> None:
    path.touch(mode=0o600)
    path.write_bytes(bytes(5 << 20))
    assert "is no L1 file of a depot" in refusal(path)


def test_a_file_that_others_can_use_is_refused(path: Path) -> None:
    before = prepared(path)
    path.chmod(0o640)
    assert "its mode is 0640, so others can use it" in refusal(path)
    assert path.read_bytes() == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(path: Path) -> None:
    before = prepared(path)
    os.chown(path, 12345, -1)
    assert "it belongs to the user 12345, this process is 0" in refusal(path)
    assert path.read_bytes() == before


def test_a_link_a_folder_and_a_file_on_a_disk_are_refused(path: Path, tmp_path: Path) -> None:
    prepared(path)
    link = path.with_name("link")
    link.symlink_to(path)
    assert "it is a symbolic link" in refusal(link)
    assert "Is a directory" in refusal(path.parent)
    assert "its folder does not exist" in refusal(path.parent / "missing" / "l1")
    os.mkfifo(path.parent / "fifo", 0o600)
    assert "it is no regular file" in refusal(path.parent / "fifo")


def test_a_file_on_a_disk_is_refused() -> None:
    with tempfile.TemporaryDirectory(dir=REPOSITORY / "build") as folder:
        path = Path(folder) / "l1"
        assert "it is on a disk" in refusal(path)
        assert not path.exists()


def test_a_file_that_another_process_uses_is_refused_with_its_id(path: Path) -> None:
    memory = opened(path)
    assert f"another process uses it, the one of id {os.getpid()}" in refusal(path)
    memory.close()
    with path.open("r+b") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert "another process uses it" in refusal(path)
    opened(path).close()


def test_reserved_pages_are_refused_where_the_file_has_none(path: Path) -> None:
    assert "it is not on hugetlbfs" in refusal(path, huge_pages=HugePages.RESERVED)


IN_SMALL_TMPFS = """
import sys
from pathlib import Path
from service.l1.l1_file import L1FileUnusable
from service.l1.memory import open_l1
path = Path(sys.argv[1]) / "l1"
try:
    open_l1(64 << 20, path=path)
except L1FileUnusable as error:
    print(error)
print(path.exists())
memory = open_l1(1 << 20, path=path)
memory.arena.view[:] = b"x" * (1 << 20)
memory.close()
try:
    open_l1(64 << 20, path=path)
except L1FileUnusable as error:
    print(error)
memory = open_l1(1 << 20, path=path)
print(memory.has_records, bytes(memory.arena.view[:2]))
"""
READ_ONLY = """
import sys
from pathlib import Path
from service.l1.l1_file import L1FileUnusable
from service.l1.memory import open_l1
try:
    open_l1(1 << 20, path=Path(sys.argv[1]) / "l1")
except L1FileUnusable as error:
    print(error)
"""


def in_namespace(folder: Path, mount: str, program: str) -> list[str]:
    """Run a program in a mount namespace in which `folder` is a small tmpfs."""
    command = f"{mount} && exec {sys.executable} -c '{program}' {folder}"
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'clients' / 'python'}"}
    ran = subprocess.run(["unshare", "-Urm", "sh", "-c", command], env=environment, capture_output=True, text=True)
    if ran.returncode and "unshare" in ran.stderr:
        pytest.skip(f"no mount namespace: {ran.stderr.strip()}")
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_a_full_file_system_is_refused_and_what_the_file_holds_stays(folder: Path) -> None:
    lines = in_namespace(folder, f"mount -t tmpfs -o size=8m tmpfs {folder}", IN_SMALL_TMPFS)
    assert "its file system has space for" in lines[0] and "L1 and its records take 68MiB" in lines[0]
    assert lines[1] == "False"
    assert "its file system has space for" in lines[2]
    assert lines[3] == "True b'xx'"


def test_a_file_system_that_is_read_only_is_refused(folder: Path) -> None:
    [line] = in_namespace(folder, f"mount -t tmpfs -o ro tmpfs {folder}", READ_ONLY)
    assert line.endswith("Read-only file system")


def test_the_mapping_outlives_the_file_and_its_descriptor(path: Path) -> None:
    memory = opened(path)
    view = memory.arena.view
    memory.close()
    path.unlink()
    del memory
    view[-1:] = b"x"
    assert bytes(view[-1:]) == b"x"


def test_a_memfd_that_is_handed_over_has_its_chunks() -> None:
    first = open_l1(L1_BYTES, chunk_size=256)
    first.arena.view[:5] = b"chunk"
    fd = os.dup(first.arena.fd)
    first.close(unlock=False)
    second = open_l1(L1_BYTES, chunk_size=256, inherited_fd=fd)
    assert second.has_records
    assert bytes(second.arena.view[:5]) == b"chunk"
    second.close()


def test_a_lock_goes_with_the_descriptor_that_is_handed_over(path: Path) -> None:
    first = opened(path)
    fd = os.dup(first.arena.fd)
    first.close(unlock=False)
    second = open_l1(L1_BYTES, chunk_size=256, inherited_fd=fd)
    assert second.has_records
    assert "another process uses it" in refusal(path)
    second.close()
    opened(path).close()


def test_a_memory_is_locked_even_if_the_process_before_gave_the_lock_up(path: Path) -> None:
    first = opened(path)
    fd = os.dup(first.arena.fd)
    first.close(unlock=True)
    second = open_l1(L1_BYTES, chunk_size=256, inherited_fd=fd)
    assert "another process uses it" in refusal(path)
    second.close()


def test_a_memory_that_a_third_process_has_locked_is_refused(path: Path) -> None:
    first = opened(path)
    fd = os.dup(first.arena.fd)
    first.close(unlock=True)
    third = opened(path)
    with pytest.raises(L1FileUnusable, match="another process uses the memory that was handed over"):
        open_l1(L1_BYTES, chunk_size=256, inherited_fd=fd)
    third.close()


def test_a_memfd_of_another_size_starts_empty() -> None:
    first = open_l1(L1_BYTES, chunk_size=256)
    fd = os.dup(first.arena.fd)
    first.close(unlock=False)
    second = open_l1(4 * L1_BYTES, chunk_size=256, inherited_fd=fd)
    assert second.why_empty == "its l1_size is 1048576, this depot's is 4194304"
    second.arena.view[:] = bytes(4 * L1_BYTES)
    second.close()


def test_a_descriptor_that_is_no_l1_is_refused() -> None:
    fd = os.memfd_create("other")
    os.write(fd, b"x" * 8192)
    with pytest.raises(L1FileUnusable, match="is no memory of L1"):
        open_l1(L1_BYTES, inherited_fd=fd)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
