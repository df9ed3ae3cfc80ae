"""The history of activity: each event counts once, in the second in which it came, for the depot and its tenant."""

from __future__ import annotations

from dataclasses import fields as fields_of
from itertools import pairwise
from typing import Any, TypeVar

import pytest

from telemetry import events
from telemetry.activity.bucket import MISS_REASONS, REFUSAL_REASONS, Bucket, Gauges
from telemetry.activity.busiest import MAX_SESSIONS
from telemetry.activity.latency import BOUNDS_SECONDS, bucket_of
from telemetry.activity.series import KEPT, Resolution
from telemetry.activity.subscriber import MAX_TENANTS, Activity
from telemetry.events import EVENT_TYPES
from telemetry.kinds import MissReason, OperationKind, Outcome, RefusalReason
from tests.fakes.clock import Clock
from tests.telemetry.conftest import example

START = 5_000.0 - 1024.0  # of the clock's moment 0, so that the history begins at 5,000


@pytest.fixture
def activity(clock: Clock) -> Activity:
    return Activity(clock, START)


T = TypeVar("T", bound=events.Event)


def made(event_type: type[T], **given: Any) -> T:
    """Return an event with these fields, of no tenant, instance or session unless one is given."""
    event = example(event_type)
    for name, value in ({"tenant": "", "instance_id": "", "session_id": ""} | given).items():
        assert name in {field.name for field in fields_of(event_type)}, name
        setattr(event, name, value)
    return event  # type: ignore[return-value]  # of this type


def looked_up(num_tokens: int = 100, matched_tokens: int = 60, **fields: Any) -> events.LookupFinished:
    given: dict[str, Any] = {
        "operation_id": "1",
        "duration_seconds": 0.001,
        "outcome": Outcome.PARTIAL,
        "num_tokens": num_tokens,
        "matched_tokens": matched_tokens,
        "l1_tokens": matched_tokens,
        "l2_tokens": 0,
        "matched_bytes": 1,
        "saved_prefill_seconds": None,
        "miss_reason": MissReason.EVICTED,
    }
    return made(events.LookupFinished, **(given | fields))


def stored(**fields: Any) -> events.StoreFinished:
    given: dict[str, Any] = {
        "operation_id": "1",
        "rank": 0,
        "duration_seconds": 0.002,
        "outcome": Outcome.OK,
        "stored_tokens": 64,
        "resident_tokens": 32,
        "refused_tokens": 16,
        "tail_tokens": 3,
        "stored_bytes": 4_096,
        "refusal_reason": "",
    }
    return made(events.StoreFinished, **(given | fields))


def retrieved(**fields: Any) -> events.RetrieveFinished:
    given: dict[str, Any] = {
        "operation_id": "1",
        "rank": 0,
        "duration_seconds": 0.004,
        "outcome": Outcome.OK,
        "retrieved_tokens": 48,
        "retrieved_bytes": 8_192,
        "l1_tokens": 48,
        "l2_tokens": 0,
    }
    return made(events.RetrieveFinished, **(given | fields))


def transferred(direction: str, **fields: Any) -> events.TransferFinished:
    given: dict[str, Any] = {
        "operation_id": "1",
        "parent_operation_id": "2",
        "direction": direction,
        "rank": 0,
        "duration_seconds": 0.5,
        "outcome": Outcome.OK,
        "num_chunks": 2,
        "num_bytes": 1_000,
        "backend": "host",
        "steps": (),
    }
    return made(events.TransferFinished, **(given | fields))


def evicted(**fields: Any) -> events.ChunksEvicted:
    return made(events.ChunksEvicted, **{"tier": "l1", "keys": (b"a", b"b"), "num_bytes": 2_048} | fields)


def read_from_tier(outcome: str) -> events.TierRead:
    return made(events.TierRead, num_bytes=4_096, outcome=outcome)


def written_to_tier(outcome: str) -> events.TierWritten:
    return made(events.TierWritten, num_bytes=1_024, outcome=outcome)


def only(buckets: Any) -> Bucket:
    (bucket,) = buckets
    return bucket  # type: ignore[no-any-return]


