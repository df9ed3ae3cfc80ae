"""Lookup of a stored prompt, beside an echo of the same message by a server that does nothing."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

import grpc
import numpy as np
from rich.table import Table

from benchmarks.timing import seconds_of
from kvdepot import AsyncDepotClient, KvShape, layouts
from kvdepot.v1 import cache_pb2

TOKENS = 4_096
SECONDS = 2.0
TINY = KvShape(num_layers=1, num_blocks=1, block_size=16, num_heads=1, head_size=1, dtype="uint8")
Call = Callable[[cache_pb2.LookupRequest], Awaitable[object]]


async def measure(depot: str, echo: str, table: Table) -> None:
    """The rate with one client and with sixteen."""
    prompt = np.arange(TOKENS, dtype=np.uint32)
    groups = [layouts.NL_X_TWO_NB_BS_NH_HS.without_memory(TINY)]
    request = cache_pb2.LookupRequest(instance_id="bench", session_id="s")
    request.prefix.token_ids.extend(prompt.tolist())
    async with (
        AsyncDepotClient(depot) as client,
        await client.attach(instance_id="bench", model_name="tiny", groups=groups) as attachment,
        grpc.aio.insecure_channel(depot) as depot_channel,
        grpc.aio.insecure_channel(echo) as echo_channel,
    ):
        num_chunks = TOKENS // attachment.chunk_size
        await attachment.store_inline("s", prompt, bytes(attachment.chunk_bytes * num_chunks))
        lookup = _call(depot_channel, "/kvdepot.v1.CacheService/Lookup")
        echoed = _call(echo_channel, "/echo/Echo")
        for num_clients in (1, 16):
            limit, _, _ = await _rate(echoed, request, num_clients)
            rate, p50_ms, p99_ms = await _rate(lookup, request, num_clients)
            table.add_row(
                f"Lookup hit, {TOKENS:,} tokens, {num_clients} clients: p50 {p50_ms:.2f}, p99 {p99_ms:.2f} ms",
                f"{rate:,.0f}/s",
                f"{limit:,.0f}/s, echo",
                f"{rate / limit:.2f}",
            )


def _call(channel: grpc.aio.Channel, method: str) -> Call:
    return channel.unary_unary(method, request_serializer=cache_pb2.LookupRequest.SerializeToString)


async def _rate(call: Call, request: cache_pb2.LookupRequest, num_clients: int) -> tuple[float, float, float]:
    """Calls per second, the median and the 99th percentile of a call in ms."""
    latencies: list[float] = []
    begin = time.perf_counter()

    async def client() -> None:
        while time.perf_counter() < begin + SECONDS:
            latencies.append(await seconds_of(call(request)))

    await asyncio.gather(*(client() for _ in range(num_clients)))
    percentiles = statistics.quantiles(latencies, n=100)
    return len(latencies) / (time.perf_counter() - begin), percentiles[49] * 1e3, percentiles[98] * 1e3
