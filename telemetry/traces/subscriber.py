"""Events as spans: sessions, their operations, the transfers of these, and the steps of transfers."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TracerProvider,
    get_current_span,
    set_span_in_context,
)

from telemetry import events
from telemetry.delivery import Subscriber
from telemetry.kinds import Outcome, SessionEnd
from telemetry.traces.attributes import INSTANCE_ID, PREFIX, SESSION_ID, AttributeValue, facts_of, ids_of
from telemetry.traces.export import parent_context
from telemetry.traces.open_spans import LOST, OpenSpan, OpenWork

OperationStarted = events.LookupStarted | events.StoreStarted | events.RetrieveStarted
WorkFinished = events.LookupFinished | events.StoreFinished | events.RetrieveFinished | events.TransferFinished

MAX_SESSIONS = 10_000
MAX_OPEN_WORK = 10_000
MAX_STORES_REMEMBERED = 65_536
MAX_ENDED_REMEMBERED = 1_024  # sessions, for the calls that ended them
LATE_TIMEOUT_SECONDS = 120.0
# OpenTelemetry's conventions: the statuses of a call that are a fault of the server.
SERVER_FAULTS = frozenset((2, 4, 12, 13, 14, 15))


class TracingSubscriber(Subscriber):
    """A subscriber that makes spans. The parent of a session's span is the call that began it, by its `traceparent`.
    The parent of the span of a call without a trace is its session's span, for a while also after the session's end.

    Failed work has the status ERROR, and so has a session that did not end by EndSession. Cancelled, refused and missed
    work has no status; see its attribute `kvdepot.outcome`. The number of open spans is bounded. Work whose end the bus
    dropped ends `late_timeout_seconds` after its session.
    """

    name = "tracing"

    def __init__(
        self,
        provider: TracerProvider,
        *,
        max_sessions: int = MAX_SESSIONS,
        max_open_work: int = MAX_OPEN_WORK,
        late_timeout_seconds: float = LATE_TIMEOUT_SECONDS,
    ) -> None:
        self._tracer = provider.get_tracer("kvdepot")
        self._max_sessions = max_sessions
        self._sessions: OrderedDict[tuple[str, str], OpenSpan] = OrderedDict()  # least recently used first
        self._ended: OrderedDict[tuple[str, str], SpanContext] = OrderedDict()
        self._work = OpenWork(max_open_work, late_timeout_seconds)
        self._stores: OrderedDict[str, tuple[SpanContext, str, str]] = (
            OrderedDict()
        )  # session's span and ids, by operation
        self._spans_of_batch: dict[events.Event, SpanContext] = {}
        self._on: dict[type[events.Event], Callable[[Any], Span | None]] = {
            events.SessionStarted: self._begin_session,
            events.SessionEnded: self._end_session,
            events.LookupStarted: self._begin_operation,
            events.StoreStarted: self._begin_operation,
            events.RetrieveStarted: self._begin_operation,
            events.TransferStarted: self._begin_transfer,
            events.LookupFinished: self._end_work,
            events.StoreFinished: self._end_work,
            events.RetrieveFinished: self._end_work,
            events.TransferFinished: self._end_transfer,
            events.LeaseGranted: self._note,
            events.LeaseEnded: self._note,
            events.CallServed: self._call,
        }

    def handle(self, batch: Sequence[events.Event]) -> None:
        """Begin and end spans."""
        self._spans_of_batch.clear()
        for event in batch:
            on = self._on.get(type(event))
            span = on(event) if on is not None else None
            if span is not None:
                self._spans_of_batch[event] = span.get_span_context()
        self._work.end_late(batch[-1].monotonic)

    def span_of(self, event: events.Event) -> SpanContext | None:
        """Return the span of an event of the last batch. It may have ended."""
        return self._spans_of_batch.get(event)

    def close(self) -> None:
        """End all open spans."""
        now_ns = time.time_ns()
        for open_span in (*self._work.take_all(), *self._sessions.values()):
            open_span.fail("the depot shut down", now_ns)
        self._sessions.clear()

    # Sessions

    def _begin_session(self, event: events.SessionStarted) -> Span:
        self._ended.pop((event.instance_label, event.session_id), None)
        earlier = self._sessions.pop((event.instance_label, event.session_id), None)
        if earlier is not None:
            self._work.session_ended(earlier, event.monotonic, _ns(event.time))
            earlier.fail(LOST, _ns(event.time))
        return self._open_session(event, {f"{PREFIX}model_name": event.model_name}).span

    def _open_session(
        self, event: events.SessionStarted | OperationStarted, facts: dict[str, AttributeValue]
    ) -> OpenSpan:
        if len(self._sessions) >= self._max_sessions:
            _, oldest = self._sessions.popitem(last=False)
            self._work.session_ended(oldest, event.monotonic, _ns(event.time))
            oldest.span.set_attribute(f"{PREFIX}reason", "too many sessions")
            oldest.end_at(_ns(event.time))
        session = self._open("session", parent_context(event.traceparent), event, ids_of(event) | facts)
        self._sessions[event.instance_label, event.session_id] = session
        return session

    def _end_session(self, event: events.SessionEnded) -> Span | None:
        session = self._sessions.pop((event.instance_label, event.session_id), None)
        if session is None:
            return None
        self._work.session_ended(session, event.monotonic, _ns(event.time))
        session.span.set_attributes(facts_of(event))
        if event.reason != SessionEnd.REQUESTED:
            session.span.set_status(Status(StatusCode.ERROR, event.reason))
        session.end_after(event.duration_seconds)
        if len(self._ended) >= MAX_ENDED_REMEMBERED:
            self._ended.popitem(last=False)
        self._ended[event.instance_label, event.session_id] = session.span.get_span_context()
        return session.span

    def _note(self, event: events.LeaseGranted | events.LeaseEnded) -> Span | None:
        session = self._sessions.get((event.instance_label, event.session_id))
        if session is None:
            return None
        session.span.add_event(type(event).__name__, facts_of(event), timestamp=_ns(event.time))
        return session.span

    # Calls

    def _call(self, event: events.CallServed) -> Span:
        service, _, method = event.rpc.partition("/")
        facts: dict[str, AttributeValue] = {
            **{"rpc.system": "grpc", "rpc.service": service, "rpc.method": method},
            "rpc.grpc.status_code": event.status,
            **{name: value for name, value in ids_of(event).items() if value},
        }
        end_ns = _ns(event.time)
        span = self._tracer.start_span(
            f"/{event.rpc}",
            self._context_of_session(event),
            SpanKind.SERVER,
            facts,
            start_time=end_ns - round(event.duration_seconds * 1e9),
        )
        if event.status in SERVER_FAULTS:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end_ns)
        return span

    def _context_of_session(self, event: events.Event) -> Context:
        key = event.instance_label, event.session_id
        session = self._sessions.get(key)
        if session is not None:
            return session.context
        ended = self._ended.get(key)
        return set_span_in_context(NonRecordingSpan(ended), Context()) if ended is not None else Context()

    # Work

    def _begin_operation(self, event: OperationStarted) -> Span:
        key = event.instance_label, event.session_id
        session = self._sessions.get(key)
        if session is None:  # its start was dropped, or its span ended as one of too many
            session = self._open_session(event, {})
        self._sessions.move_to_end(key)
        session_context = session.span.get_span_context()
        links = []
        parent = session.context
        if event.traceparent:
            caller_context = parent_context(event.traceparent)
            of_caller = get_current_span(caller_context).get_span_context()
            if of_caller.is_valid and of_caller.trace_id != session_context.trace_id:
                parent = caller_context
                links.append(Link(session_context, {SESSION_ID: event.session_id}))
        if isinstance(event, events.RetrieveStarted):
            links.extend(self._links_to_stores(event.stored_by))
        name = type(event).__name__.removesuffix("Started").lower()
        operation = self._open(name, parent, event, ids_of(event) | facts_of(event), links)
        self._work.add(event.operation_id, operation, session)
        if isinstance(event, events.StoreStarted) and session_context.trace_flags.sampled:
            self._remember_store(event, session_context)
        return operation.span

    def _begin_transfer(self, event: events.TransferStarted) -> Span:
        above = self._work.get(event.parent_operation_id) or self._sessions.get(
            (event.instance_label, event.session_id)
        )
        parent = above.context if above is not None else Context()
        transfer = self._open("transfer", parent, event, ids_of(event) | facts_of(event))
        self._work.add(event.operation_id, transfer, self._work.session_of(event.parent_operation_id))
        return transfer.span

    def _end_transfer(self, event: events.TransferFinished) -> Span | None:
        transfer = self._work.get(event.operation_id)
        if transfer is not None:
            for step in event.steps:
                start_ns = transfer.start_ns + round(step.start_seconds * 1e9)
                span = self._tracer.start_span(step.name, transfer.context, start_time=start_ns)
                span.end(start_ns + round(step.duration_seconds * 1e9))
        return self._end_work(event)

    def _end_work(self, event: WorkFinished) -> Span | None:
        work = self._work.take(event.operation_id)
        if work is None:
            return None
        work.span.set_attributes(facts_of(event))
        if event.outcome == Outcome.FAILED:
            work.span.set_status(Status(StatusCode.ERROR, "failed"))
        work.end_after(event.duration_seconds)
        return work.span

    def _open(
        self,
        name: str,
        parent: Context,
        event: events.Event,
        facts: dict[str, AttributeValue],
        links: Sequence[Link] = (),
    ) -> OpenSpan:
        start_ns = _ns(event.time)
        return OpenSpan(
            self._tracer.start_span(name, parent, attributes=facts, links=links, start_time=start_ns), start_ns
        )

    # Links of a retrieve to the stores of its chunks

    def _remember_store(self, event: events.StoreStarted, session: SpanContext) -> None:
        if len(self._stores) >= MAX_STORES_REMEMBERED:
            self._stores.popitem(last=False)
        self._stores[event.operation_id] = session, event.instance_label, event.session_id

    def _links_to_stores(self, operation_ids: Sequence[str]) -> list[Link]:
        """Return links to the spans of the stores' sessions, each once."""
        links: dict[int, Link] = {}
        for operation_id in operation_ids:
            stored = self._stores.get(operation_id)
            if stored is not None:
                self._stores.move_to_end(operation_id)
                session, instance_id, session_id = stored
                facts = {INSTANCE_ID: instance_id, SESSION_ID: session_id}
                links.setdefault(session.span_id, Link(session, facts))
        return list(links.values())


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
