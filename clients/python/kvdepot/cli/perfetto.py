"""Sessions as a trace file for ui.perfetto.dev and chrome://tracing.

The format is the JSON Array/Object Format of "Trace Event Format" (Google, 2016): a process for each instance, and
within it a thread for each session and for each caller of the session. Times are in microseconds from the start of the
first session, which is in `otherData`. Slices of one thread may overlap only if one holds the other, so calls of one
rank that overlap get threads of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import count
from typing import Any

from kvdepot.cli.session_view import OperationView, SessionView
from kvdepot.timeline import Span

Event = dict[str, Any]


def trace_of(sessions: Sequence[SessionView]) -> dict[str, Any]:
    """Return what the trace file holds."""
    events: list[Event] = []
    origin = min((session.start for session in sessions), default=None)
    process_ids: dict[str, int] = {}
    thread_ids = count(1)
    for session in sorted(sessions, key=lambda each: each.start):
        pid = process_ids.setdefault(session.instance_id, len(process_ids) + 1)
        assert origin is not None
        offset_seconds = (session.start - origin).total_seconds()
        for name, slices in _threads(session):
            tid = next(thread_ids)
            events.append(_named("thread_name", pid, tid, name))
            events += [_slice(pid, tid, offset_seconds, *each) for each in slices]
    processes = [_named("process_name", pid, 0, instance_id) for instance_id, pid in process_ids.items()]
    return {
        "traceEvents": processes + events,
        "displayTimeUnit": "ms",
        "otherData": {"start_time": origin.isoformat() if origin is not None else ""},
    }


def _threads(session: SessionView) -> Iterable[tuple[str, list[tuple[str, Span, dict[str, Any]]]]]:
    """Yield the names of threads, each with its slices: name, span, arguments."""
    arguments = {
        "model_name": session.model_name,
        "state": session.state,
        "num_dropped_operations": session.num_dropped_operations,
    }
    yield session.session_id, [(session.session_id, Span(0.0, session.duration_seconds), arguments)]
    for caller, operations in session.operations_by_caller().items():
        threads: list[list[OperationView]] = []
        for operation in operations:
            free = (each for each in threads if each[-1].span.end_seconds <= operation.span.start_seconds)
            thread = next(free, None)
            if thread is None:
                threads.append(thread := [])
            thread.append(operation)
        for thread in threads:
            yield f"{session.session_id} {caller}", [(each.kind, each.span, _arguments(each)) for each in thread]


def _arguments(operation: OperationView) -> dict[str, Any]:
    rate = operation.gigabytes_per_second
    return {
        "rank": operation.rank,
        "num_tokens": operation.num_tokens,
        "num_bytes": operation.num_bytes,
        **({"gigabytes_per_second": rate} if rate is not None else {}),
        "tier": operation.tier,
        "outcome": operation.outcome,
        **({"why": operation.why} if operation.why else {}),
    }


def _slice(pid: int, tid: int, offset_seconds: float, name: str, span: Span, arguments: dict[str, Any]) -> Event:
    return {
        "ph": "X",
        "name": name,
        "cat": "kvdepot",
        "pid": pid,
        "tid": tid,
        "ts": round((offset_seconds + span.start_seconds) * 1e6, 3),
        "dur": round(span.seconds * 1e6, 3),
        "args": arguments,
    }


def _named(what: str, pid: int, tid: int, name: str) -> Event:
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}
