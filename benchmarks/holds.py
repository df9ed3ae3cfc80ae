"""How long the longest messages delay another client, which polls GetStatus all the time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import grpc

from benchmarks import servers
from benchmarks.figures import Figure, Goal
from kvdepot import AsyncDepotClient
from service.rpc.limits import MAX_BLOCK_HASHES, MAX_RECORDS
from tests.e2e import long_messages as long
from tests.e2e.latency import polled

ROUNDS = 5
SETTLE_SECONDS = 0.5
GOAL = Goal(at_most=50.0)
HASHED_TOKENS = MAX_BLOCK_HASHES * long.BLOCK_SIZE

MESSAGES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a report of 900,000 records": (long.REPORT, lambda: long.report(long.new_sessions(900_000))),
    "16 MiB of empty records": (long.REPORT, lambda: long.repeated(b"\x22\0")),
    "an attach with 1.5 M planes": (long.ATTACH, lambda: long.attach(1_500_000)),
    "a store of 2.4 M block hashes": (long.STORE, lambda: long.store(long.hash_prefix(2_400_000, 4), 0)),
    f"a store of {MAX_BLOCK_HASHES:,} block hashes": (
        long.STORE,
        lambda: long.store(long.hash_prefix(MAX_BLOCK_HASHES, 32), HASHED_TOKENS),
    ),
    f"a store of {long.NUM_TOKENS:,} tokens": (
        long.STORE,
        lambda: long.store(long.token_prefix(), long.NUM_TOKENS),
    ),
    f"a lookup of {long.NUM_TOKENS:,} tokens": (long.LOOKUP, lambda: long.lookup(long.token_prefix())),
    f"a report of {MAX_RECORDS:,} records": (long.REPORT, lambda: long.report(long.new_sessions(MAX_RECORDS))),
    "a report of one prompt of 3 M tokens": (long.REPORT, lambda: long.report([long.long_record(3_000_000)])),
}


async def measure() -> list[Figure]:
    """Measure the longest poll during each message, until half a second after its answer."""
    wires = {name: make() for name, (_, make) in MESSAGES.items()}
    longest_ms: dict[str, list[float]] = {name: [] for name in MESSAGES}
    idle_ms: list[float] = []
    with servers.depot("--l1-size", "64MiB") as depot, polled(depot.unix) as polls:
        options = [("grpc.max_send_message_length", -1)]
        async with AsyncDepotClient(depot.unix) as client, grpc.aio.insecure_channel(depot.unix, options) as channel:
            await servers.until_populated(client)
            for _ in range(ROUNDS):
                async with long.attached(client):
                    polls.longest_ms()
                    await asyncio.sleep(SETTLE_SECONDS)
                    idle_ms.append(polls.longest_ms())
                    for name, wire in wires.items():
                        await _answered(channel, MESSAGES[name][0], wire)
                        await asyncio.sleep(SETTLE_SECONDS)
                        longest_ms[name].append(polls.longest_ms())
                await client.clear_cache()
    return [
        Figure(
            what=f"longest poll during {name}",
            unit="ms",
            values=values,
            baseline="idle",
            baseline_values=idle_ms,
        )
        for name, values in longest_ms.items()
    ] + [
        Figure(
            what="the longest of the medians of these",
            unit="ms",
            values=max(longest_ms.values(), key=lambda values: sorted(values)[len(values) // 2]),
            goal=GOAL,
        )
    ]


async def _answered(channel: grpc.aio.Channel, method: str, wire: bytes) -> None:
    try:
        await long.answer(channel, method, wire)
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.INVALID_ARGUMENT:
            raise
