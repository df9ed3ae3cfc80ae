"""The statistics of a connector's scheduler: what users see of loads, stores and lookups."""

from __future__ import annotations

from typing import Any

import pytest

from kvdepot.connector.commands import TransferOutcome, WorkerReport
from kvdepot.connector.statistics import MAX_REASONS, ConnectorStatistics
from tests.fakes.clock import Clock
from tests.fakes.vllm import CHUNK, TABLE, Request, SchedulerDriver, request_of


@pytest.fixture
def driver() -> SchedulerDriver:
    driver = SchedulerDriver(num_workers=2)
    driver.scheduler.take_statistics()
    return driver


def counted(driver: SchedulerDriver) -> dict[tuple[str, ...], float]:
    """Take the counters since the last call, and how often histograms observed something."""
    samples = driver.scheduler.take_statistics().samples()
    return {
        (each.name, *each.labels): len(each.values) if each.name.endswith("_seconds") else each.values[0]
        for each in samples
    }


def report(driver: SchedulerDriver, transfer_id: int, *outcomes: TransferOutcome, **more: Any) -> None:
    """Report a transfer as done, by each worker in a report of its own."""
    for outcome in outcomes:
        found = WorkerReport(outcomes={transfer_id: outcome}, **more)
        found.done[transfer_id] += 1
        driver.scheduler.reported(found)


def stored(driver: SchedulerDriver, request: Request) -> int:
    driver.tables[request.request_id] = TABLE
    (store,) = driver.step({request: request.num_tokens}).stores
    return store.transfer_id


def loading(driver: SchedulerDriver, request: Request, local_tokens: int = 0) -> int:
    driver.scheduler.matched_tokens(request, local_tokens)
    driver.lookup_client.answer(16)
    found = driver.scheduler.matched_tokens(request, local_tokens)
    assert found
    driver.scheduler.allocated(request, TABLE, found)
    (load,) = driver.step({}).loads
    return load.transfer_id


def test_store_counts_its_tokens_once_and_the_bytes_of_all_workers(driver: SchedulerDriver) -> None:
    transfer_id = stored(driver, request_of(30))
    one = TransferOutcome(num_bytes=100, seconds=0.3, stored_tokens=16)
    two = TransferOutcome(num_bytes=200, seconds=1.5, stored_tokens=16)
    report(driver, transfer_id, one)
    assert counted(driver) == {}, "it is not done at the other worker"
    report(driver, transfer_id, two)
    assert driver.scheduler.take_statistics().values == {
        "tokens": {"store": 16},
        "bytes": {"store": 300},
        "transfer_seconds": {"store": {"10": [1, 1.5]}},
    }


def test_tokens_that_the_depot_had_already_are_counted_apart(driver: SchedulerDriver) -> None:
    outcome = TransferOutcome(seconds=0.1, stored_tokens=8, resident_tokens=16, num_bytes=5)
    report(driver, stored(driver, request_of(30)), outcome, outcome)
    found = counted(driver)
    assert (found["tokens", "store"], found["resident_tokens",]) == (8, 16)


def test_load_counts_what_it_wrote_and_not_the_engines_own_tokens(driver: SchedulerDriver) -> None:
    transfer_id = loading(driver, request_of(20), local_tokens=4)
    assert counted(driver) == {("lookups", "hit"): 1, ("lookup_wait_seconds",): 1}
    outcome = TransferOutcome(num_bytes=7, seconds=0.2)
    report(driver, transfer_id, outcome, outcome)
    assert counted(driver) == {("tokens", "load"): 12, ("bytes", "load"): 14, ("transfer_seconds", "load"): 1}
    assert counted(driver) == {}


def test_failed_load_counts_its_tokens_and_the_first_reason(driver: SchedulerDriver) -> None:
    transfer_id = loading(driver, request_of(20))
    counted(driver)
    good, bad = TransferOutcome(num_bytes=9, seconds=0.2), TransferOutcome(seconds=0.1, reason="LEASE_EXPIRED")
    report(driver, transfer_id, good, bad, failed={transfer_id})
    assert counted(driver) == {
        ("failed_transfers", "load", "LEASE_EXPIRED"): 1,
        ("failed_tokens", "load"): 16,
        ("bytes", "load"): 9,
        ("transfer_seconds", "load"): 1,
    }


def test_partial_load_counts_both_parts(driver: SchedulerDriver) -> None:
    transfer_id = loading(driver, request_of(20), local_tokens=4)
    counted(driver)
    late = TransferOutcome(seconds=0.1, reason="TIER_LATE")
    report(driver, transfer_id, late, partial={transfer_id: 10})
    report(driver, transfer_id, late, partial={transfer_id: 12})
    found = counted(driver)
    assert (found["tokens", "load"], found["failed_tokens", "load"]) == (6, 6)
    assert found["failed_transfers", "load", "TIER_LATE"] == 1


def test_refused_tokens_are_no_failure(driver: SchedulerDriver) -> None:
    transfer_id = stored(driver, request_of(30))
    outcome = TransferOutcome(seconds=0.1, stored_tokens=8, refused_tokens=16, reason="NO_SLOT")
    report(driver, transfer_id, outcome, outcome, failed={transfer_id})
    found = counted(driver)
    assert (found["refused_tokens", "NO_SLOT"], found["tokens", "store"]) == (16, 8)
    assert not {name for name, *_ in found} & {"failed_tokens", "failed_transfers"}


@pytest.mark.parametrize(
    ("matched", "failed", "chosen", "result"),
    [
        (16, False, True, "hit"),
        (16, False, False, "unused"),
        (0, False, False, "miss"),
        (4, False, False, "miss"),
        (0, True, False, "failed"),
        (None, False, False, "late"),
    ],
)
def test_lookup_is_counted_by_its_result_when_the_request_is_admitted(
    driver: SchedulerDriver, clock: Clock, matched: int | None, failed: bool, chosen: bool, result: str
) -> None:
    request = request_of(20)
    driver.scheduler.matched_tokens(request, 4)
    clock.advance(0.3)
    if matched is not None:
        driver.lookup_client.answer(matched).failed = failed
    driver.scheduler.matched_tokens(request, 4)
    driver.scheduler.allocated(request, TABLE, 12 if chosen else 0)
    driver.scheduler.allocated(request, TABLE, 0)  # vLLM's second call, after a load
    values = driver.scheduler.take_statistics().values
    assert values["lookups"] == {result: 1}
    ((count, total),) = values["lookup_wait_seconds"][""].values()
    assert (count, total) == (1, pytest.approx(0.3))


def test_attached_workers_are_known_after_each_change(driver: SchedulerDriver) -> None:
    for chunk_size, count in ((0, 1), (CHUNK, 2)):
        driver.scheduler.reported(WorkerReport(chunk_sizes={1: chunk_size}))
        assert counted(driver) == {("attached_workers",): count}


def test_reasons_are_bounded_and_come_from_the_depot_only(driver: SchedulerDriver) -> None:
    statistics = ConnectorStatistics()
    names = {statistics._bounded(f"REASON_{number}") for number in range(10 * MAX_REASONS)}
    assert len(names) == MAX_REASONS + 1
    assert ConnectorStatistics()._bounded('x",le="1') == "OTHER"
