"""The worker's side: what the engine is told when a depot fails, hangs or refuses."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from kvdepot.v1.cache_pb2 import NOTICE_DRAINING, StoreResponse
from kvdepot.vllm.identity import place_of
from kvdepot.vllm.worker import MAX_STORES
from tests.clients.vllm.workers import CHUNK, CONFIG, StartWorker, load_order, start_worker, store_order, views
from tests.fakes.depot import FakeDepot, bare_failure, failure
from tests.fakes.waiting import eventually

__all__ = ["start_worker"]


async def test_refused_store_is_told_as_failed(start_worker: StartWorker) -> None:
    class FullDepot(FakeDepot):
        def Store(self, request: Any, context: Any) -> StoreResponse:
            return StoreResponse(stored_tokens=CHUNK, refused_tokens=CHUNK)

    with fake_depot("127.0.0.1:0", FullDepot()) as depot:
        worker = await start_worker(depot.address)
        worker.side.store([store_order(([1, 2, 3, 4, 5, 6, 7, 8],))])
        assert (await worker.until_settled(1)).failed == {1}


async def test_replica_does_not_even_ask_to_store(start_worker: StartWorker) -> None:
    with fake_depot("127.0.0.1:0") as depot:
        worker = await start_worker(depot.address, place_of("engine", 1, 2, 2))
        worker.side.store([store_order(([1, 2, 3, 4],))])
        assert (await worker.until_settled(1)).failed == set()
        assert "Store" not in dict(depot.requests)


async def test_load_of_fewer_tokens_than_were_ordered_has_failed(start_worker: StartWorker) -> None:
    with fake_depot("127.0.0.1:0") as depot:  # it answers that it wrote 16 tokens
        worker = await start_worker(depot.address)
        worker.side.load([load_order("lease", ([1, 2, 3, 4, 5, 6, 7, 8],))])
        assert await worker.until_loaded() == ({"request"}, {"request"})
        worker.side.load([load_order("lease", ([1, 2, 3, 4],), operation_id=3)])
        assert await worker.until_loaded() == ({"request"}, set())


@contextmanager
def fake_depot(address: str, depot: FakeDepot | None = None) -> Iterator[FakeDepot]:
    depot = depot or FakeDepot()
    depot.start(address)
    try:
        yield depot
    finally:
        depot.stop()


@pytest.mark.parametrize(
    ("how", "settles"),
    [
        (failure(grpc.StatusCode.NOT_FOUND, "LEASE_EXPIRED"), True),
        (failure(grpc.StatusCode.UNAVAILABLE, "DRAINING"), True),
        (bare_failure(grpc.StatusCode.UNAVAILABLE), False),
        (bare_failure(grpc.StatusCode.UNKNOWN), False),
    ],
    ids=["answered", "refused while it drains", "connection lost", "something else answered"],
)
async def test_only_an_answer_of_the_depot_says_that_it_touches_no_blocks(
    start_worker: StartWorker, how: Any, settles: bool
) -> None:
    with fake_depot("127.0.0.1:0") as depot:
        worker = await start_worker(depot.address)
        depot.failures["Retrieve"] = how
        depot.hanging.add("AttachInstance")  # from now on nothing is settled by attaching again
        worker.side.load([load_order("lease", ([1, 2, 3, 4],))])
        assert await worker.until_loaded() == ({"request"}, {"request"})
        await eventually(lambda: worker.take().failed == {2})
        if settles:
            assert await worker.until_settled(2)
            assert worker.chunk_size
        else:
            await eventually(lambda: worker.chunk_size == 0)  # detached, to find out
            assert not worker.take().settled


async def test_operation_in_doubt_is_settled_by_attaching_again(start_worker: StartWorker) -> None:
    with fake_depot("127.0.0.1:0") as depot:
        worker = await start_worker(depot.address, retrieve_timeout_seconds=0.2)
        depot.hanging.add("Retrieve")
        worker.side.load([load_order("lease", ([1, 2, 3, 4],))])
        assert await worker.until_loaded() == ({"request"}, {"request"})  # not later than its timeout
        assert (await worker.until_settled(2)).failed == {2}
        assert sum(name == "AttachInstance" for name, _ in depot.requests) == 2


async def test_operation_in_doubt_is_settled_when_nobody_listens_any_more(
    start_worker: StartWorker, tmp_path: Any
) -> None:
    with fake_depot(f"unix:{tmp_path}/depot.sock") as depot:
        worker = await start_worker(depot.address)
        depot.hanging.add("Store")
        worker.side.store([store_order(([1, 2, 3, 4],))])
        await eventually(lambda: any(name == "Store" for name, _ in depot.requests))
        assert not worker.take().settled
    assert (await worker.until_settled(1)).failed == {1}


async def test_store_whose_time_is_over_before_its_turn_is_not_made(start_worker: StartWorker) -> None:
    class SlowDepot(FakeDepot):
        def Store(self, request: Any, context: Any) -> StoreResponse:
            self.requests.append(("Store", request))
            self.reading.wait(0.4)
            return StoreResponse(stored_tokens=CHUNK)

    with fake_depot("127.0.0.1:0", SlowDepot()) as depot:
        worker = await start_worker(depot.address, store_timeout_seconds=0.6)
        numbers = range(1, 4 * MAX_STORES + 1)
        worker.side.store([store_order(([1, 2, 3, 4],), operation_id=number) for number in numbers])
        report = await worker.until_settled(*numbers)
        num_made = sum(name == "Store" for name, _ in depot.requests)
    assert num_made <= 2 * MAX_STORES
    assert len(report.failed) >= 2 * MAX_STORES


async def test_operations_of_a_cache_that_is_replaced_are_settled_by_the_next_attachment(
    start_worker: StartWorker,
) -> None:
    with fake_depot("127.0.0.1:0") as depot:
        worker = await start_worker(depot.address)
        depot.hanging.add("Store")
        numbers = range(1, MAX_STORES + 3)  # the last ones wait for their turn
        worker.side.store([store_order(([1, 2, 3, 4],), operation_id=number) for number in numbers])
        await eventually(lambda: sum(name == "Store" for name, _ in depot.requests) == MAX_STORES)
        await asyncio.to_thread(worker.side.register, views(), CONFIG)
        report = await worker.until_settled(*numbers)
    assert report.failed == set(numbers)


async def test_draining_depot_is_asked_nothing_new(start_worker: StartWorker) -> None:
    with fake_depot("127.0.0.1:0") as depot:
        worker = await start_worker(depot.address)
        depot.notify(NOTICE_DRAINING)
        number = 0

        def refused() -> bool:
            nonlocal number
            number += 1
            worker.side.store([store_order(([1, 2, 3, 4],), operation_id=number)])
            return bool(worker.take().failed)

        await eventually(refused)
        asked = sum(name == "Store" for name, _ in depot.requests)
        worker.side.store([store_order(([1, 2, 3, 4],), operation_id=9999)])
        await worker.until_settled(9999)
        assert sum(name == "Store" for name, _ in depot.requests) == asked
