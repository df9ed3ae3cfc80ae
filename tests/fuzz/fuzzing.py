"""A run: clients make numbered calls of a depot, each answer is judged, and the depot is audited after each.

The calls of a seed are always the same. Calls of different clients overlap, and how they do is not the seed's to say.
"""

from __future__ import annotations

import asyncio
import gc
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from tests.fuzz import depot as processes
from tests.fuzz.answers import Expected, fault_in
from tests.fuzz.calls import LOOKUP, STORE_INLINE, Call
from tests.fuzz.clients import Homes, connected
from tests.fuzz.depot import Depot, Witness
from tests.fuzz.findings import Finding, Report
from tests.fuzz.rpcs import Rpc
from tests.fuzz.sending import PLAIN, Client, Hangs, Manner
from tests.fuzz.things import Grant, Things, things

BATCH = 100
MOST_OPEN_CALLS = 4  # of a client
MOST_FINDINGS = 10
REST_SECONDS = 5.0
SOON_SECONDS = 1.0  # less than the ttl of a lease
WARM_CALLS = 300
MOST_DESCRIPTORS = 8
"""More than at the start, which the depot may keep open: of threads' loops, of gRPC's pollers."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The size of a run, and its limits.

    With `server` a depot that runs already is fuzzed, without an audit. `only` is the one call to make.
    `latency_seconds` are for the witness, `hold_seconds` of CPU time for the depot's loop, `growth_bytes` for its
    memory.
    """

    seed: int = 1
    calls: int = 2_000
    only: int | None = None
    server: str = ""
    clients: int = 12
    most_bytes: int = 1 << 20
    latency_seconds: float = 2.0
    hold_seconds: float = 0.2
    growth_bytes: int = 64 << 20
    sabotage: str = "none"


