"""Where the tiers of both sides keep chunks: a folder of one disk, and one Redis server."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.peer.setups import TUNED, Setup, Transport
from benchmarks.tier_places import ON_DISK
from tests.servers.valkey import RedisServer, redis_server

DISK_BYTES = 8 << 30  # the warm-up and the rounds write to places that are new, as the peer's files are
QUEUE_BYTES = 2 << 30  # a prompt waits as a whole to be written, and nothing is dropped


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """A store, for the depot and for the peer.

    `count` returns the chunks that the peer has there. `delivered_bytes` returns what the peer's server, a process, has
    received from there so far. `clear` deletes the chunks.
    """

    url: str
    adapter: dict[str, object]
    name: str
    count: Callable[[], int]
    delivered_bytes: Callable[[int], int]
    clear: Callable[[], None]

    @property
    def setup(self) -> Setup:
        """The peer's server with its adapter."""
        flags = (*TUNED.flags, "--l2-adapter", json.dumps(self.adapter))
        return Setup(transport=Transport.ZMQ, tuning=replace(TUNED, name=f"tuned, {self.name}", flags=flags))


@contextmanager
def disk() -> Iterator[Store]:
    """Use a folder. Of the peer's two adapters for files, this one keeps several in flight, and reads with O_DIRECT."""
    with tempfile.TemporaryDirectory(prefix="kvdepot-bench-", dir=ON_DISK) as name:
        folder = Path(name, "peer")
        folder.mkdir()

        def clear() -> None:
            for file in folder.glob("*.data"):
                file.unlink()

        yield Store(
            url=f"disk://{name}/tier?size={DISK_BYTES}&queue={QUEUE_BYTES}",
            adapter={"type": "fs_native", "base_path": str(folder), "use_odirect": True},
            name="fs_native with O_DIRECT",
            count=lambda: len(list(folder.glob("*.data"))),  # files get this name when they are whole
            delivered_bytes=read_bytes,
            clear=clear,
        )


@contextmanager
def valkey() -> Iterator[Store]:
    """Run a Redis server."""
    with tempfile.TemporaryDirectory(prefix="kvdepot-bench-") as name, redis_server(Path(name)) as server:
        yield Store(
            url=f"valkey://127.0.0.1:{server.port}?queue={QUEUE_BYTES}",
            adapter={"type": "resp", "host": "127.0.0.1", "port": server.port},
            name="resp",
            count=lambda: _number_of(server, "DBSIZE"),
            delivered_bytes=lambda pid: sent_bytes(server),
            clear=lambda: _forget(server),
        )


def read_bytes(pid: int) -> int:
    """Return the bytes that a process has read from files so far."""
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["rchar"])


def sent_bytes(server: RedisServer) -> int:
    """Return the bytes that a server has sent so far."""
    stats = server.call("INFO", "stats")
    assert isinstance(stats, bytes)
    fields = dict(line.split(":", 1) for line in stats.decode().splitlines() if ":" in line)
    return int(fields["total_net_output_bytes"])


def _number_of(server: RedisServer, command: str) -> int:
    number = server.call(command)
    assert isinstance(number, int)
    return number


def _forget(server: RedisServer) -> None:
    server.call("FLUSHALL", "SYNC")


STORES = {"disk": disk, "valkey": valkey}
