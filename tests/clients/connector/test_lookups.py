"""Lookups and block reports, against a fake depot that each test controls."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import pytest

from kvdepot import AsyncDepotClient, hash_prefix
from kvdepot.connector import block_reports
from kvdepot.connector.block_allocations import BlockAllocation
from kvdepot.connector.block_reports import BlockReportQueue
from kvdepot.connector.event_loop import EventLoop
from kvdepot.connector.lookups import DepotLookupClient, PendingLookup
from kvdepot.v1 import cache_pb2
from kvdepot.v1.cache_pb2 import Lease, LookupResponse
from tests.fakes.depot import FakeDepot, failure
from tests.fakes.waiting import eventually

PREFIX = hash_prefix([b"hash" * 8], 16)
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class LeasingDepot(FakeDepot):
    """Answers lookups with each instance's matched tokens; a match is leased for a minute."""

    def __init__(self) -> None:
        super().__init__()
        self.matched: dict[str, int] = {}
        self.metadata: dict[str, Any] = {}
        self.lease_seconds = 60.0
        self.more: dict[str, Any] = {}
        self.answering = threading.Event()
        self.answering.set()

    def Lookup(self, request: Any, context: Any) -> LookupResponse:
        self.metadata.update(context.invocation_metadata())
        self._enter("Lookup", request, context)
        self.answering.wait(10)
        matched_tokens = self.matched[request.instance_id]
        if matched_tokens <= request.computed_tokens:
            return LookupResponse(matched_tokens=matched_tokens, **self.more)
        lease = Lease(lease_id=f"lease-of-{request.instance_id}")
        lease.expire_time.FromNanoseconds(int((time.time() + self.lease_seconds) * 1e9))
        return LookupResponse(matched_tokens=matched_tokens, lease=lease, **self.more)

    @property
    def released(self) -> list[str]:
        return [request.lease_id for name, request in self.requests if name == "ReleaseLease"]


@pytest.fixture
def depot() -> Iterator[LeasingDepot]:
    depot = LeasingDepot()
    depot.start()
    yield depot
    depot.stop()


@pytest.fixture
async def client(depot: LeasingDepot) -> AsyncIterator[AsyncDepotClient]:
    async with AsyncDepotClient(depot.address) as client:
        yield client


def lookups_of(client: AsyncDepotClient, *instances: str, timeout_seconds: float = 5.0) -> DepotLookupClient:
    loop = EventLoop(asyncio.get_running_loop())
    return DepotLookupClient(client, loop, instances or ("one",), timeout_seconds=timeout_seconds)


async def answered(lookup: PendingLookup) -> PendingLookup:
    await eventually(lambda: lookup.matched_tokens is not None)
    return lookup


async def test_answer_is_there_when_the_scheduler_looks_again(depot: LeasingDepot, client: AsyncDepotClient) -> None:
    depot.matched = {"one": 16}
    lookups = lookups_of(client)
    lookup = lookups.begin("session", PREFIX, 0, PARENT)
    assert lookup.matched_tokens is None
    lookup = await answered(lookup)
    assert (lookup.matched_tokens, lookup.leases) == (16, ("lease-of-one",))
    assert depot.metadata["traceparent"] == PARENT
    assert depot.last("Lookup").session_id == "session"


@pytest.mark.parametrize("rate", [None, 1234.5])
async def test_lookup_carries_the_rate_of_prefill_once_it_is_known(
    depot: LeasingDepot, client: AsyncDepotClient, rate: float | None
) -> None:
    depot.matched = {"one": 16}
    await answered(lookups_of(client).begin("session", PREFIX, 0, "", rate))
    request = depot.last("Lookup")
    assert (request.prefill_tokens_per_second if request.HasField("prefill_tokens_per_second") else None) == rate


async def test_lease_is_left_before_it_expires(depot: LeasingDepot, client: AsyncDepotClient) -> None:
    depot.matched, depot.lease_seconds = {"one": 16}, 4.0
    lookup = await answered(lookups_of(client).begin("session", PREFIX, 0, ""))
    assert 1 < lookup.lease_until - time.monotonic() <= 2
    assert "traceparent" not in depot.metadata


@pytest.mark.parametrize(
    ("reason", "is_absent"),
    [
        (None, False),
        (cache_pb2.MISS_REASON_EVICTED, True),
        (cache_pb2.MISS_REASON_NEVER_STORED, True),
        (cache_pb2.MISS_REASON_CLEARED, True),
        (cache_pb2.MISS_REASON_TIER_LATE, False),
        (cache_pb2.MISS_REASON_TIER_SLOWER_THAN_PREFILL, False),
        (cache_pb2.MISS_REASON_BEING_STORED, False),
    ],
)
async def test_answer_says_whether_the_depot_lacks_the_next_chunk_and_what_tiers_have(
    depot: LeasingDepot, client: AsyncDepotClient, reason: Any, is_absent: bool
) -> None:
    depot.matched = {"one": 16}
    depot.more = {"l2_tokens": 8} | ({"miss": cache_pb2.Miss(reason=reason)} if reason is not None else {})
    lookup = await answered(lookups_of(client).begin("session", PREFIX, 0, ""))
    assert (lookup.is_absent, lookup.l2_tokens, lookup.failed) == (is_absent, 8, False)


