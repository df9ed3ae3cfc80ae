"""Memory that is shared is seen by another process as the engine sees it, and nothing of it is left behind."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kvdepot import SharedBuffer, SharedRegions
from kvdepot.layout import layouts
from kvdepot.v1 import cache_pb2
from tests.clients.conftest import until

SHM = Path("/dev/shm")
CLIENTS = Path(__file__).parents[3] / "clients" / "python"

READ = "import sys; sys.stdout.buffer.write(open(sys.argv[1], 'rb').read())"
WRITE = "import sys; f = open(sys.argv[1], 'r+b'); f.seek(int(sys.argv[2])); f.write(sys.argv[3].encode()); f.close()"


@pytest.fixture(params=["name", "fd"])
def by(request: pytest.FixtureRequest) -> Any:
    return request.param


def left_by(pid: int) -> list[Path]:
    """What a process has left in /dev/shm."""
    return [path for path in SHM.iterdir() if path.name.startswith((f"kvdepot-{pid}-", f"torch_{pid}_"))]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert left_by(os.getpid()) == []


@pytest.fixture
def full_shm(monkeypatch: pytest.MonkeyPatch) -> int:
    """Leave three blocks in /dev/shm, and return a size that is too large."""
    space = os.statvfs(SHM)
    full = os.statvfs_result((*space[:4], 3, *space[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    return 4 * space.f_frsize


def path_of(region: cache_pb2.MemoryRegion) -> str:
    if region.HasField("posix_shm"):
        assert "/" not in region.posix_shm.name
        return f"/dev/shm/{region.posix_shm.name}"
    return f"/proc/{region.process_fd.pid}/fd/{region.process_fd.fd}"


def in_another_process(script: str, *args: Any) -> bytes:
    command = [sys.executable, "-c", script, *map(str, args)]
    return subprocess.run(command, cwd=CLIENTS, check=True, capture_output=True, timeout=60).stdout


def filled(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7)).to(dtype)


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


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
    script = f"import os, kvdepot; by = {how!r}; {MAKE[what]}; print(os.getpid())"
    assert left_by(int(in_another_process(script))) == []


@pytest.mark.parametrize(("what", "how"), [("buffer", "fd"), ("tensor", "name")])
async def test_killed_process_leaves_nothing(what: str, how: str) -> None:
    script = f"import kvdepot; by = {how!r}; {MAKE[what]}; print(flush=True); input()"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, cwd=CLIENTS, stdin=-1, stdout=-1)
    assert process.stdout is not None
    await process.stdout.readline()
    assert len(left_by(process.pid)) == (how == "name")
    process.kill()
    await process.wait()
    await until(lambda: left_by(process.pid) == [])


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
    lock, lost = fcntl.flock, []

    def taken_once(fd: int, operation: int) -> None:
        if operation == fcntl.LOCK_SH and not lost:
            lost.append(Path(f"/proc/self/fd/{fd}").readlink())
            lost[0].unlink()
        lock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", taken_once)
    with SharedBuffer.create(4096) as buffer:
        assert len(lost) == 1
        assert Path(path_of(buffer.region)).exists()


def test_another_process_sees_the_bytes_of_a_tensor_and_its_exact_size(by: Any) -> None:
    tensor = filled(7, 33)
    expected = bytes_of(tensor)
    shared = SharedRegions(by)
    assert shared.regions == ()
    region, offset = shared.locate(tensor)
    assert region == 0
    path = path_of(shared.regions[0])
    assert shared.regions[0].size_bytes == Path(path).stat().st_size
    assert bytes_of(tensor) == expected
    assert in_another_process(READ, path)[offset:] == expected
    in_another_process(WRITE, path, offset + 8, "four")
    assert bytes_of(tensor)[8:12] == b"four"


def test_views_of_one_storage_are_one_region_and_stay_views(by: Any) -> None:
    whole = filled(4, 6, 8)
    first, last = whole[0], whole[3, 2:]
    shared = SharedRegions(by)
    region, offset = shared.locate(last)
    assert shared.locate(first) == (region, offset - (3 * 6 + 2) * 8 * 4)
    assert shared.locate(whole) == shared.locate(first)
    assert len(shared.regions) == 1
    last.zero_()
    assert not whole[3, 2:].any()
    assert in_another_process(READ, path_of(shared.regions[0]))[offset : offset + 128] == bytes(128)


def test_storages_are_regions_of_their_own(by: Any) -> None:
    tensors = [filled(16), filled(16), filled(16)]
    shared = SharedRegions(by)
    assert [shared.locate(tensor)[0] for tensor in tensors] == [0, 1, 2]
    assert [shared.locate(tensor)[0] for tensor in reversed(tensors)] == [2, 1, 0]
    assert len({path_of(region) for region in shared.regions}) == 3


def test_regions_outlive_the_tensors_until_the_collector_goes(by: Any) -> None:
    shared = SharedRegions(by)
    tensor = filled(16)
    shared.locate(tensor)
    path = Path(path_of(shared.regions[0]))
    del tensor
    assert path.exists()
    del shared
    assert not path.exists()


def test_tensor_that_another_way_of_sharing_holds_already_is_located_too(by: Any) -> None:
    tensor = filled(64)
    expected = bytes_of(tensor)
    tensor.share_memory_()
    SharedRegions("name" if by == "fd" else "fd").locate(tensor)
    shared = SharedRegions(by)
    region, offset = shared.locate(tensor)
    assert in_another_process(READ, path_of(shared.regions[region]))[offset:] == expected


def test_tensor_in_a_buffer_is_not_moved(by: Any) -> None:
    with SharedBuffer.create(4096) as buffer:
        tensor = torch.from_numpy(buffer.view(np.float32, (4, 4), offset_bytes=64))
        shared = SharedRegions(by)
        shared.add(buffer)
        assert shared.locate(tensor[1]) == (0, 64 + 16)
        assert shared.regions == (buffer.region,)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float8_e4m3fn])
def test_vllm_views_of_one_allocation_are_found_by_another_process(dtype: torch.dtype, by: Any) -> None:
    num_layers, num_blocks, num_heads, block_size, head_size = 2, 3, 2, 4, 6
    element_bytes = dtype.itemsize
    backing = torch.randint(-128, 128, (2 * 3 * 2 * 4 * 12 * element_bytes,), dtype=torch.int8)
    views = list(
        backing.view(dtype).view(num_layers, num_blocks, block_size, num_heads, 2 * head_size).permute(0, 1, 3, 2, 4)
    )
    shared = SharedRegions(by)
    group = layouts.VLLM.from_tensors(views, shared)
    assert len(shared.regions) == 1
    assert group.dtype == str(dtype).removeprefix("torch.")
    memory = in_another_process(READ, path_of(shared.regions[0]))
    for plane, block, token, head in product(group.planes, range(num_blocks), range(block_size), range(num_heads)):
        start = plane.offset_bytes + block * group.block_stride_bytes
        start += token * group.token_stride_bytes + head * group.head_stride_bytes
        half = plane.kind == cache_pb2.PLANE_KIND_V
        expected = views[plane.layer][block, head, token].view(2, head_size)[int(half)]
        assert memory[start : start + group.head_bytes] == bytes_of(expected)


def test_groups_of_a_hybrid_model_share_regions(by: Any) -> None:
    backing = torch.zeros(2, 4, 1024)
    full = [backing[0].view(4, 2, 8, 4, 16), backing[1].view(4, 2, 8, 4, 16)]
    window = [torch.zeros(2, 16, 8, 1, 16)]
    shared = SharedRegions(by)
    groups = [
        layouts.NL_X_NB_TWO_BS_NH_HS.from_tensors(full, shared),
        layouts.NL_X_TWO_NB_BS_NH_HS.from_tensors(window, shared),
    ]
    assert len(shared.regions) == 2
    assert [{plane.region for plane in group.planes} for group in groups] == [{0}, {1}]


def test_array_that_is_not_shared_is_refused(by: Any) -> None:
    with SharedBuffer.create(4096) as buffer:
        shared = SharedRegions(by)
        shared.add(buffer)
        with pytest.raises(ValueError, match="SharedBuffer"):
            shared.locate(np.zeros(4))


def test_tensor_of_a_device_is_refused(by: Any) -> None:
    with pytest.raises(ValueError, match="meta"):
        SharedRegions(by).locate(torch.zeros(4, device="meta"))


def test_storage_that_does_not_fit_is_refused_before_it_is_moved(by: Any, full_shm: int) -> None:
    tensor = torch.zeros(full_shm)
    with pytest.raises(OSError, match="has space for"):
        SharedRegions(by).locate(tensor)
    assert not tensor.is_shared()
