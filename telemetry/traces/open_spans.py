"""Spans that have not ended, and what becomes of those whose end is never seen because the bus dropped it."""

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
        """Of a session: the ids of all work in it that has not ended."""

    def end_after(self, seconds: float) -> None:
        """Counted from the start: a wall clock that is set meanwhile does no harm."""
        self.span.end(self.start_ns + round(seconds * 1e9))

    def end_at(self, end_ns: int) -> None:
        """Not before it started, whatever the clock says."""
        self.span.end(max(end_ns, self.start_ns))

    def fail(self, why: str, end_ns: int) -> None:
        """End it with an error."""
        self.span.set_status(Status(StatusCode.ERROR, why))
        self.end_at(end_ns)


class OpenWork:
    """Spans of operations and transfers by their ids, at most ``limit``; the oldest of too many is given up.

    Work whose session has ended is *late*: it gets ``patience_seconds`` more for its own end to come.
    """

    def __init__(self, limit: int, patience_seconds: float) -> None:
        self._limit = limit
        self._patience_seconds = patience_seconds
        self._spans: OrderedDict[str, tuple[OpenSpan, OpenSpan | None]] = OrderedDict()  # with the session's
        self._late: deque[tuple[float, int, str]] = deque()  # until when (monotonic), when the session ended, which

    def __len__(self) -> int:
        return len(self._spans)

    def get(self, operation_id: str) -> OpenSpan | None:
        """The span of work that goes on."""
        found = self._spans.get(operation_id)
        return found[0] if found is not None else None

    def session_of(self, operation_id: str) -> OpenSpan | None:
        """The session that work belongs to."""
        found = self._spans.get(operation_id)
        return found[1] if found is not None else None

    def add(self, operation_id: str, span: OpenSpan, session: OpenSpan | None) -> None:
        """Work began."""
        if len(self._spans) >= self._limit:
            self._give_up(next(iter(self._spans)), span.start_ns)
        self._spans[operation_id] = span, session
        if session is not None:
            session.children.add(operation_id)

    def take(self, operation_id: str) -> OpenSpan | None:
        """Work ended; None if its beginning was not seen, or it was given up."""
        span, session = self._spans.pop(operation_id, (None, None))
        if session is not None:
            session.children.discard(operation_id)
        return span

    def session_ended(self, session: OpenSpan, now: float, end_ns: int) -> None:
        """The session's work is late from ``now`` (monotonic) on."""
        until = now + self._patience_seconds
        self._late.extend((until, end_ns, operation_id) for operation_id in session.children)

    def give_up_late(self, now: float) -> None:
        """End what has been late for too long, as of when its session ended."""
        while self._late and self._late[0][0] <= now:
            _, end_ns, operation_id = self._late.popleft()
            self._give_up(operation_id, end_ns)

    def take_all(self) -> Iterable[OpenSpan]:
        """All that goes on, and no more."""
        spans = [span for span, _ in self._spans.values()]
        self._spans.clear()
        self._late.clear()
        return spans

    def _give_up(self, operation_id: str, end_ns: int) -> None:
        span = self.take(operation_id)
        if span is not None:
            span.fail(LOST, end_ns)
