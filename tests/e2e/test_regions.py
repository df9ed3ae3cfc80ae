"""Attached memory never takes more than the depot has: memory, descriptors, address ranges."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from kvdepot import AsyncDepotClient, DepotError
from kvdepot.layout import layouts
from kvdepot.memory.available import in_machine
from kvdepot.v1.cache_pb2 import KvGroup, MemoryRegion, ProcessFd
from tests.e2e.engines import FAST, SMALL, attach, listening_pid, prompt
from tests.fakes.waiting import eventually

MIB = 1 << 20


@pytest.fixture
def address(start_server_process: Callable[..., str]) -> str:
    return start_server_process("--chunk-size", "16", "--l1-size", "64MiB")


@pytest.fixture
async def client(address: str) -> AsyncIterator[AsyncDepotClient]:
    async with AsyncDepotClient(address) as client:
        yield client


@pytest.fixture
def memfd() -> Iterator[int]:
    fd = os.memfd_create("engine")
    yield fd
    os.close(fd)


@pytest.fixture
def limited_group(address: str) -> Iterator[Path]:
    """A control group of 512 MiB with the depot in it, inside of one without a limit."""
    for root, limit_name in ((Path("/sys/fs/cgroup"), "memory.max"), (Path("/sys/fs/cgroup/memory"), "")):
        outer = root / f"kvdepot-test-{os.getpid()}"
        inner = outer / "depot"
        try:
            inner.mkdir(parents=True)
            limit = inner / (limit_name or "memory.limit_in_bytes")
            if not limit.exists():
                raise FileNotFoundError(limit)
            limit.write_text(str(512 * MIB))
            (inner / "cgroup.procs").write_text(str(listening_pid(address)))
            break
        except OSError as error:
            problem = error
            for folder in (inner, outer):
                if folder.is_dir():
                    folder.rmdir()
    else:
        pytest.skip(f"a control group can't be made here: {problem}")
    yield inner
    for pid in (inner / "cgroup.procs").read_text().split():
        (root / "cgroup.procs").write_text(pid)
    for folder in (inner, outer):
        folder.rmdir()


def groups() -> list[KvGroup]:
    return [layouts.NL_X_TWO_NB_BS_NH_HS.from_shape(SMALL.shape)]


def region(fd: int) -> MemoryRegion:
    return MemoryRegion(size_bytes=os.fstat(fd).st_size, process_fd=ProcessFd(pid=os.getpid(), fd=fd))


def num_open(pid: int, name: str) -> int:
    """Count a process's descriptors of objects of this name."""
    return sum(name in str(entry.readlink()) for entry in list(Path(f"/proc/{pid}/fd").iterdir()) if entry.is_symlink())


def num_mapped(pid: int, name: str) -> int:
    return Path(f"/proc/{pid}/maps").read_text().count(name)


async def assert_refused(client: AsyncDepotClient, memfd: int, limit: str) -> None:
    """Check that the memory is refused with both numbers, has no pages, and another engine is served."""
    with pytest.raises(DepotError) as refused:
        await client.attach(instance_id="sparse", model_name="model", groups=groups(), regions=[region(memfd)])
    assert (refused.value.code.name, refused.value.reason) == ("FAILED_PRECONDITION", "REGION_UNAVAILABLE")
    assert f"{os.fstat(memfd).st_size / (1 << 30):,.1f} GiB of memory are needed, {limit}" in refused.value.message
    assert os.fstat(memfd).st_blocks == 0
    other = await attach(client, *FAST, instance_id="other")
    kv = other.kv(1024, seed=1)
    await other.store("s", prompt(1024), kv)
    assert await other.holds("s", prompt(1024), kv) == 1024
    await other.close()


async def test_a_sparse_region_larger_than_the_free_memory_is_refused(
    client: AsyncDepotClient, address: str, memfd: int
) -> None:
    os.ftruncate(memfd, in_machine().limit_bytes)
    await assert_refused(client, memfd, "the machine has ")
    assert num_open(listening_pid(address), "memfd:engine") == 0


async def test_a_sparse_region_larger_than_a_control_group_is_refused(
    client: AsyncDepotClient, memfd: int, limited_group: Path
) -> None:
    os.ftruncate(memfd, 1024 * MIB)
    await assert_refused(client, memfd, f"the cgroup {limited_group} has ")


async def test_pages_that_the_engine_has_touched_need_no_memory(
    client: AsyncDepotClient, memfd: int, limited_group: Path
) -> None:
    os.posix_fallocate(memfd, 0, 1024 * MIB)
    attachment = await client.attach(
        instance_id="whole", model_name="model", groups=groups(), regions=[region(memfd)], timeout_seconds=60
    )
    await attachment.close()


async def test_a_thousand_regions_of_one_object_are_one(client: AsyncDepotClient, address: str, memfd: int) -> None:
    os.ftruncate(memfd, MIB)
    pid = listening_pid(address)
    attachment = await client.attach(
        instance_id="many", model_name="model", groups=groups(), regions=[region(memfd)] * 1000
    )
    assert (num_open(pid, "memfd:engine"), num_mapped(pid, "memfd:engine")) == (1, 1)
    await attachment.close()
    await eventually(lambda: (num_open(pid, "memfd:engine"), num_mapped(pid, "memfd:engine")) == (0, 0))


async def test_an_attach_that_fails_half_way_leaves_nothing_open(
    client: AsyncDepotClient, address: str, memfd: int
) -> None:
    os.ftruncate(memfd, MIB)
    missing = MemoryRegion(size_bytes=MIB, process_fd=ProcessFd(pid=os.getpid(), fd=1 << 20))
    pid = listening_pid(address)
    with pytest.raises(DepotError, match=r"Bad file descriptor|No such file"):
        await client.attach(
            instance_id="half", model_name="model", groups=groups(), regions=[*[region(memfd)] * 100, missing]
        )
    assert (num_open(pid, "memfd:engine"), num_mapped(pid, "memfd:engine")) == (0, 0)
