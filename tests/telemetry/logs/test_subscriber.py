"""Events as log lines."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from telemetry.events import (
    EVENT_TYPES,
    ChunksStored,
    InstanceDetached,
    LeaseEnded,
    LookupFinished,
    RetrieveFinished,
    ServerDraining,
    ServerStarted,
    SessionStarted,
    StoreFinished,
)
from telemetry.logs.subscriber import LogSubscriber


@pytest.fixture(autouse=True)
def all_levels(caplog):
    caplog.set_level(logging.DEBUG, "telemetry.logs.subscriber")


def stored(**changes: Any) -> StoreFinished:
    counts = {"stored_tokens": 512, "resident_tokens": 0, "refused_tokens": 0, "tail_tokens": 3, "stored_bytes": 9}
    fields = {"operation_id": "op", "rank": 0, "duration_seconds": 0.12345678, "outcome": "ok", "refusal_reason": ""}
    facts: dict[str, Any] = {"instance_id": "pod-1", "session_id": "chat", **fields, **counts, **changes}
    return StoreFinished(**facts)


def test_line_is_the_name_and_the_facts(caplog, make_example):
    LogSubscriber().handle([make_example(InstanceDetached)])
    [record] = caplog.records
    assert record.getMessage() == (
        "InstanceDetached tenant='text' instance_id='text/text' session_id='text' model_name='text' rank=7 "
        "reason='text' num_ranks_left=7"
    )
    assert record.args["rank"] == 7
    assert record.levelno == logging.INFO


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            stored(stored_bytes=3 << 20),
            "StoreFinished 'pod-1' 'chat' rank 0: 512 tokens stored, 3 tail, 3.0 MiB in 123.5 ms at 0.03 GB/s, ok",
        ),
        (
            stored(stored_tokens=0, stored_bytes=0, refused_tokens=1_024, outcome="refused", refusal_reason="no slot"),
            "StoreFinished 'pod-1' 'chat' rank 0: 0 tokens stored, 1,024 refused, 3 tail, 0.0 MiB in 123.5 ms, "
            "refused: no slot",
        ),
        (
            LookupFinished(
                tenant="red",
                instance_id="pod-1",
                session_id="chat",
                operation_id="op",
                duration_seconds=0.0012,
                outcome="partial",
                num_tokens=8_192,
                computed_tokens=0,
                matched_tokens=4_096,
                l1_tokens=4_096,
                l2_tokens=0,
                matched_bytes=1 << 30,
                saved_prefill_seconds=None,
                miss_reason="never stored",
            ),
            "LookupFinished 'red/pod-1' 'chat': 4,096 of 8,192 tokens matched, 1.2 ms, partial: never stored",
        ),
        (
            RetrieveFinished(
                instance_id="pod-1",
                session_id="chat",
                operation_id="op",
                rank=1,
                duration_seconds=0.5,
                outcome="ok",
                retrieved_tokens=4_096,
                retrieved_bytes=1 << 30,
                l1_tokens=4_096,
                l2_tokens=0,
            ),
            "RetrieveFinished 'pod-1' 'chat' rank 1: 4,096 tokens retrieved, 1,024.0 MiB in 500.0 ms at 2.15 GB/s, ok",
        ),
        (
            LookupFinished(
                instance_id="pod-1",
                session_id="chat",
                operation_id="op",
                duration_seconds=0.0012,
                outcome="ok",
                num_tokens=4_096,
                computed_tokens=0,
                matched_tokens=4_096,
                l1_tokens=1_024,
                l2_tokens=3_072,
                matched_bytes=1 << 30,
                saved_prefill_seconds=None,
                miss_reason="",
            ),
            "LookupFinished 'pod-1' 'chat': 4,096 of 4,096 tokens matched, 3,072 of them in L2, 1.2 ms, ok",
        ),
        (
            RetrieveFinished(
                instance_id="pod-1",
                session_id="chat",
                operation_id="op",
                rank=1,
                duration_seconds=0.5,
                outcome="ok",
                retrieved_tokens=4_096,
                retrieved_bytes=1 << 30,
                l1_tokens=1_024,
                l2_tokens=3_072,
            ),
            "RetrieveFinished 'pod-1' 'chat' rank 1: 4,096 tokens retrieved, 3,072 of them from L2, 1,024.0 MiB in "
            "500.0 ms at 2.15 GB/s, ok",
        ),
    ],
)
def test_a_line_of_a_request_is_a_summary_with_the_facts_behind_it(caplog, event, line):
    LogSubscriber().handle([event])
    [record] = caplog.records
    assert record.getMessage() == line
    assert record.args["duration_seconds"] == round(event.duration_seconds, 6)


def test_event_without_facts_is_its_name(caplog):
    LogSubscriber().handle([ServerDraining()])
    assert caplog.messages == ["ServerDraining"]


def test_keys_are_counted_and_addresses_are_shown(caplog, make_example):
    LogSubscriber().handle([make_example(ChunksStored), make_example(ServerStarted)])
    assert "num_keys=2" in caplog.messages[0]
    assert "0102" not in caplog.text
    assert "listen=['127.0.0.1:1', 'unix:/x']" in caplog.messages[1]


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({}, logging.INFO),
        ({"outcome": "partial"}, logging.INFO),
        ({"outcome": "cancelled"}, logging.INFO),
        ({"outcome": "partial", "refused_tokens": 256}, logging.WARNING),
        ({"outcome": "refused"}, logging.WARNING),
        ({"outcome": "failed"}, logging.WARNING),
    ],
)
def test_refused_and_failed_are_warnings(caplog, changes, level):
    LogSubscriber().handle([stored(**changes)])
    assert [record.levelno for record in caplog.records] == [level]


def test_start_transfer_lease_and_chunk_events_are_debug(caplog, make_example):
    LogSubscriber().handle([make_example(event_type) for event_type in EVENT_TYPES.values()])
    debug = {record.getMessage().split()[0] for record in caplog.records if record.levelno == logging.DEBUG}
    work = {"LookupStarted", "StoreStarted", "RetrieveStarted", "TransferStarted", "TransferFinished"}
    chunks = {"ChunksPrefetched", "ChunksStored", "ChunksReused", "ChunksEvicted", "ChunksRemoved"}
    # The server writes lines of its own of these (its session log, its audit, its refusals, its verification), or makes
    # spans of them.
    told_elsewhere = {"SessionEnded", "CallDenied", "CallRefused", "CallServed", "ChunksCorrupt"}
    tiers = {"TierAsked", "TierRead", "TierWritten", "TierWriteDropped"}
    assert debug == work | chunks | told_elsewhere | tiers | {"LeaseGranted", "LeaseEnded", "BlocksAllocated"}
    assert len(caplog.records) == len(EVENT_TYPES)


def test_level_that_is_off_costs_no_facts(caplog, monkeypatch):
    caplog.set_level(logging.WARNING, "telemetry.logs.subscriber")
    log = LogSubscriber()
    log.handle([stored(), stored(outcome="failed")])
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    monkeypatch.setattr("telemetry.logs.subscriber.attributes", None)
    log.handle([stored()])


def test_name_from_the_wire_cannot_forge_a_line(caplog):
    forged: dict[str, Any] = {
        "session_id": "x\nStoreFinished %s outcome='ok'",
        "model_name": "%(no)s",
        "traceparent": "\n",
    }
    LogSubscriber().handle([SessionStarted(**forged)])
    [line] = caplog.messages
    assert "\n" not in line
    assert "%(no)s" in line


def test_burst_is_throttled_and_counted(caplog):
    log = LogSubscriber(lines_per_second=2)
    log.handle([stored(monotonic=100 + i / 100) for i in range(10)])
    log.handle([stored(monotonic=100.2, outcome="failed")])  # a level of its own
    assert len(caplog.records) == 3
    log.handle([stored(monotonic=101.5)])
    assert caplog.messages[-1].endswith("num_suppressed=8")


def test_the_last_suppressed_count_is_reported_at_the_end(caplog):
    log = LogSubscriber(warnings_per_minute=1)
    log.handle([stored(monotonic=100, outcome="failed") for _ in range(5)])
    log.close()
    assert caplog.messages[-1] == "StoreFinished num_suppressed=4"
    assert caplog.records[-1].levelno == logging.WARNING


def test_stores_that_are_refused_for_hours_are_few_lines_that_count_all(caplog):
    log = LogSubscriber()
    log.handle([stored(monotonic=100 + i / 10, outcome="partial", refused_tokens=256) for i in range(36_000)])
    assert 100 < len(caplog.records) <= 10 * 61
    num_suppressed = sum(record.args.get("num_suppressed", 0) for record in caplog.records)
    log.close()
    assert len(caplog.records) - 1 + num_suppressed + caplog.records[-1].args["num_suppressed"] == 36_000


def test_refusals_of_one_tenant_do_not_hide_those_of_another(caplog):
    log = LogSubscriber(warnings_per_minute=1)
    log.handle([stored(monotonic=100, outcome="refused", tenant=tenant) for tenant in ("red", "red", "red", "blue")])
    assert [record.args["tenant"] for record in caplog.records] == ["red", "blue"]


def test_debug_is_not_throttled(caplog):
    lease = LeaseEnded(lease_id="x", reason="expired", num_chunks=1)
    LogSubscriber(lines_per_second=1).handle([lease] * 5)
    assert len(caplog.records) == 5


def test_each_type_is_throttled_by_itself(caplog, make_example):
    log = LogSubscriber(lines_per_second=1)
    log.handle([make_example(LookupFinished), make_example(SessionStarted)])
    assert len(caplog.records) == 2