async def test_lookup_without_an_answer_has_failed_and_is_no_miss(
    depot: LeasingDepot, client: AsyncDepotClient
) -> None:
    depot.failures["Lookup"] = failure(grpc.StatusCode.NOT_FOUND, "INSTANCE_NOT_FOUND")
    lookup = await answered(lookups_of(client).begin("session", PREFIX, 0, ""))
    assert (lookup.failed, lookup.is_absent, lookup.matched_tokens) == (True, False, 0)


async def test_all_replicas_must_match(depot: LeasingDepot, client: AsyncDepotClient) -> None:
    lookups = lookups_of(client, "one", "two")
    depot.matched = {"one": 16, "two": 32}
    found = await answered(lookups.begin("session", PREFIX, 0, ""))
    assert (found.matched_tokens, found.leases) == (16, ("lease-of-one", "lease-of-two"))
    depot.matched = {"one": 16, "two": 0}
    missed = await answered(lookups.begin("session", PREFIX, 0, ""))
    assert (missed.matched_tokens, missed.leases) == (0, ())
    await eventually(lambda: depot.released == ["lease-of-one"])


@pytest.mark.parametrize("before_the_answer", [True, False])
async def test_lookup_that_is_given_up_leaves_no_lease(
    depot: LeasingDepot, client: AsyncDepotClient, before_the_answer: bool
) -> None:
    depot.matched = {"one": 16}
    depot.answering.clear()
    lookups = lookups_of(client)
    lookup = lookups.begin("session", PREFIX, 0, "")
    await eventually(lambda: depot.requests != [])
    if not before_the_answer:
        depot.answering.set()
        await answered(lookup)
    lookups.give_up(lookup)
    depot.answering.set()
    await eventually(lambda: depot.released == ["lease-of-one"])


async def test_lookup_that_is_given_up_while_it_waits_is_not_made(
    depot: LeasingDepot, client: AsyncDepotClient
) -> None:
    lookups = lookups_of(client)
    lookup = lookups.begin("session", PREFIX, 0, "")
    lookups.give_up(lookup)
    assert (await answered(lookup)).matched_tokens == 0
    assert depot.requests == []
    assert not lookups.paused


async def test_session_ends_after_its_lookup_is_answered(depot: LeasingDepot, client: AsyncDepotClient) -> None:
    """A lookup that the depot takes up after the end of its session would begin the session anew."""
    depot.matched = {"one": 16}
    depot.answering.clear()
    lookups = lookups_of(client)
    session_id = lookups.open_session("request")
    lookup = lookups.begin(session_id, PREFIX, 0, "")
    await eventually(lambda: depot.requests != [])
    lookups.give_up(lookup)
    lookups.end_session(session_id)
    lookups.begin("other", PREFIX, 0, "")  # by its arrival a premature end would have arrived as well
    lookups.end_session("another")
    await eventually(lambda: any(name == "EndSession" for name, _ in depot.requests))
    assert depot.last("EndSession").session_id == "another"
    depot.answering.set()
    await eventually(lambda: depot.last("EndSession").session_id == session_id)


async def test_ids_of_sessions_that_are_open_are_not_used_again(depot: LeasingDepot, client: AsyncDepotClient) -> None:
    lookups = lookups_of(client)
    first, second = (lookups.open_session("request") for _ in range(2))
    assert (first, second) == ("request", "request#2")
    lookups.end_session(first)
    await eventually(lambda: any(name == "EndSession" for name, _ in depot.requests))
    await eventually(lambda: lookups.open_session("request") == first)
    lookups.forget_session(second)
    assert lookups.open_session("request") == second


async def test_failures_are_followed_by_pauses_that_get_longer(depot: LeasingDepot, client: AsyncDepotClient) -> None:
    lookups = lookups_of(client)
    assert not lookups.paused
    depot.failures["Lookup"] = failure(grpc.StatusCode.NOT_FOUND, "INSTANCE_NOT_FOUND")
    pauses: list[float] = []
    for _ in range(3):
        lookup = await answered(lookups.begin("session", PREFIX, 0, ""))
        assert (lookup.matched_tokens, lookup.leases) == (0, ())
        assert lookups.paused
        pauses.append(lookups._paused_until - time.monotonic())
        lookups._paused_until = 0.0
    assert pauses[0] < pauses[1] < pauses[2]
    del depot.failures["Lookup"]
    depot.matched = {"one": 0}
    await answered(lookups.begin("session", PREFIX, 0, ""))
    assert not lookups.paused


