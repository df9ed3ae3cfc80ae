"""A trace file fits ui.perfetto.dev: names for every process and thread, and slices that nest."""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kvdepot.cli.perfetto import trace_of
from kvdepot.cli.session_view import OperationView, SessionView
from kvdepot.timeline import Span

START = datetime(2027, 1, 15, 8, tzinfo=UTC)


def operation(kind: str, start: float, end: float, rank: int = 0, num_bytes: int = 0) -> OperationView:
    return OperationView(
        kind=kind,
        rank=rank,
        span=Span(start, end),
        num_tokens=16,
        num_asked_tokens=0,
        num_bytes=num_bytes,
        tier="l1",
        outcome="ok",
    )


def session(*operations: OperationView, start: float = 0.0, ids: tuple[str, str] = ("pod-1", "chat")) -> SessionView:
    return SessionView(
        instance_id=ids[0],
        session_id=ids[1],
        model_name="llama",
        start=START + timedelta(seconds=start),
        duration_seconds=10.0,
        state="live",
        operations=operations,
        num_dropped_operations=0,
    )


def threads(trace: dict[str, Any]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return slices by the names of their process and thread; every slice must have both."""
    named: dict[tuple[str, int, int], str] = {}
    for event in trace["traceEvents"]:
        if event["ph"] == "M":
            key = (event["name"], event["pid"], event["tid"])
            assert key not in named
            named[key] = event["args"]["name"]
    slices = defaultdict(list)
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            process = named["process_name", event["pid"], 0]
            slices[process, named["thread_name", event["pid"], event["tid"]]].append(event)
    return dict(slices)


def test_each_session_and_each_of_its_callers_has_a_thread_of_its_instance() -> None:
    operations = (operation("lookup", 0, 1), operation("retrieve", 1, 2, num_bytes=2 * 10**9), operation("store", 3, 4))
    trace = trace_of(
        [
            session(*operations, operation("retrieve", 1, 2, rank=1), start=0.5),
            session(operation("lookup", 0, 1), ids=("pod-2", "chat")),
        ]
    )
    found = threads(trace)
    assert {name: [each["name"] for each in slices] for name, slices in found.items()} == {
        ("pod-1", "chat"): ["chat"],
        ("pod-1", "chat scheduler"): ["lookup"],
        ("pod-1", "chat rank 0"): ["retrieve", "store"],
        ("pod-1", "chat rank 1"): ["retrieve"],
        ("pod-2", "chat"): ["chat"],
        ("pod-2", "chat scheduler"): ["lookup"],
    }
    retrieve, store = found["pod-1", "chat rank 0"]
    assert (retrieve["ts"], retrieve["dur"], store["ts"]) == (1_500_000, 1_000_000, 3_500_000)
    assert retrieve["args"]["gigabytes_per_second"] == 2.0
    assert store["args"] == {
        "rank": 0,
        "num_tokens": 16,
        "num_bytes": 0,
        "tier": "l1",
        "outcome": "ok",
    }
    assert trace["otherData"]["start_time"] == "2027-01-15T08:00:00+00:00"
    assert trace["displayTimeUnit"] == "ms"


def test_calls_of_one_rank_that_overlap_are_on_threads_of_their_own() -> None:
    trace = trace_of([session(operation("store", 1, 4), operation("store", 2, 3), operation("retrieve", 3.5, 5))])
    tids = [event["tid"] for event in trace["traceEvents"] if event["ph"] == "X" and event["name"] != "chat"]
    assert len(set(tids)) == 2


SPANS = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(sorted)


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from(["lookup", "store", "retrieve"]), SPANS, st.integers(0, 2)), max_size=8),
        max_size=3,
    )
)
def test_no_slices_of_a_thread_overlap_and_none_is_lost(sessions: list[list[tuple[str, list[int], int]]]) -> None:
    views = [
        session(
            *(operation(kind, start, end, rank=rank) for kind, (start, end), rank in calls), ids=("pod", f"s{number}")
        )
        for number, calls in enumerate(sessions)
    ]
    trace = json.loads(json.dumps(trace_of(views), allow_nan=False))
    by_thread = defaultdict(list)
    for event in trace["traceEvents"]:
        assert event["ph"] in ("M", "X")
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int)
        if event["ph"] == "X":
            assert event["ts"] >= 0
            assert event["dur"] >= 0
            by_thread[event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    for slices in by_thread.values():
        ordered = sorted(slices)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(ordered))
    assert sum(map(len, by_thread.values())) == len(sessions) + sum(map(len, sessions))
