"""The formats of a log line: text for people, or a JSON object. Both have the ids of the line's span.

A record may have `trace_id` and `span_id`, `event` (an event's name) and `num_suppressed`. If its arguments are a
mapping, they are facts by name.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, TypeAlias

from opentelemetry.trace import SpanContext, format_span_id, format_trace_id, get_current_span

from telemetry.events import Event

EMPTY: Mapping[str, str] = MappingProxyType({})
SpanOf: TypeAlias = Callable[[Event], SpanContext | None]  # returns the span of an event, if it has one


def no_span(event: Event) -> SpanContext | None:
    """Return no span: nothing is traced."""
    return None


def span_ids(span: SpanContext | None) -> dict[str, str]:
    """Return a span's ids as a record and a line have them. Empty without a span."""
    if span is None or not span.is_valid:
        return {}
    return {"trace_id": format_trace_id(span.trace_id), "span_id": format_span_id(span.span_id)}


def log_event(
    logger: logging.Logger,
    level: int,
    event: str,
    facts: Mapping[str, object],
    ids: Mapping[str, str] = EMPTY,
    *,
    summary: str | None = None,
) -> None:
    """Log a line that has a name and facts. A line for people shows the `summary` in place of the facts."""
    # repr: text from the wire must not be able to forge a log line.
    told = [f"{name}=%({name})r" for name in facts if summary is None or name == "num_suppressed"]
    message = " ".join([event, *([summary.replace("%", "%%")] if summary is not None else []), *told])
    logger.log(level, message, *([dict(facts)] if facts else []), extra={"event": event, **ids})


class TextFormat(logging.Formatter):
    """Time, level, logger, first line of the message, extras; then the other lines of the message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the text without the traceback."""
        extras = [f"{name}={value}" for name, value in _extras(record).items()]
        first, *more = super().formatMessage(record).split("\n")
        return "\n".join([" ".join([first, *extras]), *more])


class JsonFormat(logging.Formatter):
    """One object per line: `time` (ISO 8601, UTC), `level`, `logger`, `message`, and facts by name."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object as text. No text from a client can end the line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": getattr(record, "event", None) or record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = self.formatStack(record.stack_info)
        facts = record.args if isinstance(record.args, Mapping) else {}
        return json.dumps(line | {name: value for name, value in facts.items() if name not in line}, default=repr)


def _extras(record: logging.LogRecord) -> dict[str, Any]:
    names = ("num_suppressed", "trace_id", "span_id")
    brought = {name: getattr(record, name) for name in names if hasattr(record, name)}
    return brought if "trace_id" in brought else brought | span_ids(get_current_span().get_span_context())
