"""The report of a session: a block of lines for people, and facts for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from heapq import merge
from typing import Any

from kvdepot.timeline import Span, timeline
from service.depot.operation import Operation
from service.depot.sessions import Session
from telemetry.kinds import OperationKind, Tier

MAX_ROWS = 24
MIN_GAP_SECONDS = 0.0001  # shorter ones count, but have no row


@dataclass(frozen=True, slots=True)
class SessionReport:
    """`text` has a row for each operation and gap, `MAX_ROWS` at most. `facts` hold JSON values."""

    text: str
    facts: dict[str, Any]


def report(session: Session) -> SessionReport:
    """Report an ended session. Tokens and bytes are summed over the operations that the session has kept."""
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
    lines.append("  {saved_tokens:,} tokens saved; {retrieved_bytes:,} bytes retrieved, {stored_bytes:,} bytes stored")
    lines.append("  depot {depot_seconds:.4f} s, engine {engine_seconds:.4f} s")
    return SessionReport("\n".join(lines).format_map(facts), facts)


def saved_tokens(retrieves: Iterable[tuple[int, int]]) -> int:
    """Return the tokens that the engine need not compute: the fewest of any rank, from pairs of (rank, tokens)."""
    by_rank: Counter[int] = Counter()
    for rank, num_tokens in retrieves:
        by_rank[rank] += num_tokens
    return min(by_rank.values(), default=0)


def _span(session: Session, operation: Operation) -> Span:
    """Return when the operation ran. One without an end ran until the session's end."""
    start_seconds = operation.start - session.start
    if operation.outcome is None:
        return Span(start_seconds, max(start_seconds, session.duration_seconds))
    return Span(start_seconds, start_seconds + operation.duration_seconds)


def _facts(session: Session) -> dict[str, Any]:
    of_kind: dict[OperationKind, list[Operation]] = {kind: [] for kind in OperationKind}
    for operation in session.operations:
        of_kind[operation.kind].append(operation)
    lookups, retrieves = of_kind[OperationKind.LOOKUP], of_kind[OperationKind.RETRIEVE]
    looked_up_tokens = sum(lookup.prompt_tokens for lookup in lookups)
    matched_tokens = sum(lookup.num_tokens for lookup in lookups)
    return {
        "instance_id": session.instance_id,
        "session_id": session.session_id,
        "model_name": session.model_name,
        "received_at": datetime.fromtimestamp(session.start_time, UTC).isoformat(timespec="milliseconds"),
        "duration_seconds": round(session.duration_seconds, 6),
        "reason": str(session.end),
        "num_operations": len(session.operations) + session.num_dropped_operations,
        "looked_up_tokens": looked_up_tokens,
        "matched_tokens": matched_tokens,
        "hit_ratio": round(matched_tokens / looked_up_tokens, 4) if looked_up_tokens else None,
        "saved_tokens": saved_tokens((each.rank, each.num_tokens) for each in retrieves),
        "retrieved_bytes": sum(each.num_bytes for each in retrieves),
        "stored_bytes": sum(each.num_bytes for each in of_kind[OperationKind.STORE]),
    }


def _operation_facts(span: Span, operation: Operation) -> dict[str, Any]:
    return {
        "kind": str(operation.kind),
        "rank": operation.rank,
        "start_seconds": round(span.start_seconds, 6),
        "duration_seconds": round(span.seconds, 6),
        "num_tokens": operation.num_tokens,
        "num_bytes": operation.num_bytes,
        "tier": Tier.L1,
        "outcome": str(operation.outcome or "running"),
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
    return f"{times}{what:<16}  {tokens:>24}  {speed:>11}  {Tier.L1}  {operation.outcome or 'running'}"
