"""Spans that have not ended, and a bound for those whose end the bus dropped."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable

from opentelemetry.context import Context
from opentelemetry.trace import Span, Status, StatusCode, set_span_in_context

LOST = "its end was not seen"


class OpenSpan:
    """A span that has not ended. Times are nanoseconds since the epoch."""

    __slots__ = ("children", "context", "span", "start_ns")

    def __init__(self, span: Span, start_ns: int) -> None:
        self.span = span
        self.start_ns = start_ns
        self.context = set_span_in_context(span, Context())
        """For children."""
        self.children: set[str] = set()
        """Of a session: the operation ids of its work that has not ended."""

    def end_after(self, seconds: float) -> None:
        """End the span some seconds after its start, whatever happens to the wall clock."""
        self.span.end(self.start_ns + round(seconds * 1e9))

    def end_at(self, end_ns: int) -> None:
        """End the span at a time, but not before its start."""
        self.span.end(max(end_ns, self.start_ns))

    def fail(self, why: str, end_ns: int) -> None:
        """End the span with an error."""
        self.span.set_status(Status(StatusCode.ERROR, why))
        self.end_at(end_ns)


class OpenWork:
    """The open spans of operations and transfers, by their ids. Beyond `limit`, the oldest span ends.

    Work whose session has ended is *late*. It ends after `timeout_seconds` if its own end does not come.
    """

    def __init__(self, limit: int, timeout_seconds: float) -> None:
        self._limit = limit
        self._timeout_seconds = timeout_seconds
        self._spans: OrderedDict[str, tuple[OpenSpan, OpenSpan | None]] = OrderedDict()  # with the session's
        self._late: deque[tuple[float, int, str]] = deque()  # (deadline (monotonic), end of the session, operation id)

    def __len__(self) -> int:
        return len(self._spans)

    def get(self, operation_id: str) -> OpenSpan | None:
        """Return the span of open work."""
        found = self._spans.get(operation_id)
        return found[0] if found is not None else None

    def session_of(self, operation_id: str) -> OpenSpan | None:
        """Return the span of the session that work belongs to."""
        found = self._spans.get(operation_id)
        return found[1] if found is not None else None

    def add(self, operation_id: str, span: OpenSpan, session: OpenSpan | None) -> None:
        """Add the span of work that began."""
        if len(self._spans) >= self._limit:
            self._end(next(iter(self._spans)), span.start_ns)
        self._spans[operation_id] = span, session
        if session is not None:
            session.children.add(operation_id)

    def take(self, operation_id: str) -> OpenSpan | None:
        """Remove and return the span of work that ended. None if its start was dropped, or the span has ended."""
        span, session = self._spans.pop(operation_id, (None, None))
        if session is not None:
            session.children.discard(operation_id)
        return span

    def session_ended(self, session: OpenSpan, now: float, end_ns: int) -> None:
        """Count the session's work as late from `now` (monotonic) on."""
        until = now + self._timeout_seconds
        self._late.extend((until, end_ns, operation_id) for operation_id in session.children)

    def end_late(self, now: float) -> None:
        """End work that is late for too long, at the time when its session ended."""
        while self._late and self._late[0][0] <= now:
            _, end_ns, operation_id = self._late.popleft()
            self._end(operation_id, end_ns)

    def take_all(self) -> Iterable[OpenSpan]:
        """Remove and return all spans."""
        spans = [span for span, _ in self._spans.values()]
        self._spans.clear()
        self._late.clear()
        return spans

    def _end(self, operation_id: str, end_ns: int) -> None:
        span = self.take(operation_id)
        if span is not None:
            span.fail(LOST, end_ns)