def test_each_event_counts_in_the_second_in_which_it_came(activity: Activity, clock: Clock) -> None:
    activity.handle([looked_up(), looked_up(100, 100, outcome=Outcome.OK, miss_reason="")])
    activity.handle([stored(refusal_reason=RefusalReason.NO_SLOT), retrieved(), transferred("store")])
    activity.handle([transferred("retrieve", num_bytes=3_000), transferred("store", outcome=Outcome.FAILED), evicted()])
    clock.advance(1)
    activity.handle([looked_up(7, 0)])
    clock.advance(1)
    first, second = activity.read()
    assert (first.start_time, second.start_time) == (5_000.0, 5_001.0)
    assert {name: first.count(name) for name in ("lookup_tokens", "matched_tokens", "retrieved_tokens")} == {
        "lookup_tokens": 200,
        "matched_tokens": 160,
        "retrieved_tokens": 48,
    }
    assert [first.count(name) for name in ("stored_tokens", "resident_tokens", "refused_tokens")] == [64, 32, 16]
    assert [first.count(name) for name in ("stored_bytes", "retrieved_bytes")] == [4_096, 8_192]
    assert [first.count(f"{way}_transfer_bytes") for way in ("store", "retrieve")] == [1_000, 3_000]
    assert [first.count(f"{way}_transfer_seconds") for way in ("store", "retrieve")] == [0.5, 0.5]
    assert [first.count(name) for name in ("num_evicted_chunks", "evicted_bytes")] == [2, 2_048]
    assert first.missed_tokens_by_reason == {"evicted": 40}
    assert first.num_refused_stores_by_reason == {"no slot": 1}
    assert [sum(first.latencies(kind)[1]) for kind in OperationKind] == [2, 1, 1]
    assert (second.count("lookup_tokens"), second.missed_tokens_by_reason) == (7, {"evicted": 7})


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.CANCELLED])
def test_a_lookup_without_an_answer_failed_and_missed_for_no_other_reason(
    activity: Activity, clock: Clock, outcome: Outcome
) -> None:
    activity.handle([looked_up(10, 0, outcome=outcome, miss_reason=""), looked_up(5, 0, miss_reason="")])
    clock.advance(1)
    bucket = only(activity.read())
    assert bucket.num_failed("lookup") == 1
    assert bucket.missed_tokens_by_reason == {"no answer": 10, "shorter than chunk": 5}


@pytest.mark.parametrize("reason", MissReason)
def test_every_reason_of_a_miss_counts(activity: Activity, clock: Clock, reason: MissReason) -> None:
    activity.handle([looked_up(miss_reason=reason)])
    clock.advance(1)
    assert only(activity.read()).missed_tokens_by_reason == {reason.value: 40}
    assert reason.value in MISS_REASONS


@pytest.mark.parametrize("reason", RefusalReason)
def test_every_reason_of_a_refusal_counts(activity: Activity, clock: Clock, reason: RefusalReason) -> None:
    activity.handle([stored(refusal_reason=reason)])
    clock.advance(1)
    assert only(activity.read()).num_refused_stores_by_reason == {reason.value: 1}
    assert reason.value in REFUSAL_REASONS


def test_tiers_behind_l1_have_counts_of_their_own(activity: Activity, clock: Clock) -> None:
    activity.handle([looked_up(100, 60, l1_tokens=20, l2_tokens=40), evicted(tier="l2")])
    activity.handle([read_from_tier(outcome) for outcome in ("arrived", "arrived", "damaged", "late")])
    activity.handle([written_to_tier(outcome) for outcome in ("ok", "full")])
    clock.advance(1)
    bucket = only(activity.read())
    assert (bucket.count("matched_tokens"), bucket.count("l2_tokens")) == (60, 40)
    assert (bucket.count("tier_read_bytes"), bucket.count("tier_written_bytes")) == (8_192, 1_024)
    assert bucket.count("num_evicted_chunks") == 0


def test_any_event_is_taken(activity: Activity) -> None:
    for event_type in EVENT_TYPES.values():
        event = example(event_type)
        for name, value in (("miss_reason", "evicted"), ("refusal_reason", "no slot")):
            if hasattr(event, name):
                setattr(event, name, value)
        activity.handle([event])


def test_a_running_second_is_not_shown_and_a_complete_one_never_changes(activity: Activity, clock: Clock) -> None:
    activity.handle([looked_up()])
    clock.advance(0.75)
    activity.handle([looked_up()])
    assert activity.read() == []
    clock.advance(0.5)
    bucket = only(activity.read())
    activity.handle([looked_up()])
    assert bucket.count("lookup_tokens") == 200
    assert activity.read() == [bucket]


def test_a_poller_gets_each_bucket_once(activity: Activity, clock: Clock) -> None:
    got: list[float] = []
    for second in range(20):
        if second % 3:
            activity.handle([looked_up()])
        got += [bucket.start_time for bucket in activity.read(after=got[-1] if got else 0.0)]
        clock.advance(1)
    assert got == [5_000.0 + second for second in range(19) if second % 3]


def test_ten_seconds_are_the_sum_of_their_seconds(activity: Activity, clock: Clock) -> None:
    for _ in range(25):
        activity.handle([looked_up(), stored(refusal_reason=RefusalReason.NO_SLOT)])
        activity.sample({"": Gauges(num_chunks=int(clock.now))})
        clock.advance(1)
    buckets = activity.read(resolution=Resolution.TEN_SECONDS)
    assert [bucket.start_time for bucket in buckets] == [5_000.0, 5_010.0]
    for bucket, last_second in zip(buckets, (1_033, 1_043), strict=True):
        assert bucket.count("lookup_tokens") == 1_000
        assert bucket.missed_tokens_by_reason == {"evicted": 400}
        assert bucket.num_refused_stores_by_reason == {"no slot": 10}
        assert sum(bucket.latencies("lookup")[1]) == sum(bucket.latencies("store")[1]) == 10
        assert bucket.gauges == Gauges(num_chunks=last_second)


