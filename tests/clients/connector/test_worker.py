"""The connector's worker: its reports when a depot fails, hangs or refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from kvdepot.connector.command_runner import MAX_STORES
from kvdepot.connector.identity import worker_id
from kvdepot.v1.cache_pb2 import (
    MISS_REASON_TIER_LATE,
    NOTICE_DRAINING,
    Miss,
    RetrieveResponse,
    StoreResponse,
)
from tests.clients.connector.workers import (
    CHUNK,
    CONFIG,
    StartWorker,
    load_command,
    start_worker,
    store_command,
    views,
)
from tests.fakes.depot import FakeDepot, bare_failure, failure
from tests.fakes.waiting import eventually

__all__ = ["start_worker"]


async def test_refused_store_is_reported_as_failed(start_worker: StartWorker) -> None:
    class FullDepot(FakeDepot):
        def Store(self, request: Any, context: Any) -> StoreResponse:
            return StoreResponse(stored_tokens=CHUNK, refused_tokens=CHUNK)

    with fake_depot("127.0.0.1:0", FullDepot()) as depot:
        worker = await start_worker(depot.address)
        worker.connector.store([store_command(([1, 2, 3, 4, 5, 6, 7, 8],))])
        assert (await worker.until_done(1)).failed == {1}


async def test_replica_sends_no_store(start_worker: StartWorker) -> None:
    with fake_depot("127.0.0.1:0") as depot:
        worker = await start_worker(depot.address, worker_id("engine", 1, 2, 2))
        worker.connector.store([store_command(([1, 2, 3, 4],))])
        assert (await worker.until_done(1)).failed == set()
        assert "Store" not in dict(depot.requests)


async def test_load_of_fewer_tokens_than_were_ordered_has_failed(start_worker: StartWorker) -> None:
    with fake_depot("127.0.0.1:0") as depot:  # it answers that it wrote 16 tokens
        worker = await start_worker(depot.address)
        worker.connector.load([load_command("lease", ([1, 2, 3, 4, 5, 6, 7, 8],))])
        assert await worker.until_loaded() == ({"request"}, {"request"})
        worker.connector.load([load_command("lease", ([1, 2, 3, 4],), transfer_id=3)])
        assert await worker.until_loaded() == ({"request"}, set())


@pytest.mark.parametrize("rate", [0, 2500.0])
async def test_configured_rate_of_prefill_is_told_when_the_worker_attaches(
    start_worker: StartWorker, rate: float
) -> None:
    with fake_depot("127.0.0.1:0") as depot:
        await start_worker(depot.address, prefill_tokens_per_second=rate)
        request = depot.last("AttachInstance")
        assert request.HasField("prefill_tokens_per_second") == bool(rate)
        assert request.prefill_tokens_per_second == rate


LATE = Miss(reason=MISS_REASON_TIER_LATE, detail="a tier was late")
BLOCKS = [11, 12, 13, 14, 15, 16, 17, 18]  # of four tokens each


@pytest.mark.parametrize(
    ("skip_tokens", "num_retrieved", "invalid"),
    [(0, 16, {15, 16, 17, 18}), (8, 8, {15, 16, 17, 18}), (0, 28, {18}), (0, 27, {17, 18}), (4, 1, set(BLOCKS[1:]))],
    ids=["a chunk", "behind the engine's own", "but a block", "a part of a block", "less than a block"],
)
async def test_partial_load_names_the_blocks_that_are_not_right(
    start_worker: StartWorker, skip_tokens: int, num_retrieved: int, invalid: set[int]
) -> None:
    with fake_depot("127.0.0.1:0") as depot:
        worker = await start_worker(depot.address)
        depot.retrieved = RetrieveResponse(retrieved_tokens=num_retrieved, miss=LATE)
        worker.connector.load([load_command("lease", (BLOCKS,), skip_tokens=skip_tokens, may_be_partial=True)])
        assert await worker.until_loaded() == ({"request"}, set())
        assert worker.connector.results.take_invalid_blocks() == invalid
        assert worker.connector.results.take_invalid_blocks() == set()
        report = await worker.until_done(2)
        assert (report.failed, report.partial) == (set(), {2: skip_tokens + num_retrieved})
        assert depot.last("Retrieve").accept_partial


@pytest.mark.parametrize(
    ("skip_tokens", "num_retrieved", "may_be_partial"),
    [(0, 0, True), (8, 0, True), (0, 16, False), (0, 64, True)],
    ids=["nothing", "nothing but the engine's own", "an engine that needs all", "an answer that can't be"],
)
async def test_load_that_can_not_be_partial_fails_as_a_whole(
    start_worker: StartWorker, skip_tokens: int, num_retrieved: int, may_be_partial: bool
) -> None:
    with fake_depot("127.0.0.1:0") as depot:
        worker = await start_worker(depot.address)
        depot.retrieved = RetrieveResponse(retrieved_tokens=num_retrieved, miss=LATE)
        command = load_command("lease", (BLOCKS,), skip_tokens=skip_tokens, may_be_partial=may_be_partial)
        worker.connector.load([command])
        assert await worker.until_loaded() == ({"request"}, {"request"})
        assert worker.connector.results.take_invalid_blocks() == set()
        report = await worker.until_done(2)
        assert (report.failed, report.partial) == ({2}, {})
        assert depot.last("Retrieve").accept_partial == may_be_partial


@pytest.mark.parametrize(
    "how",
    [
        failure(grpc.StatusCode.DATA_LOSS, "CHUNK_CORRUPT", metadata={"bad_tokens": "16:24"}),
        failure(grpc.StatusCode.ABORTED, "CHUNK_LOST", metadata={"first_bad_token": "16"}),
    ],
    ids=["damaged", "lost"],
)
@pytest.mark.parametrize("skip_tokens", [0, 8, 16])
async def test_load_from_a_depot_that_knows_no_partial_retrieves_is_partial_too(
    start_worker: StartWorker, how: Any, skip_tokens: int
) -> None:
    with fake_depot("127.0.0.1:0") as depot:
        worker = await start_worker(depot.address)
        depot.failures["Retrieve"] = how
        worker.connector.load([load_command("lease", (BLOCKS,), skip_tokens=skip_tokens, may_be_partial=True)])
        _, failed = await worker.until_loaded()
        report = await worker.until_done(2)
        if skip_tokens < 16:
            assert worker.connector.results.take_invalid_blocks() == {15, 16, 17, 18}
            assert (failed, report.failed, report.partial) == (set(), set(), {2: 16})
        else:
            assert (failed, report.failed, report.partial) == ({"request"}, {2}, {})
        assert worker.chunk_size  # still attached


async def test_partial_loads_are_logged_once_for_each_reason(
    start_worker: StartWorker, caplog: pytest.LogCaptureFixture
) -> None:
    with fake_depot("127.0.0.1:0") as depot:
        worker = await start_worker(depot.address)
        depot.retrieved = RetrieveResponse(retrieved_tokens=16, miss=LATE)
        for transfer_id in (2, 3, 4):
            command = load_command("lease", (BLOCKS,), transfer_id=transfer_id, may_be_partial=True)
            worker.connector.load([command])
            await worker.until_done(transfer_id)
    warnings = [record.getMessage() for record in caplog.records if "the load of" in record.getMessage()]
    assert warnings == ["the load of request request ended after 16 of 32 tokens: a tier was late"]


@contextmanager
def fake_depot(address: str, depot: FakeDepot | None = None) -> Iterator[FakeDepot]:
    depot = depot or FakeDepot()
    depot.start(address)
    try:
        yield depot
    finally:
        depot.stop()


@pytest.mark.parametrize(
    ("how", "is_done"),
    [
        (failure(grpc.StatusCode.NOT_FOUND, "LEASE_EXPIRED"), True),
        (failure(grpc.StatusCode.UNAVAILABLE, "DRAINING"), True),
        (failure(grpc.StatusCode.DATA_LOSS, "CHUNK_CORRUPT", metadata={"first_bad_token": "0"}), True),
        (bare_failure(grpc.StatusCode.UNAVAILABLE), False),
        (bare_failure(grpc.StatusCode.UNKNOWN), False),
    ],
    ids=["answered", "refused while it drains", "damaged chunks", "connection lost", "something else answered"],
)
async def test_only_an_answer_of_the_depot_says_that_it_touches_no_blocks(
    start_worker: StartWorker, how: Any, is_done: bool
) -> None:
    with fake_depot("127.0.0.1:0") as depot:
        worker = await start_worker(depot.address)
        depot.failures["Retrieve"] = how
        depot.hanging.add("AttachInstance")  # a new attachment can't show that it is done
        worker.connector.load([load_command("lease", ([1, 2, 3, 4],))])
        assert await worker.until_loaded() == ({"request"}, {"request"})
        await eventually(lambda: worker.take().failed == {2})
        if is_done:
            assert await worker.until_done(2)
            assert worker.chunk_size
        else:
            await eventually(lambda: worker.chunk_size == 0)  # detached, to find out
            assert not worker.take().done


async def test_uncertain_transfer_is_done_after_attaching_again(start_worker: StartWorker) -> None:
    with fake_depot("127.0.0.1:0") as depot:
        worker = await start_worker(depot.address, retrieve_timeout_seconds=0.2)
        depot.hanging.add("Retrieve")
        worker.connector.load([load_command("lease", ([1, 2, 3, 4],))])
        assert await worker.until_loaded() == ({"request"}, {"request"})  # not later than its timeout
        assert (await worker.until_done(2)).failed == {2}
        assert sum(name == "AttachInstance" for name, _ in depot.requests) == 2


async def test_uncertain_transfer_is_done_when_nothing_listens(start_worker: StartWorker, tmp_path: Any) -> None:
    with fake_depot(f"unix:{tmp_path}/depot.sock") as depot:
        worker = await start_worker(depot.address)
        depot.hanging.add("Store")
        worker.connector.store([store_command(([1, 2, 3, 4],))])
        await eventually(lambda: any(name == "Store" for name, _ in depot.requests))
        assert not worker.take().done
    assert (await worker.until_done(1)).failed == {1}


async def test_store_that_expires_while_it_waits_is_not_made(start_worker: StartWorker) -> None:
    class SlowDepot(FakeDepot):
        def Store(self, request: Any, context: Any) -> StoreResponse:
            self.requests.append(("Store", request))
            self.reading.wait(0.4)
            return StoreResponse(stored_tokens=CHUNK)

    with fake_depot("127.0.0.1:0", SlowDepot()) as depot:
        worker = await start_worker(depot.address, store_timeout_seconds=0.6)
        numbers = range(1, 4 * MAX_STORES + 1)
        worker.connector.store([store_command(([1, 2, 3, 4],), transfer_id=number) for number in numbers])
        report = await worker.until_done(*numbers)
        num_made = sum(name == "Store" for name, _ in depot.requests)
    assert num_made <= 2 * MAX_STORES
    assert len(report.failed) >= 2 * MAX_STORES


async def test_transfers_of_a_replaced_cache_are_done_after_the_next_attachment(
    start_worker: StartWorker,
) -> None:
    with fake_depot("127.0.0.1:0") as depot:
        worker = await start_worker(depot.address)
        depot.hanging.add("Store")
        numbers = range(1, MAX_STORES + 3)  # the last ones wait
        worker.connector.store([store_command(([1, 2, 3, 4],), transfer_id=number) for number in numbers])
        await eventually(lambda: sum(name == "Store" for name, _ in depot.requests) == MAX_STORES)
        worker.caches = views()
        await asyncio.to_thread(worker.attach, CONFIG)
        report = await worker.until_done(*numbers)
    assert report.failed == set(numbers)


async def test_transfer_that_has_just_begun_when_the_cache_is_replaced_is_done_too(start_worker: StartWorker) -> None:
    with fake_depot("127.0.0.1:0") as depot:
        worker = await start_worker(depot.address)
        depot.hanging.add("Store")

        def store_and_replace() -> None:
            worker.connector.store([store_command(([1, 2, 3, 4],))])
            worker.attach(CONFIG)

        await asyncio.to_thread(store_and_replace)
        assert (await worker.until_done(1)).failed == {1}


async def test_draining_depot_gets_no_new_calls(start_worker: StartWorker) -> None:
    with fake_depot("127.0.0.1:0") as depot:
        worker = await start_worker(depot.address)
        depot.notify(NOTICE_DRAINING)
        number = 0

        def refused() -> bool:
            nonlocal number
            number += 1
            worker.connector.store([store_command(([1, 2, 3, 4],), transfer_id=number)])
            return bool(worker.take().failed)

        def num_asked() -> int:
            return sum(name == "Store" for name, _ in depot.requests)

        await eventually(refused)
        asked = [-1]

        def settled() -> bool:  # those from before the notice may still be on their way
            asked.append(num_asked())
            return asked[-1] == asked[-2]

        await eventually(settled)
        worker.connector.store([store_command(([1, 2, 3, 4],), transfer_id=9999)])
        await worker.until_done(9999)
        assert num_asked() == asked[-1]
