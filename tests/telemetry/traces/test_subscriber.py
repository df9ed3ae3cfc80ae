"""Events as spans: their tree, times and links, and spans without an end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import Event as SpanEvent
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, StatusCode

from telemetry.events import (
    CallServed,
    Event,
    LeaseGranted,
    LookupFinished,
    LookupStarted,
    RetrieveFinished,
    RetrieveStarted,
    SessionEnded,
    SessionStarted,
    StoreFinished,
    StoreStarted,
    TransferFinished,
    TransferStarted,
    TransferStep,
)
from telemetry.resource import server_resource
from telemetry.traces.export import Tracing
from telemetry.traces.open_spans import OpenSpan, OpenWork
from telemetry.traces.subscriber import TracingSubscriber

NOON = 1_800_000_000.0
ENGINE_TRACE, ENGINE_SPAN = 0xAB << 64 | 0xCD, 0xEF
ENGINE = f"00-{ENGINE_TRACE:032x}-{ENGINE_SPAN:016x}-01"
OTHER_TRACE = ENGINE_TRACE + 1
OTHER = f"00-{OTHER_TRACE:032x}-{ENGINE_SPAN:016x}-01"
SESSION = {"instance_id": "pod-1", "session_id": "chat"}


class Traced:
    """A subscriber, and the spans that it has ended."""

    def __init__(self, **limits: Any) -> None:
        self._exporter = InMemorySpanExporter()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.subscriber = TracingSubscriber(provider, **limits)

    def see(self, *events: Event) -> None:
        """Handle each event in a batch of its own."""
        for event in events:
            self.subscriber.handle([event])

    @property
    def ended(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.ended if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        [span] = self.named(name)
        return span


@pytest.fixture
def traced() -> Traced:
    return Traced()


def of_session(event_type: Callable[..., Event], **fields: Any) -> Event:
    return event_type(**{**SESSION, "time": NOON, "monotonic": 100.0, **fields})


def session_started(**fields: Any) -> Event:
    return of_session(SessionStarted, **{"model_name": "llama", "traceparent": "", **fields})


def session_ended(**fields: Any) -> Event:
    facts = {"model_name": "llama", "reason": "requested", "duration_seconds": 10.0, "num_operations": 1}
    return of_session(SessionEnded, **{**facts, **fields})


def lookup_started(operation_id: str = "1", **fields: Any) -> Event:
    facts = {"traceparent": "", "num_tokens": 512, "computed_tokens": 0}
    return of_session(LookupStarted, operation_id=operation_id, **{**facts, **fields})


def lookup_finished(operation_id: str = "1", **fields: Any) -> Event:
    facts = {"duration_seconds": 0.25, "outcome": "ok", "num_tokens": 512, "miss_reason": ""}
    tokens = {"computed_tokens": 0, "matched_tokens": 512, "l1_tokens": 512, "l2_tokens": 0}
    facts |= {"matched_bytes": 9, "saved_prefill_seconds": None}
    return of_session(LookupFinished, operation_id=operation_id, **{**facts, **tokens, **fields})


def store_started(operation_id: str, **fields: Any) -> Event:
    facts = {"traceparent": "", "rank": 0, "num_tokens": 512, "start_token": 0, "inline": False}
    return of_session(StoreStarted, operation_id=operation_id, **{**facts, **fields})


def store_finished(operation_id: str, **fields: Any) -> Event:
    counts = {"stored_tokens": 512, "resident_tokens": 0, "refused_tokens": 0, "tail_tokens": 0, "stored_bytes": 9}
    facts = {"rank": 0, "duration_seconds": 0.5, "outcome": "ok", "refusal_reason": ""}
    return of_session(StoreFinished, operation_id=operation_id, **{**counts, **facts, **fields})


def retrieve_started(operation_id: str, **fields: Any) -> Event:
    facts = {"traceparent": "", "rank": 0, "lease_id": "l", "num_tokens": 512, "skip_tokens": 0, "inline": False}
    return of_session(RetrieveStarted, operation_id=operation_id, **{**facts, "stored_by": (), **fields})


def retrieve_finished(operation_id: str, **fields: Any) -> Event:
    counts = {"retrieved_tokens": 512, "retrieved_bytes": 9, "l1_tokens": 512, "l2_tokens": 0}
    facts = {"rank": 0, "duration_seconds": 0.5, "outcome": "ok"}
    return of_session(RetrieveFinished, operation_id=operation_id, **{**counts, **facts, **fields})


TRANSFER = {"direction": "store", "rank": 0, "num_chunks": 2, "num_bytes": 1 << 30, "backend": "host"}


def transfer_started(operation_id: str, parent: str, **fields: Any) -> Event:
    facts = {"operation_id": operation_id, "parent_operation_id": parent}
    return of_session(TransferStarted, **{**TRANSFER, **facts, **fields})


def transfer_finished(operation_id: str, parent: str, **fields: Any) -> Event:
    facts = {"operation_id": operation_id, "parent_operation_id": parent, "duration_seconds": 0.5, "outcome": "ok"}
    return of_session(TransferFinished, **{**TRANSFER, "steps": (), **facts, **fields})


def attributes_of(holder: ReadableSpan | SpanEvent | Link) -> Mapping[str, Any]:
    return holder.attributes or {}


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent is not None else None


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def trace_of(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.trace_id)


def ns(seconds: float) -> int:
    return round(NOON) * 10**9 + round(seconds * 1e9)


def test_session_joins_the_trace_of_the_call_that_began_it(traced: Traced) -> None:
    traced.see(session_started(traceparent=ENGINE), session_ended())
    session = traced.one("session")
    assert (trace_of(session), parent_of(session)) == (ENGINE_TRACE, ENGINE_SPAN)
    assert (session.start_time, session.end_time) == (ns(0), ns(10))
    assert session.status.status_code is StatusCode.UNSET
    assert session.attributes == {
        "kvdepot.instance_id": "pod-1",
        "kvdepot.session_id": "chat",
        "kvdepot.model_name": "llama",
        "kvdepot.reason": "requested",
        "kvdepot.num_operations": 1,
    }


@pytest.mark.parametrize("traceparent", ["", "nonsense", f"00-{0:032x}-{0:016x}-01", f"ff{ENGINE[2:]}"])
def test_without_a_caller_the_session_is_a_trace_of_its_own(traced: Traced, traceparent: str) -> None:
    traced.see(session_started(traceparent=traceparent), session_ended())
    session = traced.one("session")
    assert parent_of(session) is None
    assert trace_of(session) != ENGINE_TRACE


def test_operations_transfers_and_steps_are_a_tree(traced: Traced) -> None:
    steps = (
        TransferStep(name="wait", start_seconds=0.0, duration_seconds=0.125),
        TransferStep(name="gather", start_seconds=0.125, duration_seconds=0.25),
        TransferStep(name="copy", start_seconds=0.25, duration_seconds=0.25),
    )
    traced.see(
        session_started(),
        lookup_started("1", time=NOON + 1),
        lookup_finished("1"),
        store_started("2", time=NOON + 2),
        transfer_started("3", parent="2", time=NOON + 3),
        transfer_finished("3", parent="2", steps=steps),
        store_finished("2", duration_seconds=4.0),
        session_ended(),
    )
    session, store, transfer = traced.one("session"), traced.one("store"), traced.one("transfer")
    assert {span.name: parent_of(span) for span in traced.ended} == {
        "session": None,
        "lookup": id_of(session),
        "store": id_of(session),
        "transfer": id_of(store),
        "wait": id_of(transfer),
        "gather": id_of(transfer),
        "copy": id_of(transfer),
    }
    assert {trace_of(span) for span in traced.ended} == {trace_of(session)}
    assert {span.name: (span.start_time, span.end_time) for span in traced.ended} == {
        "session": (ns(0), ns(10)),
        "lookup": (ns(1), ns(1.25)),
        "store": (ns(2), ns(6)),
        "transfer": (ns(3), ns(3.5)),
        "wait": (ns(3), ns(3.125)),
        "gather": (ns(3.125), ns(3.375)),
        "copy": (ns(3.25), ns(3.5)),
    }


def test_attributes_have_the_types_of_the_facts(traced: Traced) -> None:
    traced.see(session_started(), store_started("1", inline=True), store_finished("1"))
    facts = dict(traced.one("store").attributes or {})
    assert facts["kvdepot.inline"] is True
    assert facts["kvdepot.stored_tokens"] == 512
    assert facts["kvdepot.outcome"] == "ok"
    assert not {"kvdepot.traceparent", "kvdepot.refusal_reason", "kvdepot.duration_seconds"} & facts.keys()


def test_concurrent_ranks_and_repeated_stores_have_a_span_each(traced: Traced) -> None:
    traced.see(
        session_started(),
        store_started("1", rank=0, time=NOON + 1),
        store_started("2", rank=1, time=NOON + 1),
        transfer_started("3", parent="1", rank=0),
        transfer_started("4", parent="2", rank=1),
        transfer_finished("4", parent="2", rank=1),
        store_finished("2", rank=1, duration_seconds=1.0),
        transfer_finished("3", parent="1", rank=0),
        store_finished("1", rank=0, duration_seconds=2.0),
        store_started("5", rank=0, time=NOON + 5),
        store_finished("5", rank=0, duration_seconds=3.0),
    )
    stores = {attributes_of(span)["kvdepot.operation_id"]: span for span in traced.named("store") if span.attributes}
    assert {key: (attributes_of(span)["kvdepot.rank"], span.end_time) for key, span in stores.items()} == {
        "1": (0, ns(3)),
        "2": (1, ns(2)),
        "5": (0, ns(8)),
    }
    parents = {attributes_of(span)["kvdepot.rank"]: parent_of(span) for span in traced.named("transfer")}
    assert parents == {0: id_of(stores["1"]), 1: id_of(stores["2"])}


def test_sessions_of_two_instances_with_one_id_are_two(traced: Traced) -> None:
    traced.see(
        session_started(instance_id="a"),
        session_started(instance_id="b"),
        lookup_started("1", instance_id="b"),
        lookup_finished("1", instance_id="b"),
        session_ended(instance_id="a", duration_seconds=1.0),
        session_ended(instance_id="b", duration_seconds=2.0),
    )
    of_a, of_b = traced.named("session")
    assert (of_a.end_time, of_b.end_time) == (ns(1), ns(2))
    assert parent_of(traced.one("lookup")) == id_of(of_b)


def test_call_of_the_sessions_own_trace_is_a_child_of_the_session(traced: Traced) -> None:
    traced.see(session_started(traceparent=ENGINE), lookup_started(traceparent=ENGINE), lookup_finished())
    traced.see(session_ended())
    assert parent_of(traced.one("lookup")) == id_of(traced.one("session"))
    assert not traced.one("lookup").links


def test_call_of_another_trace_is_a_child_of_its_caller_with_a_link_to_the_session(traced: Traced) -> None:
    traced.see(session_started(traceparent=ENGINE), lookup_started(traceparent=OTHER), lookup_finished())
    traced.see(session_ended())
    lookup, session = traced.one("lookup"), traced.one("session")
    assert (trace_of(lookup), parent_of(lookup)) == (OTHER_TRACE, ENGINE_SPAN)
    [link] = lookup.links
    assert (link.context.trace_id, link.context.span_id) == (ENGINE_TRACE, id_of(session))
    assert link.attributes == {"kvdepot.session_id": "chat"}


def test_caller_that_is_not_sampled_makes_no_span(traced: Traced) -> None:
    traced.see(session_started(traceparent=f"{ENGINE[:-2]}00"), lookup_started(), lookup_finished())
    traced.see(store_started("2", traceparent=OTHER), store_finished("2"), session_ended())
    assert [span.name for span in traced.ended] == ["store"]


def test_retrieve_links_to_the_sessions_that_stored_its_chunks(traced: Traced) -> None:
    traced.see(
        session_started(session_id="writer"),
        store_started("1", session_id="writer"),
        store_started("2", session_id="writer"),
        session_started(session_id="other writer"),
        store_started("3", session_id="other writer"),
        session_started(),
        retrieve_started("4", stored_by=("3", "2", "1", "of before the start")),
        retrieve_finished("4"),
        session_ended(session_id="writer"),
        session_ended(session_id="other writer"),
    )
    writer, other = traced.named("session")
    assert [
        (link.context.span_id, attributes_of(link)["kvdepot.session_id"]) for link in traced.one("retrieve").links
    ] == [
        (id_of(other), "other writer"),
        (id_of(writer), "writer"),
    ]


def test_retrieve_has_no_link_to_a_session_without_a_span(traced: Traced) -> None:
    traced.see(session_started(session_id="writer", traceparent=f"{ENGINE[:-2]}00"))
    traced.see(store_started("1", session_id="writer"), store_finished("1", session_id="writer"))
    traced.see(retrieve_started("2", stored_by=("1",)), retrieve_finished("2"))
    assert not traced.one("retrieve").links


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        ("ok", StatusCode.UNSET),
        ("partial", StatusCode.UNSET),
        ("miss", StatusCode.UNSET),
        ("refused", StatusCode.UNSET),
        ("cancelled", StatusCode.UNSET),
        ("failed", StatusCode.ERROR),
    ],
)
def test_what_failed_has_an_error(traced: Traced, outcome: str, status: StatusCode) -> None:
    traced.see(store_started("1"), transfer_started("2", parent="1"))
    traced.see(transfer_finished("2", parent="1", outcome=outcome), store_finished("1", outcome=outcome))
    assert [span.status.status_code for span in traced.ended] == [status, status]
    assert attributes_of(traced.one("store"))["kvdepot.outcome"] == outcome


@pytest.mark.parametrize("reason", ["idle", "instance detached"])
def test_session_that_dies_has_an_error(traced: Traced, reason: str) -> None:
    traced.see(session_started(), session_ended(reason=reason))
    status = traced.one("session").status
    assert (status.status_code, status.description) == (StatusCode.ERROR, reason)


def test_leases_are_events_of_the_session(traced: Traced) -> None:
    traced.see(session_started(), of_session(LeaseGranted, lease_id="l", num_chunks=2, expire_time=NOON + 60))
    traced.see(session_ended())
    [event] = traced.one("session").events
    assert (event.name, event.timestamp) == ("LeaseGranted", ns(0))
    assert attributes_of(event)["kvdepot.num_chunks"] == 2


def test_work_that_outlives_its_session_ends_as_it_does(traced: Traced) -> None:
    traced.see(session_started(), store_started("1", time=NOON + 9), session_ended())
    traced.see(store_finished("1", duration_seconds=3.0, outcome="failed"))
    store = traced.one("store")
    assert (store.end_time, attributes_of(store)["kvdepot.outcome"]) == (ns(12), "failed")
    assert parent_of(store) == id_of(traced.one("session"))


def test_work_whose_end_was_dropped_ends_after_its_session(traced: Traced) -> None:
    traced = Traced(late_timeout_seconds=60.0)
    traced.see(session_started(), store_started("1"), transfer_started("2", parent="1"))
    traced.see(session_ended(time=NOON + 5, monotonic=105.0))
    traced.see(session_started(session_id="another", monotonic=164.9))
    assert [span.name for span in traced.ended] == ["session"]
    traced.see(session_started(session_id="a third", monotonic=165.0))
    for name in ("store", "transfer"):
        lost = traced.one(name)
        assert (lost.status.status_code, lost.status.description) == (StatusCode.ERROR, "its end was not seen")
        assert lost.end_time == ns(5)
    traced.see(store_finished("1"))
    assert len(traced.ended) == 3


def test_work_whose_end_was_dropped_is_bounded() -> None:
    traced = Traced(max_open_work=2)
    traced.see(lookup_started("1"), lookup_started("2"), lookup_started("3"), lookup_finished("3"))
    first, third = traced.named("lookup")
    assert (attributes_of(first)["kvdepot.operation_id"], first.status.status_code) == ("1", StatusCode.ERROR)
    assert (attributes_of(third)["kvdepot.operation_id"], third.status.status_code) == ("3", StatusCode.UNSET)


def test_sessions_are_bounded_and_the_least_recently_used_ends_first() -> None:
    traced = Traced(max_sessions=2)
    traced.see(session_started(session_id="a"), session_started(session_id="b"))
    traced.see(lookup_started("1", session_id="a"), session_started(session_id="c", time=NOON + 3))
    over = traced.one("session")
    assert (attributes_of(over)["kvdepot.session_id"], attributes_of(over)["kvdepot.reason"]) == (
        "b",
        "too many sessions",
    )
    assert over.end_time == ns(3)
    traced.see(session_ended(session_id="b"))
    assert len(traced.named("session")) == 1


def test_session_whose_beginning_was_dropped_begins_with_its_first_operation(traced: Traced) -> None:
    traced.see(lookup_started(traceparent=ENGINE), lookup_finished(), session_ended())
    assert trace_of(traced.one("session")) == ENGINE_TRACE
    assert parent_of(traced.one("lookup")) == id_of(traced.one("session"))


def test_session_whose_end_was_dropped_ends_when_its_id_begins_again(traced: Traced) -> None:
    traced.see(session_started(), session_started(time=NOON + 7), session_ended(duration_seconds=1.0))
    lost, second = traced.named("session")
    assert (lost.status.description, lost.end_time) == ("its end was not seen", ns(7))
    assert second.status.status_code is StatusCode.UNSET


def test_end_whose_beginning_was_dropped_makes_no_span(traced: Traced) -> None:
    traced.see(lookup_finished(), session_ended(), transfer_finished("2", parent="1"))
    traced.subscriber.close()
    assert not traced.ended


def test_close_ends_what_is_open(traced: Traced) -> None:
    traced.see(session_started(), store_started("1"), transfer_started("2", parent="1"))
    traced.subscriber.close()
    assert sorted(span.name for span in traced.ended) == ["session", "store", "transfer"]
    assert {span.status.description for span in traced.ended} == {"the depot shut down"}


def test_clock_that_was_set_back_ends_no_span_before_its_start(traced: Traced) -> None:
    traced.see(session_started(), store_started("1"), session_started(time=NOON - 3600))
    lost = traced.one("session")
    assert lost.end_time == lost.start_time == ns(0)


def test_span_of_an_event_is_known_until_the_next_batch(traced: Traced) -> None:
    events = [session_started(), store_started("1"), store_finished("1"), session_ended(), session_started()]
    traced.subscriber.handle(events)
    store, session = traced.one("store"), traced.one("session")
    *spans, again = [traced.subscriber.span_of(event) for event in events]
    assert [span.span_id for span in spans if span is not None] == [
        id_of(session),
        id_of(store),
        id_of(store),
        id_of(session),
    ]
    assert again is not None
    assert again.span_id != id_of(session)
    traced.see(lookup_finished("unknown"))
    assert traced.subscriber.span_of(events[0]) is None


def test_session_forgets_work_that_ended() -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    session, store = (OpenSpan(provider.get_tracer("t").start_span("s"), 0) for _ in range(2))
    work = OpenWork(limit=10, timeout_seconds=1.0)
    work.add("1", store, session)
    assert session.children == {"1"}
    assert work.take("1") is store
    assert not session.children


class HangingExporter(SpanExporter):
    """Waits for a collector until it is shut down."""

    def __init__(self) -> None:
        self._given_up = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._given_up.wait()
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self._given_up.set()


def test_close_gives_up_on_a_collector_that_hangs_and_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telemetry.traces.export.FLUSH_SECONDS", 0.05)
    monkeypatch.setattr("telemetry.traces.export.GIVE_UP_SECONDS", 20.0)
    before = set(threading.enumerate())
    tracing = Tracing([HangingExporter()], server_resource("1"))
    tracing.provider.get_tracer("t").start_span("s").end()
    tracing.close()
    assert set(threading.enumerate()) <= before


# Calls without a caller's trace


def call_served(rpc: str = "kvdepot.v1.CacheService/Lookup", status: int = 0, **fields: Any) -> Event:
    return of_session(CallServed, **{"rpc": rpc, "status": status, "duration_seconds": 0.5, **fields})


def test_a_call_is_in_the_trace_of_its_session_also_after_its_end(traced: Traced) -> None:
    end = "kvdepot.v1.CacheService/EndSession"
    traced.see(session_started(), call_served(), session_ended(), call_served(end, time=NOON + 1))
    session, during, after = traced.one("session"), traced.one("/kvdepot.v1.CacheService/Lookup"), traced.one(f"/{end}")
    for call in (during, after):
        assert call.parent is not None
        assert (call.parent.trace_id, call.parent.span_id) == (session.context.trace_id, session.context.span_id)
    assert (during.start_time, during.end_time) == (round((NOON - 0.5) * 1e9), round(NOON * 1e9))
    assert after.start_time == round((NOON + 0.5) * 1e9)


def test_a_call_of_an_unknown_session_is_a_trace_of_its_own(traced: Traced) -> None:
    traced.see(session_started(), call_served(session_id="other"))
    assert traced.one("/kvdepot.v1.CacheService/Lookup").parent is None


def test_a_call_of_a_later_life_of_a_session_is_not_in_the_trace_of_an_earlier_one() -> None:
    traced = Traced(max_sessions=1)
    traced.see(session_started(), session_ended(), session_started())
    traced.see(session_started(session_id="other"))  # ends the span of the second life: there are too many
    traced.see(call_served())
    assert traced.one("/kvdepot.v1.CacheService/Lookup").parent is None


def test_a_limited_number_of_ended_sessions_is_remembered(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telemetry.traces.subscriber.MAX_ENDED_REMEMBERED", 2)
    for name in ("a", "b", "c"):
        traced.see(session_started(session_id=name), session_ended(session_id=name))
    for name in ("a", "b", "c"):
        traced.see(call_served(session_id=name))
    assert [call.parent is None for call in traced.named("/kvdepot.v1.CacheService/Lookup")] == [True, False, False]


@pytest.mark.parametrize(
    ("status", "is_error"), [(0, False), (3, False), (5, False), (8, False), (13, True), (14, True)]
)
def test_only_a_fault_of_the_server_is_an_error_of_the_call(traced: Traced, status: int, is_error: bool) -> None:
    traced.see(call_served(status=status))
    call = traced.one("/kvdepot.v1.CacheService/Lookup")
    assert call.attributes is not None
    assert call.attributes["rpc.grpc.status_code"] == status
    assert (call.status.status_code is StatusCode.ERROR) == is_error
