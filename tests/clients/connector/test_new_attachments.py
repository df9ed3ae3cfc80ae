"""The connector's worker reports each new attachment, because the depot behind it may be another one, and empty."""

from __future__ import annotations

from kvdepot.connector.commands import WorkerReport
from kvdepot.connector.worker_results import WorkerResults
from tests.clients.connector.workers import StartWorker, Worker, start_worker, store_command
from tests.fakes.depot import FakeDepot
from tests.fakes.waiting import eventually

__all__ = ["start_worker"]


async def until_it_stores(worker: Worker, depot: FakeDepot) -> None:
    """Send stores until one gets to the depot: the worker is attached. Take no report meanwhile."""
    depot.requests.clear()
    transfer_id = 100

    def has_stored() -> bool:
        nonlocal transfer_id
        transfer_id += 1
        worker.connector.store([store_command(([1, 2, 3, 4],), transfer_id=transfer_id)])
        return any(name == "Store" for name, _ in depot.requests)

    await eventually(has_stored)


async def test_attachment_that_is_replaced_between_two_steps_is_reported(
    start_worker: StartWorker, depot: FakeDepot
) -> None:
    worker = await start_worker(depot.address)
    chunk_size = worker.chunk_size
    assert chunk_size
    assert not worker.take().done
    depot.attached.clear()
    depot.end_attachment()
    await eventually(depot.attached.is_set)
    await until_it_stores(worker, depot)
    report = worker.connector.results.take_report()
    assert report is not None
    assert report.chunk_sizes == {0: chunk_size}
    assert report.wants_token_ids is not None


async def test_attachment_is_reported_once(start_worker: StartWorker, depot: FakeDepot) -> None:
    worker = await start_worker(depot.address)
    assert worker.chunk_size
    worker.connector.store([store_command(([1, 2, 3, 4],), transfer_id=1)])
    later: list[WorkerReport] = []

    def is_done() -> bool:
        if (report := worker.connector.results.take_report()) is not None:
            later.append(report)
        return any(report.done for report in later)

    await eventually(is_done)
    assert not any(report.chunk_sizes for report in later)
    assert {report.wants_token_ids for report in later} == {None}


def test_worker_that_is_not_attached_says_so_in_its_first_step() -> None:
    results = WorkerResults(worker_index=3)
    assert results.take_report() == WorkerReport(chunk_sizes={3: 0}, wants_token_ids=False)
    assert results.take_report() is None
