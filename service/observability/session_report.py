"""The report of a session: a block of lines for people, and facts for programs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from heapq import merge
from typing import Any

from kvdepot.timeline import Span, timeline
from service.depot.operation import Operation
from service.depot.sessions import Session
from telemetry.kinds import OperationKind

MAX_ROWS = 24
MIN_GAP_SECONDS = 0.0001  # shorter ones count, but have no row


@dataclass(frozen=True, slots=True)
class SessionReport:
    """`text` has a row for each operation and gap, `MAX_ROWS` at most. `facts` hold JSON values."""

    text: str
    facts: dict[str, Any]


def report(session: Session) -> SessionReport:
    """Report an ended session. Tokens and bytes are summed over all its operations, also over those without a row."""
    operations = [(_span(session, each), each) for each in session.operations]
    divided = timeline([span for span, _ in operations], session.duration_seconds, session.num_dropped_operations)
    facts = _facts(session)
    facts["depot_seconds"] = round(divided.depot_seconds, 6)
    facts["engine_seconds"] = round(divided.engine_seconds, 6)
    facts["operations"] = [_operation_facts(span, each) for span, each in operations[:MAX_ROWS]]

    shown = ((gap, None) for gap in divided.gaps if gap.seconds >= MIN_GAP_SECONDS)
    rows = list(merge(operations, shown, key=lambda row: row[0].start_seconds))
    lines = [
        "SessionSummary instance_id={instance_id!r} session_id={session_id!r} model_name={model_name!r}",
        "  received at {received_at}, ended after {duration_seconds:,.3f} s: {reason}",
        *(_row(span, each) for span, each in rows[:MAX_ROWS]),
    ]
    num_more = max(0, len(rows) - MAX_ROWS) + session.num_dropped_operations
    if num_more:
        lines.append(f"  … and {num_more:,} more")
    if facts["looked_up_tokens"]:
        lines.append("  hit ratio {hit_ratio:.2f}: {matched_tokens:,} of {looked_up_tokens:,} tokens looked up matched")
    if facts["misses"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in facts["misses"].items())
        lines.append(f"  misses: {reasons}; the last one at token {{last_miss_token:,}}: {{last_miss!r}}")
    stored = "{stored_tokens:,} tokens stored, {stored_bytes:,} bytes"
    if facts["refused_tokens"]:
        stored += "; {refused_tokens:,} tokens refused"
    lines.append("  {saved_tokens:,} tokens saved, {retrieved_bytes:,} bytes retrieved; " + stored)
    lines.append("  depot {depot_seconds:.4f} s, engine {engine_seconds:.4f} s")
    return SessionReport("\n".join(lines).format_map(facts), facts)


def _span(session: Session, operation: Operation) -> Span:
    """Return when the operation ran. One without an end ran until the session's end."""
    start_seconds = operation.start - session.start
    if operation.outcome is None:
        return Span(start_seconds, max(start_seconds, session.duration_seconds))
    return Span(start_seconds, start_seconds + operation.duration_seconds)


def _facts(session: Session) -> dict[str, Any]:
    totals = session.totals
    return {
        "instance_id": session.instance_id,
        "session_id": session.session_id,
        "model_name": session.model_name,
        "received_at": datetime.fromtimestamp(session.start_time, UTC).isoformat(timespec="milliseconds"),
        "duration_seconds": round(session.duration_seconds, 6),
        "reason": str(session.end),
        "num_operations": len(session.operations) + session.num_dropped_operations,
        "num_lookups": totals.num_lookups,
        "num_hits": totals.num_hits,
        "looked_up_tokens": totals.prompt_tokens,
        "matched_tokens": totals.matched_tokens,
        "hit_ratio": round(totals.matched_tokens / totals.prompt_tokens, 4) if totals.prompt_tokens else None,
        "misses": {str(reason): count for reason, count in totals.misses.items()},
        "last_miss": totals.last_miss.detail if totals.last_miss is not None else None,
        "last_miss_token": totals.last_miss.at_token if totals.last_miss is not None else None,
        "saved_tokens": totals.retrieved_tokens,
        "retrieved_bytes": totals.retrieved_bytes,
        "stored_tokens": totals.stored_tokens,
        "refused_tokens": totals.refused_tokens,
        "stored_bytes": totals.stored_bytes,
    }


def _operation_facts(span: Span, operation: Operation) -> dict[str, Any]:
    return {
        "kind": str(operation.kind),
        "rank": operation.rank,
        "start_seconds": round(span.start_seconds, 6),
        "duration_seconds": round(span.seconds, 6),
        "num_tokens": operation.num_tokens,
        "num_bytes": operation.num_bytes,
        "tier": str(operation.tier),
        "outcome": str(operation.outcome or "running"),
        "why": _why(operation),
    }


def _row(span: Span, operation: Operation | None) -> str:
    """Return one line. None is a gap."""
    times = f"  {span.start_seconds:>+11,.4f} s {span.seconds * 1e3:11,.1f} ms  "
    if operation is None:
        return f"{times}(engine)"
    if operation.kind is OperationKind.LOOKUP:
        what, tokens = "lookup", f"{operation.num_tokens:,} of {operation.prompt_tokens:,} tokens"
    else:
        what, tokens = f"{operation.kind} rank {operation.rank}", f"{operation.num_tokens:,} tokens"
    rate = span.gigabytes_per_second(operation.num_bytes)
    speed = f"{rate:.2f} GB/s" if rate is not None else ""
    why = f", {_why(operation)}" if _why(operation) else ""
    return f"{times}{what:<16}  {tokens:>24}  {speed:>11}  {operation.tier}  {operation.outcome or 'running'}{why}"


def _why(operation: Operation) -> str:
    """Return why a lookup did not match more, or why a store refused chunks; empty if neither is so."""
    return str(operation.miss_reason or operation.refusal_reason or "")
