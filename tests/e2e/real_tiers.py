"""Real servers and folders behind a depot, each as the URL of a tier, with what a test does to it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Protocol
from urllib.parse import urlencode

import pytest

from service.l1.keys import ChunkKey
from service.server import Server
from service.tiers import tier as tiers
from service.tiers.record import RECORD_BYTES
from service.tiers.snapshot import TierState
from service.tiers.store import Place
from tests.e2e.engines import Site
from tests.fakes.mooncake import Master, Node, skip_without_mooncake
from tests.fakes.waiting import eventually
from tests.servers.s3 import BUCKET, S3Server, s3_server
from tests.servers.valkey import RedisServer, redis_server
from tests.service.tiers.stores.mooncake_kind import MooncakeUnderTest


class RealTier(Protocol):
    """A place of chunks outside the depot. `url` is its address."""

    url: str

    def flip_bit(self, server: Server, key: ChunkKey, at_bytes: int) -> None:
        """Change a bit of the bytes of a chunk."""

    def paused(self, server: Server) -> AbstractContextManager[None]:
        """Stop what answers, during the block: the server, or for a disk the I/O workers."""

    def dead(self) -> AbstractContextManager[None]:
        """Kill the server, during the block, if there is one. It forgets all chunks."""


class Disk:
    """A folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "disk"
        self.url = f"disk://{self._folder}?size=256MiB"

    def flip_bit(self, server: Server, key: ChunkKey, at_bytes: int) -> None:
        """Change a bit in the file. The page cache must not have the page: the depot does not read through it."""
        index = tier_of(server)._index
        place = index.get(key) if index is not None else None
        assert place is not None
        with (self._folder / "chunks").open("r+b") as file:
            file.seek(place.offset_bytes + at_bytes)
            [old] = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([old ^ 1]))
            file.flush()
            os.fsync(file.fileno())

    @contextmanager
    def paused(self, server: Server) -> Iterator[None]:
        """Stop all I/O workers."""
        for pid in io_workers(server):
            os.kill(pid, signal.SIGSTOP)
        yield

    def dead(self) -> AbstractContextManager[None]:
        """Do nothing."""
        return nullcontext()


class Valkey:
    """A server of Redis."""

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self.url = f"valkey://127.0.0.1:{server.port}"

    def flip_bit(self, server: Server, key: ChunkKey, at_bytes: int) -> None:
        """Change a bit of the value."""
        name, offset = b"kvdepot:" + key.hex().encode(), RECORD_BYTES + at_bytes
        old = self._server.call("GETRANGE", name, offset, offset)
        assert isinstance(old, bytes)
        self._server.call("SETRANGE", name, offset, bytes([old[0] ^ 1]))

    def paused(self, server: Server) -> AbstractContextManager[None]:
        """Stop the server."""
        return self._server.paused()

    def dead(self) -> AbstractContextManager[None]:
        """Kill the server."""
        return self._server.dead()


class S3:
    """A server of S3."""

    def __init__(self, server: S3Server, folder: Path) -> None:
        self._server = server
        file = folder / "credentials"
        file.write_text("[default]\naws_access_key_id = key\naws_secret_access_key = secret\n")
        file.chmod(0o600)
        options = {"endpoint": server.endpoint, "region": "us-east-1", "credentials_file": str(file)}
        self.url = f"s3://{BUCKET}/some/prefix?{urlencode(options)}"

    def flip_bit(self, server: Server, key: ChunkKey, at_bytes: int) -> None:
        """Change a bit of the object."""
        name = f"some/prefix/{key.hex()[:2]}/{key.hex()}"
        data = bytearray(self._server.request("GET", name))
        data[RECORD_BYTES + at_bytes] ^= 1
        self._server.request("PUT", name, bytes(data))

    def paused(self, server: Server) -> AbstractContextManager[None]:
        """Stop the server."""
        return self._server.paused()

    def dead(self) -> AbstractContextManager[None]:
        """Kill the server."""
        return self._server.dead()


class Mooncake:
    """A master, and a node that lends its memory to it."""

    def __init__(self, master: Master) -> None:
        self._master = master
        self._changed = MooncakeUnderTest(master)
        self.url = f"mooncake://127.0.0.1:{master.port}?segment=64MiB"

    def flip_bit(self, server: Server, key: ChunkKey, at_bytes: int) -> None:
        """Change a bit of the value."""
        self._changed.flip_bit(Place(key), at_bytes)

    def paused(self, server: Server) -> AbstractContextManager[None]:
        """Stop the master."""
        return self._master.paused()

    def dead(self) -> AbstractContextManager[None]:
        """Kill the master."""
        return self._master.dead()


@contextmanager
def disk(folder: Path) -> Iterator[RealTier]:
    """Use a folder."""
    yield Disk(folder)


@contextmanager
def valkey(folder: Path) -> Iterator[RealTier]:
    """Run a server."""
    with redis_server(folder) as server:
        yield Valkey(server)


@contextmanager
def s3(folder: Path) -> Iterator[RealTier]:
    """Run a server."""
    with s3_server(folder) as server:
        yield S3(server, folder)


@contextmanager
def mooncake(folder: Path) -> Iterator[RealTier]:
    """Run a master, and a node besides the depots."""
    skip_without_mooncake()
    master = Master(folder / "master.log")
    node = Node(master, "256MiB")
    try:
        yield Mooncake(master)
    finally:
        node.kill()
        master.end()


KINDS: dict[str, Callable[[Path], AbstractContextManager[RealTier]]] = {
    "disk": disk,
    "valkey": valkey,
    "s3": s3,
    "mooncake": mooncake,
}
each_tier = pytest.mark.parametrize("kind", list(KINDS))


def tier_of(server: Server) -> tiers.Tier:
    """Return the only tier of a depot."""
    [tier] = server.depots.tiers
    assert isinstance(tier, tiers.Tier)
    return tier


async def available(server: Server) -> tiers.Tier:
    """Wait until the only tier of a depot can be used, and return it."""
    tier = tier_of(server)
    await eventually(lambda: tier.snapshot().state is TierState.AVAILABLE)
    return tier


async def all_written(site: Site) -> None:
    """Wait until a depot has written all that waited for that."""
    tier = tier_of(site.server)
    await eventually(
        lambda: not tier.snapshot().queued_writes and not any(each.num_readers for each in site.depot.index.chunks())
    )


def io_workers(server: Server) -> list[int]:
    """Return the processes of a tier's I/O workers."""
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = [int(pid) for each in children for pid in each.read_text().split()]
    return [pid for pid in pids if b"io_worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def zombies() -> list[int]:
    """Return the children of this process that are dead and not reaped."""
    children = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    pids = [int(pid) for each in children for pid in each.read_text().split()]
    return [pid for pid in pids if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"]
