"""A worker with several shards of heads: what it reports when one of them fails, against a fake depot."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from kvdepot.v1.cache_pb2 import MISS_REASON_TIER_LATE, Miss, RetrieveResponse, StoreResponse
from tests.clients.connector.workers import (
    CONFIG,
    StartWorker,
    Worker,
    load_command,
    start_worker,
    store_command,
    views,
)
from tests.fakes.depot import Failure, FakeDepot, bare_failure, failure
from tests.fakes.waiting import eventually

__all__ = ["start_worker"]

BLOCKS = [11, 12, 13, 14, 15, 16, 17, 18]  # of four tokens each
NUM_SHARDS = 4
LATE = Miss(reason=MISS_REASON_TIER_LATE, detail="a tier was late")
WHOLE = RetrieveResponse(retrieved_tokens=32, retrieved_bytes=100)


class ShardedDepot(FakeDepot):
    """Answers each rank as a test says. The ranks in `silent` get no answer."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: dict[int, Any] = {}
        self.refused_attaches: dict[int, Failure] = {}
        self.silent: set[int] = set()
        self.over = threading.Event()

    def AttachInstance(self, request: Any, context: Any) -> Iterator[Any]:
        if request.rank in self.refused_attaches:
            self.refused_attaches[request.rank](context)
        yield from super().AttachInstance(request, context)

    def Store(self, request: Any, context: Any) -> Any:
        return self._answer("Store", request, context, StoreResponse(stored_tokens=32, stored_bytes=100))

    def Retrieve(self, request: Any, context: Any) -> Any:
        return self._answer("Retrieve", request, context, WHOLE)

    def _answer(self, name: str, request: Any, context: Any, default: Any) -> Any:
        self.requests.append((name, request))
        while request.rank in self.silent and context.is_active() and not self.over.wait(0.02):
            pass
        answer = self.answers.get(request.rank, default)
        if callable(answer):
            answer(context)
        return answer

    def ranks(self, name: str) -> list[int]:
        """Return the ranks that have made a call, in order."""
        return sorted(request.rank for called, request in list(self.requests) if called == name)


@pytest.fixture
def depot() -> Iterator[ShardedDepot]:
    depot = ShardedDepot()
    depot.start("127.0.0.1:0")
    yield depot
    depot.over.set()
    depot.stop()


async def started(start_worker: StartWorker, depot: FakeDepot, **settings: Any) -> Worker:
    caches = views(num_heads=NUM_SHARDS)
    worker: Worker = await start_worker(depot.address, caches=caches, num_shards=NUM_SHARDS, **settings)
    return worker


async def load(worker: Worker, *, may_be_partial: bool = True, skip_tokens: int = 0) -> tuple[set[str], set[str]]:
    command = load_command("lease", (BLOCKS,), may_be_partial=may_be_partial, skip_tokens=skip_tokens)
    worker.connector.load([command])
    return await worker.until_loaded()


async def test_worker_attaches_once_for_each_shard_with_the_same_memory(
    depot: ShardedDepot, start_worker: StartWorker
) -> None:
    await started(start_worker, depot)
    attached = sorted((request for name, request in depot.requests if name == "AttachInstance"), key=lambda r: r.rank)
    assert [(each.rank, each.world_size, each.instance_id) for each in attached] == [
        (n, 4, "engine-0") for n in range(4)
    ]
    assert len({each.regions[0].SerializeToString() for each in attached}) == 1
    assert [group.num_heads for each in attached for group in each.groups] == [1] * NUM_SHARDS
    offsets = [each.groups[0].planes[0].offset_bytes for each in attached]
    stride = views(num_heads=NUM_SHARDS)["layer.0"].stride(1) * 4
    assert [offset - offsets[0] for offset in offsets] == [0, stride, 2 * stride, 3 * stride]


async def test_transfers_go_to_all_shards_and_are_reported_once(depot: ShardedDepot, start_worker: StartWorker) -> None:
    worker = await started(start_worker, depot)
    worker.connector.store([store_command((BLOCKS,))])
    report = await worker.until_done(1)
    assert await load(worker) == ({"request"}, set())
    report = await worker.until_done(2)
    assert (report.done, report.failed, report.partial) == ({1: 1, 2: 1}, set(), {})
    assert depot.ranks("Store") == depot.ranks("Retrieve") == [0, 1, 2, 3]
    assert (report.outcomes[1].num_bytes, report.outcomes[1].stored_tokens) == (400, 32)
    assert report.outcomes[2].num_bytes == 400


async def test_load_has_the_tokens_that_every_shard_has(depot: ShardedDepot, start_worker: StartWorker) -> None:
    worker = await started(start_worker, depot)
    depot.answers = {
        1: RetrieveResponse(retrieved_tokens=20, miss=LATE),
        3: RetrieveResponse(retrieved_tokens=12, miss=LATE),
    }
    assert await load(worker) == ({"request"}, set())
    assert worker.connector.results.take_invalid_blocks() == {14, 15, 16, 17, 18}
    report = await worker.until_done(2)
    assert (report.failed, report.partial) == (set(), {2: 12})
    assert report.outcomes[2].reason == "TIER_LATE"


