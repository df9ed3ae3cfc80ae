"""The tail of lookups that hit L1, while another engine reads from a tier all the time, and while its server halts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass

from benchmarks import reading, servers, tier_places
from benchmarks.figures import Figure, Goal
from benchmarks.probing import TOKENS, Prober
from kvdepot.cli.processes import Child
from tests.servers.process import ServerProcess

ROUNDS = 7
ALONE = "alone"
GOAL = Goal(at_most=2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A depot that gets lookups, the engine that reads from its tier, and the server that halts."""

    name: str
    address: str
    engine: Child | None = None
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
        for name in tier_places.here("disk", "valkey"):
            place = stack.enter_context(tier_places.KINDS[name].opened())
            flags = ("--l1-size", reading.L1_SIZE, "--l2", place.url, "--l2-write", "all")
            address = stack.enter_context(servers.depot(*flags)).unix
            engine = stack.enter_context(servers.stopped("the reading engine", "benchmarks.reading", address))
            cases.append(Case(name=f"while another reads from {name}", address=address, engine=engine))
            if place.server is not None:
                what = f"while another wants to read from {name}, which halts"
                cases.append(Case(name=what, address=address, engine=engine, halted=place.server))
        return await _measure(cases)


async def _measure(cases: list[Case]) -> list[Figure]:
    async with AsyncExitStack() as stack:
        probers = [await Prober.open(stack, case.address) for case in cases]
        for number in range(ROUNDS):
            for case, prober in list(zip(cases, probers, strict=True))[:: 1 if number % 2 else -1]:
                with case.busy():
                    await prober.round()
    figures: list[Figure] = []
    for case, prober in zip(cases, probers, strict=True):
        what = f"Lookup hit in L1, {TOKENS:,} tokens, {case.name}"
        p50, p99 = prober.p50_ms, prober.p99_ms
        if prober is probers[0]:
            figures += [Figure(what=f"{what}: p50", unit="ms", values=p50), Figure(what="… p99", unit="ms", values=p99)]
            continue
        for quantile, values, baseline in (("p50", p50, probers[0].p50_ms), ("p99", p99, probers[0].p99_ms)):
            figures.append(
                Figure(
                    what=f"{what}: p50" if quantile == "p50" else "… p99",
                    unit="ms",
                    values=values,
                    baseline=ALONE,
                    baseline_values=baseline,
                    goal=GOAL if quantile == "p99" else None,
                )
            )
    return figures