def test_ten_seconds_without_events_after_them_are_complete(activity: Activity, clock: Clock) -> None:
    activity.handle([looked_up()])
    clock.advance(60)
    assert only(activity.read(resolution=Resolution.TEN_SECONDS)).count("lookup_tokens") == 100


def test_only_the_last_hour_is_kept(activity: Activity, clock: Clock) -> None:
    for _ in range(4_000):
        activity.handle([looked_up()])
        clock.advance(1)
    seconds, tens = activity.read(), activity.read(resolution=Resolution.TEN_SECONDS)
    assert len(seconds) == KEPT[Resolution.SECOND] == 300
    assert seconds[-1].start_time == 8_999.0
    assert len(tens) == KEPT[Resolution.TEN_SECONDS] == 360
    assert tens[-1].start_time - tens[0].start_time == 3_590.0


def test_a_tenant_has_its_own_counts_and_the_depot_has_all(activity: Activity, clock: Clock) -> None:
    activity.handle([looked_up(10, 10, tenant="red"), looked_up(20, 20, tenant="blue"), evicted(tenant="blue")])
    activity.sample({"": Gauges(num_chunks=3), "red": Gauges(num_chunks=1), "blue": Gauges(num_chunks=2)})
    clock.advance(1)
    red, blue, every = (only(activity.read(tenant)) for tenant in ("red", "blue", ""))
    assert [each.count("lookup_tokens") for each in (red, blue, every)] == [10, 20, 30]
    assert [each.count("num_evicted_chunks") for each in (red, blue, every)] == [0, 2, 2]
    assert [each.gauges and each.gauges.num_chunks for each in (red, blue, every)] == [1, 2, 3]


def test_a_second_without_a_sample_has_the_state_of_the_second_before(activity: Activity, clock: Clock) -> None:
    activity.sample({"": Gauges(num_chunks=3)})
    for _ in range(2):
        clock.advance(1)
        activity.handle([looked_up()])
    clock.advance(1)
    assert [each.gauges and each.gauges.num_chunks for each in activity.read()] == [3, 3, 3]


def test_of_an_unknown_tenant_there_is_nothing(activity: Activity, clock: Clock) -> None:
    activity.handle([looked_up(tenant="red")])
    activity.sample({"green": Gauges(num_chunks=1)})
    clock.advance(1)
    assert list(activity.read("green")) == []


def test_the_tenant_that_was_active_least_recently_makes_room(activity: Activity, clock: Clock) -> None:
    for number in range(MAX_TENANTS):
        activity.handle([looked_up(tenant=f"tenant-{number}")])
    activity.sample({f"tenant-{number}": Gauges() for number in range(MAX_TENANTS)})  # no activity
    activity.handle([looked_up(tenant="tenant-0"), looked_up(tenant="new")])
    clock.advance(1)
    kept = [name for number in range(MAX_TENANTS) if activity.read(name := f"tenant-{number}")]
    assert kept == [f"tenant-{number}" for number in range(MAX_TENANTS) if number != 1]
    assert activity.read("new")


def test_durations_lie_in_the_bucket_below_whose_bound_they_are() -> None:
    assert [bucket_of(seconds) for seconds in (0.0, 20e-6, 21e-6, 1e9)] == [0, 0, 1, len(BOUNDS_SECONDS)]
    assert BOUNDS_SECONDS[-1] > 20
    ratios = {round(after / before, 6) for before, after in pairwise(BOUNDS_SECONDS)}
    assert ratios == {round(2**0.25, 6)}


def test_the_busiest_sessions_are_those_that_moved_most_in_the_last_minute(activity: Activity, clock: Clock) -> None:
    activity.handle([retrieved(instance_id="i", session_id="old", retrieved_bytes=10**9)])
    clock.advance(61)
    activity.handle([stored(instance_id="i", session_id="moves"), looked_up(instance_id="i", session_id="moves")])
    clock.advance(10)
    activity.handle([retrieved(instance_id="i", session_id="moves"), looked_up(instance_id="i", session_id="asks")])
    (first_key, first), (second_key, second) = activity.busiest("", 20)
    assert (first_key, second_key) == (("", "i", "moves"), ("", "i", "asks"))
    assert (first.num_operations, first.lookup_tokens, first.matched_tokens, first.num_bytes) == (3, 100, 60, 12_288)
    assert (second.num_operations, second.lookup_tokens, second.num_bytes) == (1, 100, 0)
    assert [key for key, _ in activity.busiest("", 1)] == [("", "i", "moves")]


def test_a_tenant_sees_only_its_own_sessions(activity: Activity) -> None:
    activity.handle([stored(tenant=name, instance_id="i", session_id="s") for name in ("red", "blue")])
    assert [key for key, _ in activity.busiest("red", 20)] == [("red", "i", "s")]
    assert len(activity.busiest("", 20)) == 2


def test_a_flood_of_sessions_takes_no_more_memory(activity: Activity) -> None:
    activity.handle([looked_up(session_id=str(number)) for number in range(3 * MAX_SESSIONS)])
    assert len(activity.busiest("", 10**6)) == MAX_SESSIONS
