"""The processes that benchmarks measure: depots, echoes, and clients that keep a depot busy."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kvdepot import AsyncDepotClient
from kvdepot.cli.processes import Child, child
from kvdepot.v1 import admin_pb2

QUIET = ("--prometheus-port", "0", "--log-level", "warning")  # all that is on by default, but for INFO lines
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A server that listens on a unix socket and on loopback TCP."""

    unix: str
    tcp: str
    pid: int

    def cpu_seconds(self) -> float:
        """Return the CPU time of all its threads so far, user and system."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


@contextmanager
def depot(*flags: str) -> Iterator[Serving]:
    """Run a depot with its defaults, except for INFO lines of its log and the flags."""
    with tempfile.TemporaryDirectory(prefix="kvdepot-") as folder:
        unix = f"unix:{folder}/depot.sock"
        listen = ("--listen", unix, "--listen", "127.0.0.1:0")
        with child("the depot", "-m", "kvdepot", "serve", *listen, *QUIET, *flags) as server:
            said = next(line for line in server.lines() if unix in line)
            server.drain()
            yield Serving(unix=unix, tcp=said.rpartition(" ")[2], pid=server.pid)


@contextmanager
def echo() -> Iterator[Serving]:
    """Run a grpc.aio server that ignores its requests."""
    with tempfile.TemporaryDirectory(prefix="kvdepot-") as folder:
        unix = f"unix:{folder}/echo.sock"
        with child("the echo server", "-m", "benchmarks.echo", unix) as server:
            yield Serving(unix=unix, tcp=next(server.lines()), pid=server.pid)


@contextmanager
def stopped(what: str, module: str, *arguments: str) -> Iterator[Child]:
    """Start a process that works only while it is ``running``. It prints a line when it begins."""
    with child(what, "-m", module, *arguments) as process:
        next(process.lines())
        os.kill(process.pid, signal.SIGSTOP)
        try:
            yield process
        finally:
            os.kill(process.pid, signal.SIGCONT)  # so that it hears that it is to end


@contextmanager
def running(process: Child | None, settle_seconds: float = 0.1) -> Iterator[None]:
    """Let a stopped process run during the block, and shortly before it."""
    if process is None:
        yield
        return
    os.kill(process.pid, signal.SIGCONT)
    time.sleep(settle_seconds)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGSTOP)


async def until_populated(client: AsyncDepotClient) -> None:
    """Wait until L1 is in memory, which a server that has just started sees to in a thread."""
    while (l1 := (await client.get_status()).tiers[0]).populated_bytes < l1.capacity_bytes:  # noqa: ASYNC110 - another process does it
        await asyncio.sleep(0.1)


async def until_available(client: AsyncDepotClient) -> None:
    """Wait until the tier behind L1 can be used."""
    while (await client.get_status()).tiers[1].state != admin_pb2.TIER_STATE_AVAILABLE:  # noqa: ASYNC110 - another process does it
        await asyncio.sleep(0.01)


async def until_written(client: AsyncDepotClient, num_chunks: int) -> None:
    """Wait until the tier behind L1 has got as many chunks."""
    while (await client.get_status()).tiers[1].traffic.num_writes_by_outcome["ok"] < num_chunks:  # noqa: ASYNC110 - another process does it
        await asyncio.sleep(0.01)
