"""What a worker reports of each load and store, for statistics, against a fake depot that each test controls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from kvdepot.connector.commands import TransferOutcome
from kvdepot.v1.cache_pb2 import (
    MISS_REASON_TIER_LATE,
    REFUSAL_REASON_NO_SLOT,
    Miss,
    Refusal,
    RetrieveResponse,
    StoreResponse,
)
from tests.clients.connector.workers import CHUNK, StartWorker, load_command, start_worker, store_command
from tests.fakes.depot import FakeDepot, failure
from tests.fakes.waiting import eventually

__all__ = ["start_worker"]

BLOCKS = [11, 12, 13, 14, 15, 16, 17, 18]


class StoringDepot(FakeDepot):
    """Answers stores as a test says."""

    stored = StoreResponse()

    def Store(self, request: Any, context: Any) -> StoreResponse:
        return self.stored


@pytest.fixture
def depot() -> Iterator[StoringDepot]:
    depot = StoringDepot()
    depot.start("127.0.0.1:0")
    yield depot
    depot.stop()


async def test_store_reports_what_was_copied_and_what_was_there(depot: StoringDepot, start_worker: StartWorker) -> None:
    depot.stored = StoreResponse(stored_tokens=CHUNK, resident_tokens=2 * CHUNK, stored_bytes=4096)
    worker = await start_worker(depot.address)
    worker.connector.store([store_command((BLOCKS,))])
    outcome = (await worker.until_done(1)).outcomes[1]
    assert 0 < outcome.seconds < 60
    assert outcome == TransferOutcome(
        num_bytes=4096, seconds=outcome.seconds, stored_tokens=CHUNK, resident_tokens=2 * CHUNK
    )


@pytest.mark.parametrize(("reason", "name"), [(REFUSAL_REASON_NO_SLOT, "NO_SLOT"), (999, "OTHER")])
async def test_refusal_is_reported_with_its_reason(
    depot: StoringDepot, start_worker: StartWorker, reason: Any, name: str
) -> None:
    """A newer depot may have reasons that this client does not know."""
    depot.stored = StoreResponse(stored_tokens=CHUNK, refused_tokens=CHUNK, refusal=Refusal(reason=reason))
    worker = await start_worker(depot.address)
    worker.connector.store([store_command((BLOCKS,))])
    report = await worker.until_done(1)
    assert report.failed == {1}
    assert (report.outcomes[1].refused_tokens, report.outcomes[1].reason) == (CHUNK, name)


async def test_load_reports_its_bytes(depot: StoringDepot, start_worker: StartWorker) -> None:
    depot.retrieved = RetrieveResponse(retrieved_tokens=32, retrieved_bytes=8192)
    worker = await start_worker(depot.address)
    worker.connector.load([load_command("lease", (BLOCKS,))])
    outcome = (await worker.until_done(2)).outcomes[2]
    assert (outcome.num_bytes, outcome.reason) == (8192, "")
    assert 0 < outcome.seconds < 60


@pytest.mark.parametrize(
    ("miss", "reason"),
    [(Miss(reason=MISS_REASON_TIER_LATE), "TIER_LATE"), (Miss(reason=999), "OTHER"), (None, "SHORT_ANSWER")],  # type: ignore[arg-type]
)
@pytest.mark.parametrize("may_be_partial", [True, False])
async def test_load_that_ends_early_says_why(
    depot: StoringDepot, start_worker: StartWorker, miss: Miss | None, reason: str, may_be_partial: bool
) -> None:
    depot.retrieved = RetrieveResponse(retrieved_tokens=16, retrieved_bytes=4096, miss=miss)
    worker = await start_worker(depot.address)
    worker.connector.load([load_command("lease", (BLOCKS,), may_be_partial=may_be_partial)])
    report = await worker.until_done(2)
    assert (report.failed == {2}) != may_be_partial
    assert (report.outcomes[2].reason, report.outcomes[2].num_bytes) == (reason, 4096)


async def test_failed_calls_say_the_depots_reason(depot: StoringDepot, start_worker: StartWorker) -> None:
    depot.failures["Retrieve"] = failure(grpc.StatusCode.NOT_FOUND, "LEASE_EXPIRED")
    worker = await start_worker(depot.address)
    worker.connector.load([load_command("lease", (BLOCKS,))])
    assert (await worker.until_done(2)).outcomes[2].reason == "LEASE_EXPIRED"


async def test_transfers_that_are_not_sent_say_why(depot: StoringDepot, start_worker: StartWorker) -> None:
    worker = await start_worker(depot.address)
    worker.connector.load([load_command("", (BLOCKS,))])
    assert (await worker.until_done(2)).outcomes == {2: TransferOutcome(reason="LEASE_GIVEN_BACK")}
    alone = await start_worker("unix:/nowhere", attach_timeout_seconds=0.1)
    alone.connector.store([store_command((BLOCKS,))])
    assert (await alone.until_done(1)).outcomes == {1: TransferOutcome(reason="NOT_ATTACHED")}


async def test_transfer_that_is_cancelled_says_so(depot: StoringDepot, start_worker: StartWorker) -> None:
    worker = await start_worker(depot.address, retrieve_timeout_seconds=60.0)
    depot.hanging.add("Retrieve")
    worker.connector.load([load_command("lease", (BLOCKS,))])
    await eventually(lambda: any(name == "Retrieve" for name, _ in depot.requests))
    await worker.connector._runner.close()
    assert worker.take().outcomes[2].reason == "CANCELLED"
