"""The fuzzer runs over a depot that holds, and notices each fault that is put into one."""

from __future__ import annotations

from random import Random

import pytest

from tests.fuzz.findings import Report
from tests.fuzz.fuzzing import Options, fuzz
from tests.fuzz.mutations import Mutator
from tests.fuzz.requests import valid
from tests.fuzz.rpcs import RPCS, Rpc, fields_of
from tests.fuzz.sabotage import KINDS
from tests.fuzz.things import things

MIN_OK = 0.03
"""The least share of an RPC's calls that must succeed. Refused calls reach less code."""


def said(report: Report) -> str:
    return "\n".join(report.lines())


@pytest.mark.timeout(300)
async def test_two_thousand_calls_find_nothing() -> None:
    report = await fuzz(Options(calls=2_000), print)
    assert not report.findings, said(report)
    calls = {rpc.name: {o: n for (name, o), n in report.outcomes.items() if name == rpc.name} for rpc in RPCS}
    assert all(sum(outcomes.values()) >= 20 for outcomes in calls.values()), said(report)
    shallow = {name for name, outcomes in calls.items() if outcomes.get("OK", 0) < MIN_OK * sum(outcomes.values())}
    assert not shallow, said(report)
    assert len(report.never_changed()) <= 15, said(report)
    assert report.witnessed["compared bytes"] > 100_000


@pytest.mark.parametrize("rpc", [rpc for rpc in RPCS if rpc.request.DESCRIPTOR.fields], ids=lambda rpc: rpc.name)
def test_every_field_of_every_request_is_changed_sooner_or_later(rpc: Rpc) -> None:
    random = Random(1)
    with things() as existing:
        mutator = Mutator(existing, random, most_bytes=1_000)
        for _ in range(6_000):
            mutator.change(random.choice(valid(rpc, existing, random)))
            if mutator.changed >= fields_of(rpc.request):
                break
    assert fields_of(rpc.request) - mutator.changed == set()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "none"])
async def test_a_fault_in_the_depot_is_noticed(kind: str) -> None:
    report = await fuzz(Options(calls=400, sabotage=kind), print)
    assert any(KINDS[kind].reported_as in finding.what for finding in report.findings.values()), said(report)
