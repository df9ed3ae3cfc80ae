"""``python -m benchmarks.telemetry``: what watching costs, on its own and in the latency of a Lookup."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass

import grpc
import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks import bus, l0
from benchmarks.timing import seconds_of
from kvdepot import AsyncDepotClient, KvShape, layouts
from kvdepot.v1 import cache_pb2
from service.commands.processes import Child, child, server_process

TOKENS = 4_096
ROUNDS = 9
ROUND_SECONDS = 1.5
FLOOD_BLOCKS_PER_SECOND = 100_000
TINY = KvShape(num_layers=1, num_blocks=1, block_size=16, num_heads=1, head_size=1, dtype="uint8")
OFF = "--disable-observability"
ON = ("--prometheus-port", "0", "--log-level", "warning")


class Prober:
    """Looks a stored prompt up, again and again, and remembers how long each took."""

    def __init__(self, channel: grpc.aio.Channel, request: cache_pb2.LookupRequest) -> None:
        self._lookup: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/kvdepot.v1.CacheService/Lookup"
        )
        self._request = request.SerializeToString()
        self.p50_ms: list[float] = []
        self.p99_ms: list[float] = []

    @classmethod
    async def open(cls, stack: AsyncExitStack, address: str) -> Prober:
        """A depot's prober, with the prompt stored."""
        client = await stack.enter_async_context(AsyncDepotClient(address))
        groups = [layouts.NL_X_TWO_NB_BS_NH_HS.without_memory(TINY)]
        attachment = await stack.enter_async_context(
            await client.attach(instance_id="bench", model_name="tiny", groups=groups)
        )
        prompt = np.arange(TOKENS, dtype=np.uint32)
        num_chunks = TOKENS // attachment.chunk_size
        await attachment.store_inline("s", prompt, bytes(attachment.chunk_bytes * num_chunks))
        request = cache_pb2.LookupRequest(instance_id="bench", session_id="s")
        request.prefix.token_ids.extend(prompt.tolist())
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        return cls(channel, request)

    async def round(self) -> None:
        """One round of calls, one after the other."""
        seconds: list[float] = []
        begin = time.perf_counter()
        while time.perf_counter() < begin + ROUND_SECONDS:
            seconds.append(await seconds_of(self._lookup(self._request)))
        percentiles = statistics.quantiles(seconds, n=100)
        self.p50_ms.append(percentiles[49] * 1e3)
        self.p99_ms.append(percentiles[98] * 1e3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A server that is asked, and the process that floods it with reports at the same time, if any does."""

    name: str
    address: str
    flood: Child | None = None


async def measure_lookups(cases: Sequence[Case], table: Table) -> None:
    """One case after the other, over and over: p50 and p99 of each, medians of the rounds; the first is the limit."""
    async with AsyncExitStack() as stack:
        probers = [await Prober.open(stack, case.address) for case in cases]
        for _ in range(ROUNDS):
            for case, prober in zip(cases, probers, strict=True):
                with running(case.flood):
                    await prober.round()
    p50s = [statistics.median(prober.p50_ms) for prober in probers]
    p99s = [statistics.median(prober.p99_ms) for prober in probers]
    for case, p50, p99 in zip(cases, p50s, p99s, strict=True):
        table.add_row(
            f"Lookup hit, {TOKENS:,} tokens, {case.name}",
            f"p50 {p50:.2f} ms, p99 {p99:.2f} ms",
            f"p50 {p50s[0]:.2f} ms, p99 {p99s[0]:.2f} ms, {cases[0].name}",
            f"{p50 / p50s[0]:.2f}, {p99 / p99s[0]:.2f}",
        )


@contextmanager
def running(process: Child | None) -> Iterator[None]:
    """Lets a process run that is stopped outside of the block."""
    if process is None:
        yield
        return
    os.kill(process.pid, signal.SIGCONT)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGSTOP)


@contextmanager
def flooding(address: str) -> Iterator[Child]:
    """A process that reports as fast as asked for; it is stopped but for the time that it is ``running``."""
    with child("the flood", "-m", "benchmarks.flood", address, str(FLOOD_BLOCKS_PER_SECOND)) as flood:
        next(flood.lines())
        os.kill(flood.pid, signal.SIGSTOP)
        try:
            yield flood
        finally:
            os.kill(flood.pid, signal.SIGCONT)  # so that it hears that it is to end


def main() -> None:
    """Start the servers, measure, print the table."""
    table = Table("what", "kvdepot", "limit or goal", "ratio", title="What watching costs")
    uvloop.run(bus.measure(table))
    l0.measure(table)
    with ExitStack() as stack:
        off, on, off_flooded, on_flooded = (
            stack.enter_context(server_process("--l1-size", "64MiB", *flags)) for flags in ((OFF,), ON, (OFF,), ON)
        )
        uvloop.run(
            measure_lookups(
                (
                    Case(name="telemetry off", address=off),
                    Case(name="on", address=on),
                    Case(name="off, flooded", address=off_flooded, flood=stack.enter_context(flooding(off_flooded))),
                    Case(name="on, flooded", address=on_flooded, flood=stack.enter_context(flooding(on_flooded))),
                ),
                table,
            )
        )
    Console(width=120).print(table)
    print(f"flooded: with reports of {FLOOD_BLOCKS_PER_SECOND:,} blocks/s")


if __name__ == "__main__":
    main()
