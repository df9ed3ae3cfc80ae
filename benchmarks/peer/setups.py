"""Setups of the peer: its server and an engine of it, as documented and tuned."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from benchmarks.peer import shapes
from benchmarks.peer.processes import Driver, Process

START_SECONDS = 120.0
L1_GB = 2.5
PRIVATE = {"LMCACHE_TRACK_USAGE": "false", "DO_NOT_TRACK": "1"}  # nothing is sent to a third party


class Transport(StrEnum):
    """The transport of requests."""

    ZMQ = "ZMQ"
    GRPC = "gRPC"


SCHEMES = {Transport.ZMQ: "tcp", Transport.GRPC: "grpc"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """Settings that a setup adds to those of every CPU: flags of the server, the environment of server and engine."""

    name: str
    flags: tuple[str, ...]
    variables: Mapping[str, str]


STOCK = Tuning(name="stock", flags=(), variables={})
# More CPU workers and fewer gRPC workers were tried, and change nothing.
TUNED = Tuning(
    name="tuned",
    flags=("--disable-observability",),
    variables={
        "LMCACHE_LOG_LEVEL": "ERROR",
        # Its temporary tensors stay in the heap, and so cost no page faults.
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
        # Its OpenMP threads ask 1,000 times, not 300,000, whether the others are done before they sleep: as quick on a
        # quiet machine, and ten times quicker on a busy one.
        "GOMP_SPINCOUNT": "1000",
    },
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """One way to run the peer."""

    transport: Transport
    tuning: Tuning

    def __str__(self) -> str:
        return f"LMCache over {self.transport}, {self.tuning.name}"

    @property
    def variables(self) -> dict[str, str]:
        """The environment of server and engine."""
        return {**PRIVATE, **self.tuning.variables}


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """The peer's server. `url` is its address."""

    url: str
    pid: int


@contextmanager
def server(setup: Setup) -> Iterator[Serving]:
    """Run LMCache's server for engines on a CPU.

    Raises:
        PeerFailed: it did not start.
    """
    port, metrics_port = _free_ports(2)
    arguments = [
        *("-m", "lmcache.v1.multiprocess.server", "--host", "127.0.0.1", "--port", str(port)),
        *("--transport", setup.transport.lower(), "--prometheus-port", str(metrics_port)),
        *("--chunk-size", str(shapes.CHUNK_SIZE), "--eviction-policy", "LRU"),
        # Shared memory is off by default, and excludes memory that is made on demand.
        *("--supported-transfer-mode", "engine_driven", "--shm-name", f"bench-{port}"),
        *("--no-l1-use-lazy", "--l1-size-gb", str(L1_GB)),
        *setup.tuning.flags,
    ]
    process = Process(str(setup), *arguments, variables=setup.variables, answers=False)
    try:
        process.until_listening(port, START_SECONDS)
        yield Serving(url=f"{SCHEMES[setup.transport]}://127.0.0.1:{port}", pid=process.pid)
    finally:
        process.end()
        Path("/dev/shm", f"lmcache_l1_pool_bench-{port}").unlink(missing_ok=True)


@contextmanager
def driver(setup: Setup, url: str, module: str = "benchmarks.peer.driver") -> Iterator[Driver]:
    """Run an engine of that server. The module defines the commands that it takes.

    Raises:
        PeerFailed: it did not reach the server.
    """
    arguments = ("-m", module, url)
    process = Process(f"the engine of {setup}", *arguments, variables=setup.variables, answers=True)
    try:
        process.line(START_SECONDS)
        yield Driver(process)
    finally:
        process.end()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as sockets:
        bound = [sockets.enter_context(socket.socket()) for _ in range(count)]
        for each in bound:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in bound]
