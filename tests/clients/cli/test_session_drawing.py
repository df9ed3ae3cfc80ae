"""A drawing is as wide as the terminal, its bars are where the operations were, and its numbers are theirs."""

from __future__ import annotations

import io
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from kvdepot.cli.session_drawing import cells, drawing
from kvdepot.cli.session_view import view
from kvdepot.cli.sessions import COLUMNS, _row
from kvdepot.timeline import Span
from kvdepot.v1 import cache_pb2


def seconds(value: float) -> Duration:
    message = Duration()
    message.FromNanoseconds(round(value * 1e9))
    return message


def operation(kind: str, start: float, end: float, **values: Any) -> cache_pb2.Operation:
    number = cache_pb2.OperationKind.Value(f"OPERATION_KIND_{kind.upper()}")
    return cache_pb2.Operation(
        **{"kind": number, "tier": cache_pb2.TIER_L1, "outcome": cache_pb2.OUTCOME_OK, **values},
        start_offset=seconds(start),
        duration=seconds(end - start),
    )


def draw(*operations: cache_pb2.Operation, width: int = 120, duration: float = 1.0, **values: Any) -> list[str]:
    summary = cache_pb2.SessionSummary(
        **{"instance_id": "pod-1", "session_id": "chat", "model_name": "llama", **values},
        start_time=Timestamp(seconds=1_800_000_000, nanos=250_000_000),
        duration=seconds(duration),
        operations=operations,
    )
    output = io.StringIO()
    Console(file=output, width=width, highlight=False).print(drawing(view(summary)))
    return output.getvalue().splitlines()


def row(lines: list[str], *words: str) -> str:
    in_table = (line for line in lines[3:] if line[:1] == " " or not line[0].isdigit())
    (found,) = (line for line in in_table if all(word in line for word in words))
    return found


def bar(line: str) -> tuple[int, int]:
    """Return the first cell and the one behind the last."""
    return line.index("━"), line.rindex("━") + 1


@pytest.mark.parametrize("width", [80, 120, 200])
def test_bars_are_where_the_operations_were_scaled_to_the_width(width: int) -> None:
    lines = draw(
        operation("lookup", 0.0, 0.25, num_tokens=1_024, num_asked_tokens=4_096),
        operation("retrieve", 0.25, 0.5, num_tokens=1_024, num_bytes=500_000_000),
        operation("retrieve", 0.25, 0.75, rank=1),
        operation("store", 0.9, 1.0, outcome=cache_pb2.OUTCOME_REFUSED),
        width=width,
    )
    assert max(map(len, lines)) <= width
    lookup, rank_0, rank_1 = row(lines, "scheduler"), row(lines, "rank 0"), row(lines, "rank 1")
    assert "1,024 of 4,096" in lookup
    left, quarter = bar(lookup)
    right = bar(row(lines, "store"))[1]
    assert right - left == pytest.approx(4 * (quarter - left), abs=3)
    assert bar(rank_0)[0] == bar(rank_1)[0] == quarter
    assert bar(rank_1)[1] - quarter == pytest.approx(2 * (bar(rank_0)[1] - quarter), abs=1)
    assert rank_0.split()[-6:] == ["+0.2500", "250.0", "1,024", "2.00", "l1", "ok"]
    assert row(lines, "store").split()[-1] == "refused"
    (engine,) = (line for line in lines if line.startswith("engine"))
    assert bar(engine)[0] == pytest.approx(bar(rank_1)[1], abs=1)
    assert engine.split()[-2:] == ["+0.7500", "150.0"]
    assert lines[-1] == "depot 0.8500 s, engine 0.1500 s"


def test_what_came_after_the_last_operation_does_not_shrink_the_bars() -> None:
    lines = draw(operation("lookup", 0.0, 0.5), operation("store", 0.5, 1.0), duration=601.0)
    assert row(lines, "after the last operation").split()[-2:] == ["+1.0000", "600,000.0"]
    assert bar(row(lines, "store"))[1] - bar(row(lines, "lookup"))[0] > 40
    assert lines[-1] == "depot 1.0000 s, engine 600.0000 s"