@pytest.mark.parametrize(
    "answer",
    [
        failure(grpc.StatusCode.NOT_FOUND, "LEASE_EXPIRED"),
        RetrieveResponse(retrieved_tokens=0, miss=LATE),
        RetrieveResponse(retrieved_tokens=64),
    ],
    ids=["an error", "nothing", "more than there is"],
)
async def test_load_fails_if_one_shard_has_nothing(depot: ShardedDepot, start_worker: StartWorker, answer: Any) -> None:
    worker = await started(start_worker, depot)
    depot.answers = {2: answer, 3: RetrieveResponse(retrieved_tokens=16, miss=LATE)}
    assert await load(worker) == ({"request"}, {"request"})
    assert worker.connector.results.take_invalid_blocks() == set()
    report = await worker.until_done(2)
    assert (report.done, report.failed, report.partial) == ({2: 1}, {2}, {})
    assert worker.chunk_size  # all were answered: it stays attached


async def test_store_that_one_shard_refuses_has_failed(depot: ShardedDepot, start_worker: StartWorker) -> None:
    worker = await started(start_worker, depot)
    depot.answers = {1: StoreResponse(stored_tokens=16, refused_tokens=16)}
    worker.connector.store([store_command((BLOCKS,))])
    report = await worker.until_done(1)
    assert (report.done, report.failed) == ({1: 1}, {1})
    assert report.outcomes[1].refused_tokens == 16


async def test_transfer_is_done_when_the_last_shard_is_certainly_done(
    depot: ShardedDepot, start_worker: StartWorker
) -> None:
    worker = await started(start_worker, depot, retrieve_timeout_seconds=0.2)
    depot.silent = {1, 2}
    depot.refused_attaches = {2: bare_failure(grpc.StatusCode.UNAVAILABLE)}
    assert await load(worker) == ({"request"}, {"request"})
    await eventually(lambda: depot.ranks("AttachInstance").count(1) == 2)  # it shows that the first one is done
    await eventually(lambda: worker.take().failed == {2})
    assert not worker.take().done
    assert worker.chunk_size == 0
    depot.silent.clear()
    depot.refused_attaches.clear()
    assert (await worker.until_done(2)).done == {2: 1}
    await eventually(lambda: bool(worker.chunk_size))
    assert depot.ranks("AttachInstance") == [0, 1, 1, 2, 2, 3]  # the others stayed


async def test_worker_is_attached_when_all_of_its_shards_are(depot: ShardedDepot, start_worker: StartWorker) -> None:
    depot.refused_attaches = {3: failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_OBJECTS")}
    worker = await started(start_worker, depot, attach_timeout_seconds=0.5)
    await eventually(lambda: depot.ranks("AttachInstance") == [0, 1, 2])
    assert not worker.chunk_size
    worker.connector.store([store_command((BLOCKS,))])
    report = await worker.until_done(1)
    assert (report.failed, depot.ranks("Store")) == ({1}, [])
    assert report.outcomes[1].reason == "NOT_ATTACHED"
    depot.refused_attaches.clear()
    await eventually(lambda: bool(worker.chunk_size))


async def test_missing_depot_is_logged_once_for_all_shards(
    start_worker: StartWorker, caplog: pytest.LogCaptureFixture, tmp_path: Any
) -> None:
    depot = FakeDepot()
    depot.address = f"unix:{tmp_path}/no-depot.sock"
    await started(start_worker, depot, attach_timeout_seconds=0.5)
    assert sum("no depot at" in record.getMessage() for record in caplog.records) == 1


async def test_transfers_of_a_replaced_cache_end_at_all_shards(depot: ShardedDepot, start_worker: StartWorker) -> None:
    worker = await started(start_worker, depot)
    depot.silent = {0, 3}

    def store_and_replace() -> None:
        worker.connector.store([store_command((BLOCKS,))])
        worker.attach(CONFIG)

    await asyncio.to_thread(store_and_replace)
    report = await worker.until_done(1)
    assert (report.done, report.failed) == ({1: 1}, {1})


async def test_heads_that_can_not_be_split_refuse_to_attach(depot: ShardedDepot, start_worker: StartWorker) -> None:
    with pytest.raises(ValueError, match="2 heads, which can't be split into 4 equal shards"):
        await start_worker(depot.address, caches=views(num_heads=2), num_shards=4)
    assert depot.ranks("AttachInstance") == []


async def test_command_that_was_sent_to_no_shard_is_done(depot: ShardedDepot, start_worker: StartWorker) -> None:
    worker = await started(start_worker, depot)
    command = store_command((BLOCKS,))
    command.tables = ()  # no scheduler sends this
    worker.connector.store([command])
    report = await worker.until_done(1)
    assert (report.done, report.failed, depot.ranks("Store")) == ({1: 1}, {1}, [])
