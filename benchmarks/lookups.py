"""Lookups per second, compared with an echo of the same message: hits, misses, prompt lengths, numbers of clients."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import grpc
import numpy as np

from benchmarks import servers
from benchmarks.figures import Figure, Goal
from benchmarks.probing import GROUPS
from benchmarks.timing import seconds_of
from kvdepot import AsyncDepotClient, requests

SHORT, LONG = 4_096, 131_072
CLIENTS = (1, 4, 16)
ROUNDS = 5
ROUND_SECONDS = 0.7
ENOUGH = Goal(at_least=0.7)

Method: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"


@dataclass(slots=True)
class Rounds:
    """The measurements of one server, one for each round."""

    rate: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)

    async def measure(
        self, call: Callable[[bytes], Awaitable[bytes]], request: bytes, num_clients: int, server: servers.Serving
    ) -> None:
        """Measure one round of some clients, each with one call at a time."""
        latencies: list[float] = []
        cpu_seconds = server.cpu_seconds()
        begin = time.perf_counter()

        async def client() -> None:
            while time.perf_counter() < begin + ROUND_SECONDS:
                latencies.append(await seconds_of(call(request)))

        await asyncio.gather(*(client() for _ in range(num_clients)))
        self.rate.append(len(latencies) / (time.perf_counter() - begin))
        self.cpu_us.append((server.cpu_seconds() - cpu_seconds) / len(latencies) * 1e6)
        percentiles = statistics.quantiles(latencies, n=100)
        self.p50_ms.append(percentiles[49] * 1e3)
        self.p99_ms.append(percentiles[98] * 1e3)


async def measure() -> list[Figure]:
    """Measure every case."""
    figures: list[Figure] = []
    with servers.depot("--l1-size", "64MiB") as depot, servers.echo() as echo:
        async with (
            AsyncDepotClient(depot.unix) as client,
            await client.attach(instance_id="bench", model_name="tiny", groups=GROUPS) as attachment,
        ):
            stored = np.arange(LONG, dtype=np.uint32)
            other = stored[::-1].copy()
            num_bytes = attachment.chunk_bytes * LONG // attachment.chunk_size
            await attachment.store_inline("s", stored, bytes(num_bytes))
            for transport in ("unix", "tcp"):
                async with (
                    grpc.aio.insecure_channel(getattr(depot, transport)) as depot_channel,
                    grpc.aio.insecure_channel(getattr(echo, transport)) as echo_channel,
                ):
                    lookup: Method = depot_channel.unary_unary("/kvdepot.v1.CacheService/Lookup")
                    echoed: Method = echo_channel.unary_unary("/echo/Echo")
                    for what, prompt in (
                        (f"hit, {SHORT:,} tokens", stored[:SHORT]),
                        (f"miss, {SHORT:,} tokens", other[:SHORT]),
                        (f"hit, {LONG:,} tokens", stored),
                        (f"miss, {LONG:,} tokens", other),
                    ):
                        request = requests.lookup("bench", "s", prompt, 0, 0.0).SerializeToString()
                        for num_clients in CLIENTS if len(prompt) == SHORT else (1,):
                            ours, limit = Rounds(), Rounds()
                            for _ in range(ROUNDS):
                                await ours.measure(lookup, request, num_clients, depot)
                                await limit.measure(echoed, request, num_clients, echo)
                            figures += _figures(f"Lookup {what}, {num_clients} clients, {transport}", ours, limit)
                            await client.end_session("bench", "s")  # its leases were never given back
    return figures


def _figures(what: str, ours: Rounds, limit: Rounds) -> list[Figure]:
    def figure(name: str, unit: str, values: list[float], baseline: list[float], goal: Goal | None = None) -> Figure:
        return Figure(what=name, unit=unit, values=values, baseline="echo", baseline_values=baseline, goal=goal)

    return [
        figure(what, "/s", ours.rate, limit.rate, ENOUGH),
        figure("… p50", "ms", ours.p50_ms, limit.p50_ms),
        figure("… p99", "ms", ours.p99_ms, limit.p99_ms),
        figure("… CPU of the server, a call", "µs", ours.cpu_us, limit.cpu_us),
    ]