class Fuzzer:
    """The state of one run."""

    def __init__(
        self,
        options: Options,
        depot: Depot | None,
        witness: Witness,
        clients: Sequence[Client],
        homes: Homes,
        say: Say,
    ) -> None:
        self.report = Report(options.seed)
        self._options = options
        self._depot = depot
        self._witness = witness
        self._clients = clients
        self._homes = homes
        self._say = say
        self._under_way: dict[int, Call] = {}

    async def run(self, existing: Things) -> None:
        """Make all calls, batch by batch; after each batch the depot must come to rest."""
        only = self._options.only
        numbers = range(self._options.calls) if only is None else range(only, only + 1)
        for first in range(0, len(numbers), BATCH):
            batch = numbers[first : first + BATCH]
            await self._homes.attach()
            async with asyncio.TaskGroup() as tasks:
                for position, client in enumerate(self._clients):
                    share = [number for number in batch if number % len(self._clients) == position]
                    tasks.create_task(self._calls_of(client, share, existing))
            await self._comes_to_rest(batch)
            if first <= WARM_CALLS < first + BATCH and self._depot is not None:
                self.report.usage = [await self._depot.ask("usage")]
            if len(self.report.findings) >= MOST_FINDINGS:
                self._say(f"stopped after {MOST_FINDINGS} kinds of findings")
                return
            if (first // BATCH) % 10 == 9:
                self._say(f"{first + BATCH} calls, {len(self.report.findings)} kinds of findings")

    async def _calls_of(self, client: Client, numbers: Sequence[int], existing: Things) -> None:
        for number in numbers:
            call = Call.numbered(self._options.seed, number)
            self._under_way[number] = call
            try:
                await self._carry_out(call, client, existing)
                await self._audit(call)
            finally:
                del self._under_way[number]
            client.let_go(call.random, MOST_OPEN_CALLS)
            if call.random.random() < 0.02:
                await client.reconnect()

    async def _carry_out(self, call: Call, client: Client, existing: Things) -> None:
        lookup = call.lookup(existing)
        grant = await self._granted(call, lookup, client, existing) if lookup is not None else None
        call.write(existing, grant, self._options.most_bytes)
        assert call.how is not None
        self.report.changed |= call.changed
        expected = call.expected()
        await self._judged(call, client, call.rpc, call.wires, call.how, expected, existing)

    async def _granted(self, call: Call, lookup: Any, client: Client, existing: Things) -> Grant | None:
        """Return a lease for the call, by plain calls that are judged as well."""
        request, inline = lookup
        for _ in range(2):
            num_grants = len(existing.grants)
            last = existing.grants[-1] if num_grants else None
            wires = [request.SerializeToString()]
            await self._judged(call, client, LOOKUP, wires, PLAIN, Expected([request]), existing, request)
            newest = existing.grants[-1] if existing.grants else None
            if newest is not None and newest is not last:
                return newest
            for stored in _each_rank(inline):
                wires = [message.SerializeToString() for message in stored]
                await self._judged(call, client, STORE_INLINE, wires, PLAIN, Expected(stored, is_stream=True), existing)
        return None

    async def _judged(
        self,
        call: Call,
        client: Client,
        rpc: Rpc,
        wires: Sequence[bytes],
        how: Manner,
        expected: Expected,
        existing: Things,
        request: Any = None,
    ) -> None:
        try:
            answer = await client.call(rpc, wires, how)
        except Hangs as hangs:
            self._found(f"{rpc.name}: {hangs}", call)
            return
        except Exception as error:  # a finding, or a fault of the fuzzer
            self._found(f"{rpc.name}: {type(error).__name__}: {error}", call)
            return
        self.report.outcomes[rpc.name, answer.outcome] += 1
        fault = fault_in(answer, rpc, expected)
        if fault:
            self._found(f"{rpc.name}: {fault}", call)
        for message in answer.messages:
            existing.learn(request or (expected.requests[0] if expected.requests else None), message)

    async def _audit(self, call: Call) -> None:
        """Check the invariants of every moment, and that the witness is served."""
        under_way = (call.number, *(number for number in self._under_way if number != call.number))
        if self._depot is not None:
            try:
                audited = await self._depot.ask("always")
            except (ConnectionError, TimeoutError):
                self._found(f"the depot does not answer, {await self._depot.last_words()}", call)
                raise
            for fault in audited["faults"]:
                self._found(fault, call)
            seconds, cpu_seconds = audited["delayed"]
            self.report.note_delay(seconds, cpu_seconds, under_way)
            if cpu_seconds > self._options.hold_seconds:
                self._found(f"the loop was delayed for {cpu_seconds:.2f} s of CPU time", self._largest())
            complaints = self._depot.complaints()
            if complaints:
                self._found("the depot logged\n" + "\n".join(complaints), call)
        for said in self._witness.take():
            if "fault" in said:
                self._found(f"the witness: {said['fault']}", call)
            elif said["slow"] > self._options.latency_seconds:
                self._found(f"the witness waited {said['slow']:.2f} s for {said['rpc']}", self._largest())

    def _largest(self) -> Call:
        """Return the running call that is most likely to take long."""
        return max(self._under_way.values(), key=lambda call: sum(map(len, call.wires)))

    async def _comes_to_rest(self, batch: Sequence[int]) -> None:
        if self._depot is None:
            return
        faults = await until_empty(lambda: self._depot_asked("soon"), SOON_SECONDS)
        for fault in faults + await until_empty(lambda: self._depot_asked("at rest"), REST_SECONDS):
            self._add(Finding(f"after the calls {batch[0]} to {batch[-1]}: {fault}", ()))

    async def _depot_asked(self, question: str) -> Any:
        assert self._depot is not None
        return await self._depot.ask(question)

    def _found(self, what: str, call: Call) -> None:
        others = tuple(number for number in self._under_way if number != call.number)
        self._add(Finding(what, (call.number, *others), str(call)))

    def _add(self, finding: Finding) -> None:
        if not self.report.add(finding):
            return
        self._say(f"FOUND: {finding.what}")
        if finding.request:
            number = finding.calls[0]
            self._say(finding.request)
            self._say(f"others under way: {list(finding.calls[1:])}")
            again = f"python -m tests.fuzz --seed {self.report.seed}"
            self._say(f"again: {again} --call {number}, or {again} --calls {number + 1}\n")


async def fuzz(options: Options, say: Say) -> Report:
    """Run, and close all clients. Anything left in the depot afterwards is a finding."""
    with things() as existing:
        async with processes.depot(options.sabotage) if not options.server else nullcontext() as depot:
            addresses = depot.addresses if depot is not None else [options.server]
            before = await depot.ask("usage") if depot is not None else {}
            async with (
                processes.witness(addresses[-1]) as witness,
                connected(addresses, options.clients, existing) as (clients, homes),
            ):
                fuzzer = Fuzzer(options, depot, witness, clients, homes, say)
                try:
                    await fuzzer.run(existing)
                except* (ConnectionError, TimeoutError):
                    pass  # found and reported
            gc.collect()  # grpc.aio leaves cycles, which keep connections open
            report = fuzzer.report
            report.latencies, report.witnessed = witness.longest_seconds, witness.counts
            for said in witness.take():
                if "fault" in said:
                    fuzzer._add(Finding(f"the witness: {said['fault']}", ()))
            if depot is not None and depot.is_alive:
                await _leaves_nothing(fuzzer, depot, before, options)
        return report


async def _leaves_nothing(fuzzer: Fuzzer, depot: Depot, before: dict[str, int], options: Options) -> None:
    async def left() -> list[str]:
        after = await depot.ask("usage")
        slack = {"tasks": 2, "threads": 64, "descriptors": MOST_DESCRIPTORS, "resident bytes": 1 << 62}
        return [
            f"{number - before[what]} {what} are left"
            for what, number in after.items()
            if number > before[what] + slack.get(what, 0)
        ]

    for fault in await until_empty(left, REST_SECONDS):
        fuzzer._add(Finding(f"when all clients were gone: {fault}", ()))
    fuzzer.report.usage.append(await depot.ask("usage"))
    first, last = fuzzer.report.usage[0], fuzzer.report.usage[-1]
    grown = last["resident bytes"] - first["resident bytes"]
    if grown > options.growth_bytes:
        fuzzer._add(Finding(f"the depot's memory grew by {grown >> 20} MiB", ()))


async def until_empty(faults: Callable[[], Awaitable[Sequence[str]]], seconds: float) -> list[str]:
    """Audit until each fault was absent once. Return the faults that were present every time.

    The witness is at work all the time, so that there may be no moment without any fault.
    """
    lasting: dict[str, str] | None = None
    for _ in range(int(seconds / 0.02)):
        now = {re.sub(r"\d+", "#", fault): fault for fault in await faults()}
        lasting = now if lasting is None else {kind: now[kind] for kind in lasting if kind in now}
        if not lasting:
            return []
        await asyncio.sleep(0.02)
    return list((lasting or {}).values())


def _each_rank(messages: Sequence[Any]) -> list[list[Any]]:
    """Inline stores of several ranks, each a header with its data."""
    stores: list[list[Any]] = []
    for message in messages:
        if message.HasField("header"):
            stores.append([])
        stores[-1].append(message)
    return stores
