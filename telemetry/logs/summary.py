"""The line of an event for people, such as who retrieved, how much, how it ended. JSON lines have the facts."""

from __future__ import annotations

from telemetry import events


def summary(event: events.Event) -> str | None:
    """Return the text of a line, without the event's name. None: the event has no summary."""
    match event:
        case events.LookupFinished():
            behind = f", {event.l2_tokens:,} of them in L2" if event.l2_tokens else ""
            what = f"{event.matched_tokens:,} of {event.num_tokens:,} tokens matched{behind}"
            why = f": {event.miss_reason}" if event.miss_reason else ""
            return f"{_who(event)}: {what}, {_ms(event.duration_seconds)}, {event.outcome}{why}"
        case events.StoreFinished():
            counts = [f"{event.stored_tokens:,} tokens stored"]
            for number, name in (
                (event.resident_tokens, "resident"),
                (event.refused_tokens, "refused"),
                (event.tail_tokens, "tail"),
            ):
                counts += [f"{number:,} {name}"] if number else []
            why = f": {event.refusal_reason}" if event.refusal_reason else ""
            moved = _moved(event.stored_bytes, event.duration_seconds)
            return f"{_who(event)} rank {event.rank}: {', '.join([*counts, moved])}, {event.outcome}{why}"
        case events.RetrieveFinished():
            behind = f", {event.l2_tokens:,} of them from L2" if event.l2_tokens else ""
            what = f"{event.retrieved_tokens:,} tokens retrieved{behind}"
            moved = _moved(event.retrieved_bytes, event.duration_seconds)
            return f"{_who(event)} rank {event.rank}: {what}, {moved}, {event.outcome}"
        case events.TierStateChanged():
            return f"{event.tier!r} is {event.state}" + (f": {event.detail!r}" if event.detail else "")
        case events.TierRead(outcome="damaged"):
            return f"{event.tier!r} has wrong bytes of chunk {event.key.hex()}: the depot deletes it there"
        case events.TierWritten(outcome="corrupt"):
            return f"L1 has wrong bytes of chunk {event.key.hex()}: it is not written to {event.tier!r}"
        case events.IoWorkerEnded():
            why = "killed at its deadline" if event.reason == "deadline" else f"ended: {event.reason}"
            what = f" ({event.verb}, {event.num_parts:,} chunks)" if event.verb else ""
            return f"I/O worker of {event.tier!r} to {event.role}: {why}{what}"
    return None


def _who(event: events.Event) -> str:
    """Return the instance and the session. repr: text from the wire must not be able to forge a log line."""
    return f"{event.instance_label!r} {event.session_id!r}"


def _moved(num_bytes: int, seconds: float) -> str:
    rate = f" at {num_bytes / seconds / 1e9:.2f} GB/s" if num_bytes and seconds > 0 else ""
    return f"{num_bytes / (1 << 20):,.1f} MiB in {_ms(seconds)}{rate}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"
