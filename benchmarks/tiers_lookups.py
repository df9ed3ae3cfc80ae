"""Lookups that miss in L1 and in the tier, beside a depot without a tier and the round trip to the tier's server."""

from __future__ import annotations

import statistics
from contextlib import AsyncExitStack, ExitStack

import grpc
import numpy as np

from benchmarks import servers, tier_places
from benchmarks.figures import Figure, Goal
from benchmarks.lookups import Method, Rounds
from benchmarks.probing import GROUPS
from benchmarks.tier_clients import BareClient
from kvdepot import AsyncDepotClient, requests

TOKENS = 4_096
CHUNKS = 16
NUM_CLIENTS = (1, 16)
ROUNDS = 7
NUM_ASKS = 200
NONE = "no tier"


async def measure() -> list[Figure]:
    """Measure depots with and without tiers alternately."""
    with ExitStack() as stack:
        depots = {NONE: stack.enter_context(servers.depot("--l1-size", "64MiB"))}
        bare: dict[str, BareClient] = {}
        for name in tier_places.here("disk", "valkey"):
            place = stack.enter_context(tier_places.KINDS[name].opened())
            depots[name] = stack.enter_context(servers.depot("--l1-size", "64MiB", "--l2", place.url))
            bare[name] = place.connect(memoryview(bytearray(4096)))
            stack.callback(bare[name].close)
        figures: list[Figure] = []
        for num_clients in NUM_CLIENTS:
            figures += await _measure(depots, bare, num_clients)
        return figures


async def _measure(depots: dict[str, servers.Serving], bare: dict[str, BareClient], num_clients: int) -> list[Figure]:
    rounds = {name: Rounds() for name in depots}
    asks_ms: dict[str, list[float]] = {name: [] for name in bare}
    async with AsyncExitStack() as stack:
        lookups: dict[str, Method] = {}
        for name, depot in depots.items():
            client = await stack.enter_async_context(AsyncDepotClient(depot.unix))
            await stack.enter_async_context(await client.attach(instance_id="bench", model_name="tiny", groups=GROUPS))
            await servers.until_populated(client)
            if name != NONE:
                await servers.until_available(client)
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(depot.unix))
            lookups[name] = channel.unary_unary("/kvdepot.v1.CacheService/Lookup")
        prompt = np.arange(TOKENS, dtype=np.uint32)
        request = requests.lookup("bench", "s", prompt, 0, 0.0).SerializeToString()
        for number in range(ROUNDS):
            order = list(depots)[number % len(depots) :] + list(depots)[: number % len(depots)]
            for name in order:
                await rounds[name].measure(lookups[name], request, num_clients, depots[name])
            for name, each in bare.items():
                asks_ms[name].append(statistics.median(each.ask(CHUNKS) for _ in range(NUM_ASKS)) * 1e3)
    what = f"Lookup miss, {TOKENS:,} tokens, {num_clients} {'client' if num_clients == 1 else 'clients'}"
    without = rounds[NONE].p50_ms
    figures = [Figure(what=f"{what}, {NONE}: p50", unit="ms", values=without)]
    for name in bare:
        is_asked = any(asks_ms[name])
        figures.append(
            Figure(
                what=f"{what}, {name}: p50",
                unit="ms",
                values=rounds[name].p50_ms,
                baseline=f"{NONE}, and {CHUNKS} EXISTS of a bare client" if is_asked else NONE,
                baseline_values=[a + b for a, b in zip(without, asks_ms[name], strict=True)],
                goal=Goal(at_most=1.1),
            )
        )
    return figures
