"""The report of a session, as a block of lines and as facts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from service.depot.operation import Operation
from service.depot.sessions import MAX_OPERATIONS, Session
from service.depot.values import Miss
from service.observability.session_report import MAX_ROWS, report
from telemetry.kinds import MissReason, OperationKind, Outcome, RefusalReason, SessionEnd, Tier

LOOKUP, STORE, RETRIEVE = OperationKind.LOOKUP, OperationKind.STORE, OperationKind.RETRIEVE


def session(*operations: Operation, duration_seconds: float = 1.0, **changes: Any) -> Session:
    made = Session(
        **{"number": 1, "instance_id": "pod-1", "session_id": "chat", "model_name": "llama", **changes},
        start=100.0,
        start_time=1_800_000_000.25,
        duration_seconds=duration_seconds,
        end=SessionEnd.REQUESTED,
    )
    for operation in operations:
        made.begin(operation)
        if operation.outcome is not None:
            made.finish(operation)
    return made


def operation(kind: OperationKind, start: float, end: float, **values: Any) -> Operation:
    return Operation(
        **{"kind": kind, "operation_id": "1", "outcome": Outcome.OK, **values},
        start=100.0 + start,
        duration_seconds=end - start,
    )


def rows(made: Session) -> list[str]:
    """Return the lines between the two heads and the totals, with single spaces."""
    return [" ".join(line.split()) for line in report(made).text.splitlines() if line.lstrip().startswith("+")]


def test_a_row_names_the_slowest_tier_that_the_call_used() -> None:
    made = session(operation(RETRIEVE, 0.0, 1.0, num_tokens=256, tier=Tier.L2, l2_tokens=128))
    assert rows(made) == ["+0.0000 s 1,000.0 ms retrieve rank 0 256 tokens l2 ok"]
    assert report(made).facts["operations"][0]["tier"] == "l2"


def test_each_operation_has_its_row_and_what_is_between_them_is_the_engines() -> None:
    made = session(
        operation(LOOKUP, 0.0, 0.002, prompt_tokens=2_048, num_tokens=1_024, outcome=Outcome.PARTIAL),
        operation(RETRIEVE, 0.01, 0.02, num_tokens=1_024, num_bytes=50_000_000),
        operation(STORE, 0.5, 0.55, rank=1, outcome=Outcome.REFUSED),
    )
    lines = report(made).text.splitlines()
    assert lines[0] == "SessionSummary instance_id='pod-1' session_id='chat' model_name='llama'"
    assert lines[1] == "  received at 2027-01-15T08:00:00.250+00:00, ended after 1.000 s: requested"
    assert rows(made) == [
        "+0.0000 s 2.0 ms lookup 1,024 of 2,048 tokens l1 partial",
        "+0.0020 s 8.0 ms (engine)",
        "+0.0100 s 10.0 ms retrieve rank 0 1,024 tokens 5.00 GB/s l1 ok",
        "+0.0200 s 480.0 ms (engine)",
        "+0.5000 s 50.0 ms store rank 1 0 tokens l1 refused",
        "+0.5500 s 450.0 ms (engine)",
    ]
    assert lines[-3:] == [
        "  hit ratio 0.50: 1,024 of 2,048 tokens looked up matched",
        "  1,024 tokens saved, 50,000,000 bytes retrieved; 0 tokens stored, 0 bytes",
        "  depot 0.0620 s, engine 0.9380 s",
    ]


def test_time_in_which_any_rank_worked_is_the_depots_once() -> None:
    made = session(operation(RETRIEVE, 0.1, 0.4), operation(RETRIEVE, 0.2, 0.3, rank=1))
    assert [row for row in rows(made) if "engine" in row] == [
        "+0.0000 s 100.0 ms (engine)",
        "+0.4000 s 600.0 ms (engine)",
    ]
    facts = report(made).facts
    assert (facts["depot_seconds"], facts["engine_seconds"]) == (pytest.approx(0.3), pytest.approx(0.7))


def test_gaps_too_short_to_show_have_no_row_and_still_count() -> None:
    made = session(operation(LOOKUP, 0.0, 0.5), operation(STORE, 0.50005, 1.0))
    assert not any("engine" in row for row in rows(made))
    assert report(made).facts["engine_seconds"] == pytest.approx(0.00005)


def test_what_runs_at_the_end_ran_until_then() -> None:
    made = session(operation(RETRIEVE, 0.25, 0.25, outcome=None), duration_seconds=0.75)
    assert rows(made)[-1] == "+0.2500 s 500.0 ms retrieve rank 0 0 tokens l1 running"
    assert report(made).facts["operations"][0]["outcome"] == "running"


def test_what_ended_after_its_session_counts_until_the_sessions_end() -> None:
    facts = report(session(operation(STORE, 0.5, 9.0))).facts
    assert (facts["depot_seconds"], facts["engine_seconds"]) == (0.5, 0.5)


def test_a_session_that_did_nothing_has_a_block_too() -> None:
    shown = report(session()).text
    assert rows(session()) == ["+0.0000 s 1,000.0 ms (engine)"]
    assert "hit ratio" not in shown
    assert report(session()).facts["hit_ratio"] is None


def test_a_long_session_is_cut_and_tells_by_how_much() -> None:
    made = session(*(operation(LOOKUP, i, i + 1) for i in range(MAX_ROWS + 12)), duration_seconds=MAX_ROWS + 12)
    shown = report(made)
    assert len(rows(made)) == MAX_ROWS
    assert "  … and 12 more" in shown.text.splitlines()
    assert len(shown.facts["operations"]) == MAX_ROWS
    assert shown.facts["num_operations"] == MAX_ROWS + 12


def test_beyond_the_operations_that_are_kept_no_side_is_said_to_have_worked() -> None:
    made = session(*(operation(LOOKUP, i, i + 0.5) for i in range(MAX_OPERATIONS + 5)), duration_seconds=9_999.0)
    facts = report(made).facts
    assert facts["num_operations"] == MAX_OPERATIONS + 5
    assert (facts["depot_seconds"], facts["engine_seconds"]) == (MAX_OPERATIONS / 2, MAX_OPERATIONS / 2 - 0.5)


def test_tokens_are_saved_if_every_rank_that_retrieves_has_them() -> None:
    def saved(*tokens_by_rank: tuple[int, int]) -> int:
        calls = (operation(RETRIEVE, 0.0, 0.1, rank=rank, num_tokens=tokens) for rank, tokens in tokens_by_rank)
        number: int = report(session(*calls)).facts["saved_tokens"]
        return number

    assert saved() == 0
    assert saved((0, 256), (1, 256), (0, 512), (1, 512)) == 768
    assert saved((0, 256), (1, 0)) == 0


def test_misses_are_counted_by_reason_and_the_last_one_says_where_and_why() -> None:
    made = session(
        operation(LOOKUP, 0.0, 0.1, prompt_tokens=64, outcome=Outcome.MISS, miss_reason=MissReason.NEVER_STORED),
        operation(
            LOOKUP, 0.1, 0.2, prompt_tokens=64, num_tokens=32, outcome=Outcome.PARTIAL, miss_reason=MissReason.EVICTED
        ),
        operation(LOOKUP, 0.2, 0.3, prompt_tokens=64, num_tokens=32, miss_reason=MissReason.EVICTED),
        operation(LOOKUP, 0.3, 0.4, outcome=Outcome.CANCELLED),
        operation(STORE, 0.4, 0.5, num_tokens=16, refused_tokens=48, num_bytes=9, refusal_reason=RefusalReason.NO_SLOT),
    )
    made.totals.note_miss(Miss(reason=MissReason.EVICTED, at_token=32, detail="rank 0's {chunk}\nwas evicted"))
    shown = report(made)
    assert (shown.facts["num_lookups"], shown.facts["num_hits"]) == (3, 2)
    assert shown.facts["misses"] == {"never stored": 1, "evicted": 2}
    lines = shown.text.splitlines()
    assert '  misses: never stored 1, evicted 2; the last one at token 32: "rank 0\'s {chunk}\\nwas evicted"' in lines
    assert "  0 tokens saved, 0 bytes retrieved; 16 tokens stored, 9 bytes; 48 tokens refused" in lines
    assert [row.partition(" l1 ")[2] for row in rows(made) if "engine" not in row][:2] == [
        "miss, never stored",
        "partial, evicted",
    ]
    assert rows(made)[4].endswith("l1 ok, no slot")


def test_names_from_the_wire_forge_no_line_and_are_not_formats() -> None:
    name = "x\n  depot 0 s\x1b[31m {hit_ratio} %s"
    made = session(session_id=name, instance_id=name, model_name=name)
    shown = report(made).text
    assert len(shown.splitlines()) == len(report(session()).text.splitlines())
    assert "\x1b" not in shown
    assert shown.count("{hit_ratio} %s") == 3


def test_facts_are_what_json_can_hold() -> None:
    made = session(operation(LOOKUP, 0.0, 0.1), operation(RETRIEVE, 0.2, 0.25, num_bytes=7))
    facts = json.loads(json.dumps(report(made).facts))
    assert facts["reason"] == "requested"
    assert facts["operations"][1] == {
        "kind": "retrieve",
        "rank": 0,
        "start_seconds": 0.2,
        "duration_seconds": 0.05,
        "num_tokens": 0,
        "num_bytes": 7,
        "tier": "l1",
        "outcome": "ok",
        "why": "",
    }
