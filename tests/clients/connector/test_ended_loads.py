"""Ends of loads, as the connector's scheduler returns them to an engine."""

from __future__ import annotations

import pytest

from kvdepot.connector.commands import WorkerReport
from kvdepot.connector.ended_loads import EndedLoad
from tests.fakes.vllm import TABLE, Request, SchedulerDriver, request_of


def begin_load(driver: SchedulerDriver, request: Request) -> int:
    """Begin a load of 16 of the 20 tokens of a request. Return the transfer's id."""
    assert driver.scheduler.matched_tokens(request, 0) is None
    driver.lookup_client.answer(16)
    assert driver.scheduler.matched_tokens(request, 0) == 16
    driver.scheduler.allocated(request, TABLE, 16)
    (load,) = driver.step({}).loads
    return load.transfer_id


def report(
    driver: SchedulerDriver, *done: int, failed: set[int] | None = None, partial: dict[int, int] | None = None
) -> list[EndedLoad]:
    """Let one worker report."""
    worker = WorkerReport(failed=failed or set(), partial=partial or {})
    worker.done.update(done)
    return driver.scheduler.reported(worker)


def test_a_load_ends_once_with_all_its_tokens() -> None:
    driver = SchedulerDriver()
    load = begin_load(driver, request_of(20))
    assert report(driver) == []
    assert report(driver, load) == [EndedLoad("request", 16, failed=False)]
    assert report(driver, load) == []


@pytest.mark.parametrize("loaded", [(12, 8), (8, 12)])
def test_a_load_ends_when_the_last_worker_is_done_with_the_tokens_of_the_one_that_has_fewest(
    loaded: tuple[int, int],
) -> None:
    driver = SchedulerDriver(num_workers=3)
    load = begin_load(driver, request_of(20))
    for num_tokens in loaded:
        assert report(driver, load, partial={load: num_tokens}) == []
    assert report(driver, load) == [EndedLoad("request", 8, failed=False)]


def test_a_load_that_fails_at_one_worker_ends_at_once_and_only_once() -> None:
    driver = SchedulerDriver(num_workers=2)
    load = begin_load(driver, request_of(20))
    assert report(driver, failed={load}) == [EndedLoad("request", 0, failed=True)]
    assert report(driver, load, failed={load}, partial={load: 8}) == []
    assert driver.pool.kept  # the depot may still write
    assert report(driver, load) == []
    assert not driver.pool.kept


def test_a_load_that_fails_and_is_done_in_one_report_has_failed() -> None:
    driver = SchedulerDriver()
    load = begin_load(driver, request_of(20))
    assert report(driver, load, failed={load}) == [EndedLoad("request", 0, failed=True)]


def test_the_load_of_a_finished_request_is_not_returned_although_its_id_is_used_again() -> None:
    for failed in (False, True):
        driver = SchedulerDriver()
        first, second = request_of(20), request_of(20)
        load = begin_load(driver, first)
        driver.scheduler.finished(first)
        other = begin_load(driver, second)
        assert report(driver, load, failed={load} if failed else None) == []
        assert report(driver, other) == [EndedLoad("request", 16, failed=False)]


def test_stores_are_not_returned() -> None:
    driver = SchedulerDriver()
    request = request_of(20)
    driver.scheduler.matched_tokens(request, 0)
    driver.lookup_client.answer(0)
    driver.scheduler.matched_tokens(request, 0)
    driver.tables["request"] = TABLE
    (store,) = driver.step({request: 20}).stores
    assert report(driver, failed={store.transfer_id}) == report(driver, store.transfer_id) == []
