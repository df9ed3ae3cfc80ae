"""An engine takes its memory away while the depot copies: the call fails, its attachment ends, others go on."""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvdepot import AsyncDepotClient, DepotError, KvShape, SharedBuffer, SharedRegions
from kvdepot.v1.cache_pb2 import MemoryRegion, ProcessFd
from tests.e2e.engines import FAST, SLOW, SLOW_TOKENS, SMALL, Engine, attach, prompt, refused
from tests.fakes.paged import Group, PagedBuffer, SharedPagedBuffer, region_sizes
from tests.fakes.waiting import eventually

LARGE = Group(
    "NL_X_TWO_NB_BS_NH_HS",
    KvShape(num_layers=2, num_blocks=64, block_size=16, num_heads=8, head_size=32, dtype="uint16"),
)
"""Runs of 8 KiB; the runs of SMALL have 192 bytes."""

PUNCH_HOLE, KEEP_SIZE = 2, 1
WITHOUT_COMPILER = """
import kernels.host.streaming_copy

def built_library():
    raise OSError("there is no C compiler")

kernels.host.streaming_copy.built_library = built_library
"""


@pytest.fixture(params=["compiled", "system"])
def address(
    request: pytest.FixtureRequest,
    start_server_process: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> str:
    """A depot in a process of its own, on a machine with a compiler or without one."""
    if request.param == "system":
        (tmp_path / "sitecustomize.py").write_text(WITHOUT_COMPILER)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return start_server_process("--chunk-size", "16", "--l1-size", "64MiB", "--transfer-threads", "1")


@pytest.fixture
async def client(address: str) -> AsyncIterator[AsyncDepotClient]:
    async with AsyncDepotClient(address) as client:
        yield client


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "tmpfs"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"a tmpfs can't be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


class FileBuffer(SharedPagedBuffer):
    """A paged buffer in a file, which is attached through a descriptor of this process."""

    def __init__(self, groups: Sequence[Group], fd: int) -> None:
        (size_bytes,) = region_sizes(groups, region_for_each_tensor=False)
        os.posix_fallocate(fd, 0, size_bytes)
        array = np.frombuffer(mmap.mmap(fd, size_bytes), np.uint8)
        region = MemoryRegion(size_bytes=size_bytes, process_fd=ProcessFd(pid=os.getpid(), fd=fd))
        self.fd = fd
        self.buffers = [SharedBuffer(array, region, fd, None)]
        PagedBuffer.__init__(self, groups, [array])
        self.shared = SharedRegions()
        self.shared.add(self.buffers[0])

    def punch_hole(self) -> None:
        """Give all pages back, and keep the size. An access to the array is a SIGBUS then, if no pages are free."""
        libc = ctypes.CDLL(None, use_errno=True)
        size_bytes = ctypes.c_long(os.fstat(self.fd).st_size)
        assert libc.fallocate(self.fd, PUNCH_HOLE | KEEP_SIZE, ctypes.c_long(0), size_bytes) == 0


def fill_up(folder: Path) -> None:
    """Leave no page free in a file system."""
    with (folder / "filling").open("wb", buffering=0) as filling, suppress(OSError):
        while True:
            filling.write(bytes(mmap.PAGESIZE))


def nameless_file() -> int:
    return os.open("/dev/shm", os.O_RDWR | os.O_TMPFILE, 0o600)


async def attach_file(client: AsyncDepotClient, group: Group, path: Path) -> tuple[FileBuffer, Engine]:
    buffer = FileBuffer([group], os.open(path, os.O_RDWR | os.O_CREAT))
    attachment = await client.attach(
        instance_id="victim", model_name="model", groups=buffer.described(), regions=buffer.shared.regions
    )
    return buffer, Engine(buffer, attachment)


async def assert_only_the_victim_is_gone(client: AsyncDepotClient, victim: Engine, other: Engine) -> None:
    """Check that the depot has nothing of the victim, and serves the other engine with the right bytes."""
    reason = await victim.attachment.wait_lost(10)
    assert reason is not None
    assert reason.reason == "REGION_UNAVAILABLE"
    with refused("NOT_FOUND", "INSTANCE_NOT_FOUND"):
        await victim.attachment.lookup("s", prompt(64))

    async def nothing_is_held() -> bool:
        status = await client.get_status()
        tier = status.tiers[0]
        return (status.num_instances, status.num_leases, tier.num_protected_chunks) == (1, 0, 0)

    await other.end_session("s")
    await eventually(nothing_is_held)
    kv = other.kv(256, seed=77)
    assert (await other.store("after", prompt(256, seed=77), kv)).stored_tokens == 256
    assert await other.holds("after", prompt(256, seed=77), kv) == 256


@pytest.mark.parametrize("group", [SMALL, LARGE], ids=["short-runs", "long-runs"])
async def test_a_hole_that_cannot_be_filled_fails_the_store_and_stores_nothing(
    client: AsyncDepotClient, small_tmpfs: Path, group: Group
) -> None:
    buffer, victim = await attach_file(client, group, small_tmpfs / "victim")
    other = await attach(client, group, instance_id="other")
    stored = victim.kv(64, seed=1)
    await victim.store("s", prompt(64), stored)
    tables = victim.tables(64)
    buffer.punch_hole()
    fill_up(small_tmpfs)
    with refused("FAILED_PRECONDITION", "REGION_UNAVAILABLE"):
        await victim.attachment.store("s", prompt(64, seed=2), tables)
    assert await other.holds("s", prompt(64, seed=2), other.kv(64, seed=2)) == 0
    assert await other.holds("s", prompt(64), stored) == 64
    await assert_only_the_victim_is_gone(client, victim, other)
    await other.close()


@pytest.mark.parametrize("group", [SMALL, LARGE], ids=["short-runs", "long-runs"])
async def test_a_hole_that_cannot_be_filled_fails_the_retrieve_and_leaves_the_chunks(
    client: AsyncDepotClient, small_tmpfs: Path, group: Group
) -> None:
    buffer, victim = await attach_file(client, group, small_tmpfs / "victim")
    other = await attach(client, group, instance_id="other")
    kv = other.kv(64, seed=1)
    await other.store("s", prompt(64), kv)
    found = await victim.lookup("s", prompt(64))
    tables = victim.tables(64)
    buffer.punch_hole()
    fill_up(small_tmpfs)
    with refused("FAILED_PRECONDITION", "REGION_UNAVAILABLE"):
        await victim.attachment.retrieve("s", found.lease, tables)
    assert await other.holds("s", prompt(64), kv) == 64
    await assert_only_the_victim_is_gone(client, victim, other)
    await other.close()


@pytest.mark.parametrize("direction", ["store", "retrieve"])
@pytest.mark.parametrize("kind", ["memfd", "file"])
async def test_memory_that_shrinks_during_a_copy_fails_the_call(
    client: AsyncDepotClient, kind: str, direction: str
) -> None:
    other = await attach(client, *FAST, instance_id="other")
    tokens, kv = prompt(SLOW_TOKENS), other.kv(SLOW_TOKENS, seed=1)
    if direction == "retrieve":
        await other.store("s", tokens, kv)

    async def is_copying() -> bool:
        ranks = [each.ranks[0] for each in (await client.list_instances()).instances if each.instance_id == "victim"]
        return bool(ranks and ranks[0].num_transfers)

    async def shrink_during_a_copy() -> tuple[Engine, DepotError | None]:
        """Return the error of the call, or None if all was copied before."""
        fd = os.memfd_create("victim") if kind == "memfd" else nameless_file()
        buffer = FileBuffer(SLOW, fd)
        attachment = await client.attach(
            instance_id="victim", model_name="model", groups=buffer.described(), regions=buffer.shared.regions
        )
        victim = Engine(buffer, attachment)
        tables = [np.random.default_rng(1).permutation(SLOW_TOKENS) for _ in SLOW]
        if direction == "retrieve":
            lease = (await victim.lookup("s", tokens)).lease
            call: asyncio.Task[Any] = asyncio.create_task(attachment.retrieve("s", lease, tables))
        else:
            call = asyncio.create_task(attachment.store("s", tokens, tables))
        while not call.done() and not await is_copying():
            pass
        os.ftruncate(fd, 0)
        try:
            await call
        except DepotError as error:
            return victim, error
        await victim.attachment.close()
        await client.clear_cache()
        return victim, None

    for _ in range(50):
        victim, error = await shrink_during_a_copy()
        if error is not None:
            break
    assert error is not None, "all copies were quicker than this test"
    assert (error.code.name, error.reason) == ("FAILED_PRECONDITION", "REGION_UNAVAILABLE")
    assert await other.holds("s", tokens, kv) == (SLOW_TOKENS if direction == "retrieve" else 0)
    await assert_only_the_victim_is_gone(client, victim, other)
    await other.close()
