"""Memory that is shared is seen by another process as the engine sees it, and nothing of it is left behind."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvdepot import SharedBuffer, SharedRegions
from tests.clients.memory.conftest import CLIENTS, READ, SHM, WRITE, in_another_process, left_by, path_of
from tests.fakes.waiting import eventually


def test_another_process_sees_the_bytes_of_a_buffer_and_its_exact_size(by: Any) -> None:
    with SharedBuffer.create(12_345, by=by) as buffer:
        assert buffer.array.nbytes == 12_345
        assert not buffer.array.any()
        buffer.array[:] = np.random.default_rng(7).integers(0, 256, 12_345, np.uint8)
        assert buffer.region.size_bytes == Path(path_of(buffer.region)).stat().st_size == 12_345
        assert in_another_process(READ, path_of(buffer.region)) == buffer.array.tobytes()
        in_another_process(WRITE, path_of(buffer.region), 12_000, "hello")
        assert buffer.array[12_000:12_005].tobytes() == b"hello"


def test_pages_of_a_buffer_are_allocated_when_it_is_made(by: Any) -> None:
    with SharedBuffer.create(1 << 20, by=by) as buffer:
        assert Path(path_of(buffer.region)).stat().st_blocks * 512 >= 1 << 20


def test_view_of_a_buffer_is_the_same_memory(by: Any) -> None:
    with SharedBuffer.create(1024, by=by) as buffer:
        view = buffer.view(np.float32, (2, 3), offset_bytes=16)
        view[1, 2] = 1.5
        assert buffer.array[16 + 20 : 16 + 24].tobytes() == np.float32(1.5).tobytes()


def test_closed_buffer_has_neither_name_nor_descriptor_but_its_arrays_live(by: Any) -> None:
    buffer = SharedBuffer.create(4096, by=by)
    path, view = path_of(buffer.region), buffer.view(np.uint8, (4096,))
    assert Path(path).exists()
    assert left_by(os.getpid()) == ([Path(path)] if by == "name" else [])
    buffer.close()
    buffer.close()
    assert not Path(path).exists()
    view[:] = 7
    assert buffer.array.sum() == 7 * 4096


def test_buffer_that_is_forgotten_is_closed(by: Any) -> None:
    path = path_of(SharedBuffer.create(4096, by=by).region)
    assert not Path(path).exists()


@pytest.mark.parametrize("size_bytes", [0, -1])
def test_buffer_without_bytes_is_refused(size_bytes: int, by: Any) -> None:
    with pytest.raises(ValueError, match="size_bytes"):
        SharedBuffer.create(size_bytes, by=by)


@pytest.fixture
def files_of_a_mebibyte() -> Iterator[None]:
    """Limit files to a mebibyte, so that a test can't use up the machine's memory."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.usefixtures("files_of_a_mebibyte")
def test_buffer_that_the_machine_has_no_memory_for_is_refused_at_once(by: Any) -> None:
    with pytest.raises(OSError, match="memory") as raised:
        SharedBuffer.create(1 << 50, by=by)
    assert raised.value.errno == errno.ENOMEM


@pytest.mark.usefixtures("files_of_a_mebibyte")
def test_buffer_that_cannot_be_allocated_leaves_nothing(by: Any) -> None:
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError) as raised:
        SharedBuffer.create(2 << 20, by=by)
    assert raised.value.errno == errno.EFBIG
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_buffer_that_shm_has_no_space_for_is_refused(full_shm: int) -> None:
    with pytest.raises(OSError, match="has space for") as raised:
        SharedBuffer.create(full_shm)
    assert raised.value.errno == errno.ENOSPC


def test_fork_that_ends_takes_nothing_away() -> None:
    script = """
import os, sys, pathlib, kvdepot
buffer = kvdepot.SharedBuffer.create(4096)
path = pathlib.Path("/dev/shm", buffer.region.posix_shm.name)
child = os.fork()
if child == 0:
    sys.exit()
os.waitpid(child, 0)
print(path.exists())
"""
    assert in_another_process(script) == b"True\n"


MAKE = {
    "buffer": "keep = kvdepot.SharedBuffer.create(4096, by=by)",
    "tensor": "import torch; keep = torch.zeros(4096); kvdepot.SharedRegions(by).locate(keep)",
}


@pytest.mark.parametrize(("what", "how"), [("buffer", "name"), ("buffer", "fd"), ("tensor", "name")])
def test_process_that_ends_leaves_nothing(what: str, how: str) -> None:
    if what == "tensor":
        pytest.importorskip("torch")
    script = f"import os, kvdepot; by = {how!r}; {MAKE[what]}; print(os.getpid())"
    assert left_by(int(in_another_process(script))) == []


@pytest.mark.parametrize(("what", "how"), [("buffer", "fd"), ("tensor", "name")])
async def test_killed_process_leaves_nothing(what: str, how: str) -> None:
    if what == "tensor":
        pytest.importorskip("torch")
    script = f"import kvdepot; by = {how!r}; {MAKE[what]}; print(flush=True); input()"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, cwd=CLIENTS, stdin=-1, stdout=-1)
    assert process.stdout is not None
    await process.stdout.readline()
    assert len(left_by(process.pid)) == (how == "name")
    process.kill()
    await process.wait()
    await eventually(lambda: left_by(process.pid) == [])


async def test_what_a_killed_process_left_is_removed_by_the_next_and_nothing_else_is() -> None:
    script = f"import kvdepot; by = 'name'; {MAKE['buffer']}; print(flush=True); input()"
    killed, alive = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", script, cwd=CLIENTS, stdin=-1, stdout=-1)
        for _ in range(2)
    ]
    for process in (killed, alive):
        assert process.stdout is not None
        await process.stdout.readline()
    killed.kill()
    await killed.wait()
    foreign = SHM / f"kvdepot-test-{os.getpid()}"
    foreign.write_bytes(b"not ours")
    assert len(left_by(killed.pid)) == 1
    with SharedBuffer.create(4096), SharedBuffer.create(4096):
        assert left_by(killed.pid) == []
        assert len(left_by(alive.pid)) == 1
        assert len(left_by(os.getpid())) == 2
        assert foreign.exists()
    foreign.unlink()
    await alive.communicate(b"\n")
    assert left_by(alive.pid) == []


def test_buffer_that_was_taken_for_an_orphan_before_it_was_locked_is_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lock, lost = fcntl.flock, list[Path]()

    def taken_once(fd: int, operation: int) -> None:
        if operation == fcntl.LOCK_SH and not lost:
            lost.append(Path(f"/proc/self/fd/{fd}").readlink())
            lost[0].unlink()
        lock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", taken_once)
    with SharedBuffer.create(4096) as buffer:
        assert len(lost) == 1
        assert Path(path_of(buffer.region)).exists()


def test_array_that_is_not_shared_is_refused(by: Any) -> None:
    with SharedBuffer.create(4096) as buffer:
        shared = SharedRegions(by)
        shared.add(buffer)
        with pytest.raises(ValueError, match="SharedBuffer"):
            shared.locate(np.zeros(4))