def test_what_still_runs_reaches_to_the_end() -> None:
    lines = draw(operation("lookup", 0.0, 0.1), operation("store", 0.5, 0.5, outcome=0), duration=1.0)
    assert row(lines, "store").split()[-4:] == ["500.0", "0", "l1", "running"]
    assert lines[-1] == "depot 0.6000 s, engine 0.4000 s"


def test_operations_that_are_not_known_are_reported_and_no_side_is_said_to_have_worked() -> None:
    lines = draw(operation("lookup", 0.0, 0.5), duration=9.0, num_dropped_operations=1_234)
    assert "1,234 operations after these are not known" in lines
    assert lines[-1] == "depot 0.5000 s, engine 0.0000 s"


def test_a_session_without_operations_is_drawn_too() -> None:
    lines = draw(end=cache_pb2.SESSION_END_IDLE, duration=2.0)
    assert lines[:2] == ["chat of pod-1, llama", "received 2027-01-15 08:00:00.250 UTC, ended, was idle after 2.0000 s"]
    assert lines[-1] == "depot 0.0000 s, engine 2.0000 s"


def test_values_that_are_newer_than_this_program_are_shown_as_numbers() -> None:
    newer = operation("lookup", 0.0, 0.5, outcome=99, tier=55)
    newer.kind = 77  # type: ignore[assignment]
    lines = draw(newer, end=42)
    assert row(lines, "rank 0", "77", "55 99")
    assert "ended (42)" in lines[1]


@given(st.integers(1, 300), st.floats(0, 10), st.floats(0, 10), st.floats(1e-9, 10))
def test_a_bar_is_seen_and_stays_in_its_place(width: int, start: float, length: float, drawn: float) -> None:
    first, end = cells(Span(min(start, drawn), min(start + length, drawn)), drawn, width)
    assert 0 <= first < end <= width


def test_a_depot_of_an_older_version_has_no_totals_and_none_are_invented() -> None:
    lines = draw(operation("lookup", 0.0, 0.5))
    assert not any("tokens" in line for line in lines[4:])
    columns = _row(view(cache_pb2.SessionSummary(instance_id="pod-1", model_name="llama")))
    assert len(columns) == len(COLUMNS)
    assert columns[5:] == [""] * (len(COLUMNS) - 6) + ["llama"]


def test_totals_and_the_reason_of_each_miss_are_shown_at_80_columns() -> None:
    totals = cache_pb2.SessionTotals(
        num_lookups=2,
        num_hits=1,
        prompt_tokens=8_192,
        matched_tokens=2_048,
        retrieved_tokens=2_048,
        retrieved_bytes=1 << 20,
        refused_tokens=256,
        misses=[cache_pb2.MissCount(reason=cache_pb2.MISS_REASON_EVICTED, num_lookups=2)],
        last_miss=cache_pb2.Miss(at_token=2_048, detail="rank 0's chunk was evicted\x1b[31m"),
    )
    lines = draw(
        operation(
            "lookup",
            0.0,
            0.5,
            num_tokens=2_048,
            num_asked_tokens=8_192,
            outcome=cache_pb2.OUTCOME_PARTIAL,
            miss_reason=cache_pb2.MISS_REASON_EVICTED,
        ),
        operation(
            "store",
            0.5,
            1.0,
            outcome=cache_pb2.OUTCOME_REFUSED,
            refused_tokens=256,
            refusal_reason=cache_pb2.REFUSAL_REASON_NO_SLOT,
        ),
        width=80,
        totals=totals,
    )
    assert max(map(len, lines)) <= 80
    assert row(lines, "scheduler").split()[-2:] == ["l1", "partial,"]
    assert [line.strip() for line in lines if line.strip() in ("evicted", "no slot")] == ["evicted", "no slot"]
    assert "1 of 2 lookups hit; 2,048 of 8,192 tokens matched (25%)" in lines
    assert "2,048 tokens retrieved, 1 MiB; 0 tokens stored, 0 B; 256 tokens refused" in lines
    assert any(line.startswith("misses: evicted 2; the last one at token 2,048: rank 0's chunk") for line in lines)
    assert not any("\x1b" in line for line in lines)
