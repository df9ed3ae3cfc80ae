"""The tail of lookups that hit L1, while another engine reads from a tier all the time, and while its server halts.

An engine that reads as much from L1 shows what the tiers add to the load of such an engine.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

from benchmarks import reading, servers, tier_places
from benchmarks.figures import Figure, Goal
from benchmarks.probing import TOKENS, Prober
from kvdepot import AsyncDepotClient
from kvdepot.cli.processes import Child
from tests.servers.process import ServerProcess

ROUNDS = 7
ALONE = "alone"
GOAL = Goal(at_most=2.0)
WHAT = f"Lookup hit in L1, {TOKENS:,} tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A depot that gets lookups, the engine that reads from it, and the server that halts."""

    name: str
    address: str
    engine: Child | None = None
    has_tier: bool = False
    halted: ServerProcess | None = None

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Have the engine read during the block, and the server halt."""
        with self.halted.paused() if self.halted is not None else nullcontext(), servers.running(self.engine):
            yield


async def measure() -> list[Figure]:
    """Measure all cases alternately."""
    with ExitStack() as stack:
        cases = [Case(name=ALONE, address=stack.enter_context(servers.depot("--l1-size", "64MiB")).unix)]
        address = stack.enter_context(servers.depot("--l1-size", reading.LARGE_L1_SIZE)).unix
        engine = stack.enter_context(servers.stopped("the reading engine", "benchmarks.reading", address))
        cases.append(Case(name="while another reads from L1", address=address, engine=engine))
        for name in tier_places.here("disk", "valkey"):
            place = stack.enter_context(tier_places.KINDS[name].opened())
            flags = ("--l1-size", reading.L1_SIZE, "--l2", place.url, "--l2-write", "all")
            address = stack.enter_context(servers.depot(*flags)).unix
            engine = stack.enter_context(servers.stopped("the reading engine", "benchmarks.reading", address))
            cases.append(Case(name=f"while another reads from {name}", address=address, engine=engine, has_tier=True))
            if place.server is not None:
                what = f"while another wants to read from {name}, which halts"
                halted = Case(name=what, address=address, engine=engine, has_tier=True, halted=place.server)
                cases.append(halted)
        return await _measure(cases)


async def _measure(cases: list[Case]) -> list[Figure]:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(AsyncDepotClient(case.address)) for case in cases]
        probers = [await Prober.open(stack, case.address, f"probe {n}") for n, case in enumerate(cases)]
        rates: list[list[float]] = [[] for _ in cases]
        order = list(range(len(cases)))
        for number in range(ROUNDS):
            for index in order if number % 2 else reversed(order):
                if cases[index].has_tier and cases[index].halted is None:
                    await servers.until_available(clients[index])  # after its server has halted
                before = await _read_bytes(clients[index])
                begin = time.perf_counter()
                with cases[index].busy():
                    await probers[index].round()
                num_bytes = await _read_bytes(clients[index]) - before
                rates[index].append(num_bytes / 1e9 / (time.perf_counter() - begin))
    baseline = probers[0]
    figures = [
        Figure(what=f"{WHAT}, {ALONE}: p50", unit="ms", values=baseline.p50_ms),
        Figure(what="… p99", unit="ms", values=baseline.p99_ms),
    ]
    for case, prober, rate in list(zip(cases, probers, rates, strict=True))[1:]:
        figures += [
            _beside(f"{WHAT}, {case.name}: p50", prober.p50_ms, baseline.p50_ms),
            _beside("… p99", prober.p99_ms, baseline.p99_ms, GOAL if case.has_tier else None),
        ]
        if case.has_tier:
            figures.append(Figure(what="… read from the tier meanwhile", unit="GB/s", values=rate))
    return figures


def _beside(what: str, values: list[float], baseline: list[float], goal: Goal | None = None) -> Figure:
    return Figure(what=what, unit="ms", values=values, baseline=ALONE, baseline_values=baseline, goal=goal)


async def _read_bytes(client: AsyncDepotClient) -> int:
    """Return the bytes that the tiers have read."""
    return sum(tier.traffic.read_bytes for tier in (await client.get_status()).tiers)