async def test_depot_that_hangs_is_not_waited_for(depot: LeasingDepot, client: AsyncDepotClient) -> None:
    depot.hanging.add("Lookup")
    lookups = lookups_of(client, timeout_seconds=0.1)
    lookup = lookups.begin("session", PREFIX, 0, "")
    assert lookup.deadline - time.monotonic() <= 0.1
    assert (await answered(lookup)).matched_tokens == 0
    assert lookups.paused


async def test_sessions_end_at_every_replica(depot: LeasingDepot, client: AsyncDepotClient) -> None:
    lookups_of(client, "one", "two").end_session("session")

    def ended() -> list[tuple[str, str]]:
        return [(request.instance_id, request.session_id) for name, request in depot.requests if name == "EndSession"]

    await eventually(lambda: len(ended()) == 2)
    assert ended() == [("one", "session"), ("two", "session")]


def allocation(session_id: str, *, resumed: bool = False) -> BlockAllocation:
    return BlockAllocation(session_id, [4, 5], [3], [7, 8, 9], resumed)


def reported(depot: FakeDepot) -> list[str]:
    requests = [request for name, request in depot.requests if name == "ReportBlockAllocation"]
    return [record.session_id for request in requests for record in request.records]


@pytest.fixture
async def reports(client: AsyncDepotClient) -> AsyncIterator[BlockReportQueue]:
    reports = BlockReportQueue(client, "engine", "model", 16, lookups_of(client, "engine").end_session)
    task = asyncio.create_task(reports.run())
    yield reports
    task.cancel()
    await asyncio.wait([task])


async def test_allocations_are_sent_in_batches(depot: FakeDepot, reports: BlockReportQueue) -> None:
    for number in range(block_reports.BATCH_RECORDS + 10):
        reports.report(allocation(f"session-{number}"))
    await eventually(lambda: len(reported(depot)) == block_reports.BATCH_RECORDS + 10)
    requests = [request for name, request in depot.requests if name == "ReportBlockAllocation"]
    assert [len(request.records) for request in requests] == [block_reports.BATCH_RECORDS, 10]
    request, record = requests[0], requests[0].records[0]
    assert (request.instance_id, request.model_name, request.block_size) == ("engine", "model", 16)
    assert (list(record.block_ids), list(record.reused_block_ids)) == ([4, 5], [3])
    assert list(record.token_ids) == [7, 8, 9]


async def test_session_ends_after_all_of_its_allocations(depot: FakeDepot, reports: BlockReportQueue) -> None:
    reports.report(allocation("first"))
    reports.report(allocation("second"))
    reports.end_session("first")
    reports.report(allocation("third"))
    await eventually(lambda: any(name == "EndSession" for name, _ in depot.requests))
    names = [name for name, _ in depot.requests]
    assert names == ["ReportBlockAllocation", "EndSession"]
    assert reported(depot) == ["first", "second", "third"]
    assert depot.last("EndSession").session_id == "first"


async def test_request_that_lost_a_record_is_not_reported_until_it_starts_anew(
    depot: FakeDepot, reports: BlockReportQueue
) -> None:
    depot.failures["ReportBlockAllocation"] = failure(grpc.StatusCode.UNAVAILABLE, "DRAINING")
    reports.report(allocation("broken"))
    await eventually(lambda: bool(reports._lost))
    del depot.failures["ReportBlockAllocation"]
    reports.report(allocation("broken"))
    reports.report(allocation("whole"))
    await eventually(lambda: reported(depot) == ["broken", "whole"])
    reports.report(allocation("broken", resumed=True))
    await eventually(lambda: reported(depot)[2:] == ["broken"])
    reports.report(allocation("broken"))
    await eventually(lambda: reported(depot)[2:] == ["broken", "broken"])


async def test_queue_is_bounded(depot: FakeDepot, client: AsyncDepotClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_reports, "MAX_RECORDS", 2)
    ended: list[str] = []
    reports = BlockReportQueue(client, "engine", "model", 16, ended.append)
    for session_id in ("one", "two", "three", "three"):
        reports.report(allocation(session_id))
    task = asyncio.create_task(reports.run())
    await eventually(lambda: len(reported(depot)) == 2)
    reports.report(allocation("three"))
    reports.report(allocation("four"))
    await eventually(lambda: reported(depot) == ["one", "two", "four"])
    reports.end_session("three")  # its id may come again
    await eventually(lambda: ended == ["three"])
    reports.report(allocation("three"))
    await eventually(lambda: reported(depot)[-1] == "three")
    task.cancel()
    await asyncio.wait([task])
