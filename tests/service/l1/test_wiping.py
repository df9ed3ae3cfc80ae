"""A wiped L1 file leaves no byte of a prompt. What is no such file, or is in use, is left as it is."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.l1.l1_file import L1FileUnusable
from service.l1.memory import open_l1
from service.l1.wiping import wipe
from tests.fakes.l1_file import L1_BYTES, SECRET, filled

REPOSITORY = Path(__file__).parents[3]
NAMES = [("red", "a"), ("blue", "b")]


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder) / "l1"


def refusal(path: Path) -> str:
    before = path.read_bytes()
    with pytest.raises(L1FileUnusable) as caught:
        wipe(path)
    assert path.read_bytes() == before
    return str(caught.value)


def test_every_byte_is_zero_and_the_file_is_gone(path: Path) -> None:
    filled(path, NAMES).close()
    assert SECRET in path.read_bytes()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
        size_bytes = len(memory)
        seen: list[int] = []
        assert wipe(path, seen.append) == size_bytes
        assert not path.exists()
        assert not any(memory[4096:])
    assert seen == sorted(seen)
    assert seen[-1] == size_bytes


def test_a_file_in_use_is_refused_with_its_process(path: Path) -> None:
    memory = filled(path, NAMES)
    assert refusal(path) == f"{path}: a process uses it, the one of id {os.getpid()}"
    memory.close()
    wipe(path)


def test_what_is_no_l1_file_is_left(path: Path) -> None:
    path.write_bytes(b"kvdepot" * 2_000)
    assert "no L1 file" in refusal(path)
    path.write_bytes(b"")
    assert "no L1 file" in refusal(path)
    link = path.with_name("link")
    filled(path.with_name("l1-2"), NAMES).close()
    link.symlink_to(path.with_name("l1-2"))
    assert "symbolic link" in refusal(link)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_the_file_of_another_user_is_left(path: Path) -> None:
    filled(path, NAMES).close()
    os.chown(path, 12345, 12345)
    assert refusal(path) == f"{path}: it belongs to the user 12345, this process is 0"


def test_a_wipe_that_is_killed_halfway_leaves_a_file_that_can_be_wiped_or_used(path: Path) -> None:
    filled(path, NAMES).close()
    script = (
        "import os, sys; from pathlib import Path; from service.l1 import wiping\n"
        "wiping._PIECE_BYTES = 1 << 20\n"
        "wiping.wipe(Path(sys.argv[1]), lambda done: os._exit(9))"
    )
    path_variable = f"{REPOSITORY}:{REPOSITORY / 'clients' / 'python'}"
    killed = subprocess.run(
        [sys.executable, "-c", script, str(path)], env={**os.environ, "PYTHONPATH": path_variable}, check=False
    )
    assert killed.returncode == 9
    memory = open_l1(L1_BYTES, path=path, chunk_size=256)
    assert (memory.has_records, memory.why_empty) == (False, "its header is damaged")
    memory.close()
    wipe(path)
    assert not path.exists()


def test_a_file_that_took_the_name_meanwhile_is_not_removed(path: Path) -> None:
    filled(path, NAMES).close()

    def replace(done_bytes: int) -> None:
        path.unlink(missing_ok=True)
        path.write_bytes(b"of another")

    with pytest.raises(L1FileUnusable, match="another file has this name"):
        wipe(path, replace)
    assert path.read_bytes() == b"of another"
