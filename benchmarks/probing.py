"""The latency of lookups, one after the other: alone, or while others keep the depot busy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import grpc
import numpy as np

from benchmarks.figures import Figure, Goal
from benchmarks.servers import running
from benchmarks.timing import seconds_of
from kvdepot import AsyncDepotClient, KvShape, requests
from kvdepot.cli.processes import Child
from kvdepot.layout import layouts

TOKENS = 4_096
ROUNDS = 9
ROUND_SECONDS = 1.5
TINY = KvShape(num_layers=1, num_blocks=1, block_size=16, num_heads=1, head_size=1, dtype="uint8")
GROUPS = [layouts.NL_X_TWO_NB_BS_NH_HS.without_memory(TINY)]


class Prober:
    """Looks a stored prompt up, again and again, and gives the lease back each time."""

    def __init__(self, channel: grpc.aio.Channel, request: bytes) -> None:
        self._lookup: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/kvdepot.v1.CacheService/Lookup"
        )
        self._request = request
        self.p50_ms: list[float] = []
        self.p99_ms: list[float] = []

    @classmethod
    async def open(cls, stack: AsyncExitStack, address: str, instance_id: str = "probe") -> Prober:
        """Return a depot's prober, with the prompt stored. Probers of one depot have different ids."""
        client = await stack.enter_async_context(AsyncDepotClient(address))
        attachment = await stack.enter_async_context(
            await client.attach(instance_id=instance_id, model_name="tiny", groups=GROUPS)
        )
        prompt = np.arange(TOKENS, dtype=np.uint32)
        num_chunks = TOKENS // attachment.chunk_size
        await attachment.store_inline("s", prompt, bytes(attachment.chunk_bytes * num_chunks))
        request = requests.lookup(instance_id, "s", prompt, 0, 0.0).SerializeToString()
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(address))
        return cls(channel, request)

    async def round(self) -> None:
        """Make one round of calls, one after the other."""
        seconds: list[float] = []
        begin = time.perf_counter()
        while time.perf_counter() < begin + ROUND_SECONDS:
            seconds.append(await seconds_of(self._lookup(self._request)))
        percentiles = statistics.quantiles(seconds, n=100)
        self.p50_ms.append(percentiles[49] * 1e3)
        self.p99_ms.append(percentiles[98] * 1e3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A depot that gets lookups, and the process that keeps it busy, if there is one."""

    name: str
    address: str
    busy: Child | None = None
    p99_goal: Goal | None = None


async def measure_cases(cases: Sequence[Case]) -> list[Figure]:
    """Measure the cases alternately; the first is the baseline of the others."""
    async with AsyncExitStack() as stack:
        probers = [await Prober.open(stack, case.address) for case in cases]
        for _ in range(ROUNDS):
            for case, prober in zip(cases, probers, strict=True):
                with running(case.busy):
                    await prober.round()
    first = probers[0]
    figures: list[Figure] = []
    for case, prober in zip(cases, probers, strict=True):
        what = f"Lookup hit, {TOKENS:,} tokens, {case.name}"
        if prober is first:
            figures += [
                Figure(what=f"{what}: p50", unit="ms", values=prober.p50_ms),
                Figure(what=f"{what}: p99", unit="ms", values=prober.p99_ms),
            ]
            continue
        figures += [
            Figure(
                what=f"{what}: p50",
                unit="ms",
                values=prober.p50_ms,
                baseline=cases[0].name,
                baseline_values=first.p50_ms,
            ),
            Figure(
                what=f"{what}: p99",
                unit="ms",
                values=prober.p99_ms,
                baseline=cases[0].name,
                baseline_values=first.p99_ms,
                goal=case.p99_goal,
            ),
        ]
    return figures
