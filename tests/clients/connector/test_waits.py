"""Waits and their bounds: of requests for answers, of answers for free blocks, of an idle engine for its workers."""

from __future__ import annotations

import pytest

from tests.fakes.clock import Clock
from tests.fakes.vllm import TABLE, SchedulerDriver, request_of

LEASE_SECONDS = 30.0


@pytest.fixture
def driver() -> SchedulerDriver:
    return SchedulerDriver()


def test_request_is_computed_once_it_has_waited_for_its_lookup(clock: Clock, driver: SchedulerDriver) -> None:
    request = request_of(20)
    driver.scheduler.matched_tokens(request, 0)
    driver.lookup_client.calls[0].lookup.deadline = clock.now + 1.0
    clock.advance(1.0)
    assert driver.scheduler.matched_tokens(request, 0) == 0
    assert driver.scheduler.matched_tokens(request, 0) == 0
    assert len(driver.lookup_client.calls) == 1
    driver.scheduler.allocated(request, TABLE, 0)  # vLLM computes it
    driver.lookup_client.answer(16)  # too late
    assert not driver.lookup_client.leased


@pytest.mark.parametrize("stored_tokens", [0, 16], ids=["a miss", "a hit"])
@pytest.mark.parametrize("step_seconds", [0.05, 7.0, 20.0])
def test_answer_is_used_at_the_next_look_however_long_steps_last(
    clock: Clock, driver: SchedulerDriver, step_seconds: float, stored_tokens: int
) -> None:
    request = request_of(20)
    assert driver.scheduler.matched_tokens(request, 0) is None
    driver.step({})
    driver.lookup_client.answer(stored_tokens, good_for_seconds=LEASE_SECONDS)
    clock.advance(step_seconds)
    assert driver.scheduler.matched_tokens(request, 0) == stored_tokens


@pytest.mark.parametrize("has_room_after", [2, 3, 4, 5, 10, 11, 12])
@pytest.mark.parametrize("step_seconds", [7.0, 20.0, 40.0])
def test_request_is_admitted_as_soon_as_blocks_are_free_however_long_steps_last(
    clock: Clock, driver: SchedulerDriver, step_seconds: float, has_room_after: int
) -> None:
    """The depot answers at once, and vLLM has no free blocks at first. The request must not wait for another answer."""
    request = request_of(20)
    answers = []
    for _ in range(has_room_after + 2):
        num_asked = len(driver.lookup_client.calls)
        answers.append(driver.scheduler.matched_tokens(request, 0))
        driver.step({})
        if len(driver.lookup_client.calls) > num_asked:
            driver.lookup_client.answer(16, good_for_seconds=LEASE_SECONDS)
        clock.advance(step_seconds)
    assert answers[0] is None
    assert None not in answers[2:], answers
    if step_seconds < LEASE_SECONDS:
        assert answers.count(16) >= answers.count(0), "it may load at every second look at least"


def test_request_waits_for_all_its_lookups_together_as_long_as_for_one(clock: Clock, driver: SchedulerDriver) -> None:
    """Matches that find no free blocks are given up and looked up again. This may not delay the request."""
    request = request_of(20)
    waited = 0.0
    for _ in range(1000):
        num_asked = len(driver.lookup_client.calls)
        found = driver.scheduler.matched_tokens(request, 0)
        driver.step({})
        if len(driver.lookup_client.calls) > num_asked:
            driver.lookup_client.answer(16, good_for_seconds=LEASE_SECONDS)
        clock.advance(0.3)
        waited += 0.3 if found is None else 0.0
    assert 0.3 < waited <= 1.0 + 0.3
    assert len(driver.lookup_client.calls) > 10  # it still learns of what is stored


def test_time_in_which_vllm_did_not_look_is_not_waited(clock: Clock, driver: SchedulerDriver) -> None:
    """A request that others stand before loses its lease, and not its hit."""
    request = request_of(20)
    assert driver.scheduler.matched_tokens(request, 0) is None
    for _ in range(400):
        driver.step({})
        if driver.lookup_client.calls[-1].lookup.matched_tokens is None:
            driver.lookup_client.answer(16)
        clock.advance(0.05)
    assert not driver.lookup_client.leased  # for ten of the twenty seconds at least
    assert driver.scheduler.matched_tokens(request, 0) is None
    driver.lookup_client.answer(16)
    assert driver.scheduler.matched_tokens(request, 0) == 16


def test_step_that_a_request_waited_for_counts_though_vllm_did_not_look_at_it_then(
    clock: Clock, driver: SchedulerDriver
) -> None:
    request = request_of(20)
    assert driver.scheduler.matched_tokens(request, 0) is None
    driver.step({})
    driver.lookup_client.answer(16)
    for _ in range(2):
        clock.advance(7.0)
        driver.step({})
    assert not driver.lookup_client.leased
    assert driver.scheduler.matched_tokens(request, 0) == 0
    assert len(driver.lookup_client.calls) == 2


def test_preempted_request_may_wait_again(clock: Clock, driver: SchedulerDriver) -> None:
    request = request_of(20)
    driver.scheduler.matched_tokens(request, 0)
    driver.step({})
    clock.advance(7.0)
    driver.lookup_client.answer(0)
    assert driver.scheduler.matched_tokens(request, 0) == 0
    driver.scheduler.allocated(request, TABLE, 0)
    assert driver.scheduler.matched_tokens(request, 0) is None


def test_miss_is_looked_up_once_while_it_is_fresh(clock: Clock, driver: SchedulerDriver) -> None:
    request = request_of(20)
    driver.scheduler.matched_tokens(request, 0)
    driver.lookup_client.answer(0)
    assert driver.scheduler.matched_tokens(request, 0) == 0
    driver.step({})
    assert driver.scheduler.matched_tokens(request, 0) == 0
    clock.advance(5.0)
    driver.step({})
    assert driver.scheduler.matched_tokens(request, 0) is None


def test_lease_is_kept_only_briefly_while_vllm_has_no_free_blocks(clock: Clock, driver: SchedulerDriver) -> None:
    request = request_of(20)
    driver.scheduler.matched_tokens(request, 0)
    driver.lookup_client.answer(16)
    for seconds in (0.0, 0.25, 4.5):
        clock.advance(seconds)
        driver.step({})
    assert driver.lookup_client.leased
    clock.advance(0.25)
    driver.step({})
    assert not driver.lookup_client.leased
    assert driver.scheduler.matched_tokens(request, 0) is None


def test_idle_engine_steps_on_until_its_transfers_are_done(clock: Clock, driver: SchedulerDriver) -> None:
    request = request_of(8)
    driver.tables["request"] = TABLE
    (command,) = driver.step({request: 8}).stores
    driver.scheduler.finished(request)
    for _ in range(60):  # the depot hangs
        assert driver.scheduler.needs_steps()
        clock.advance(0.5)
    driver.mark_done(command.transfer_id, failed=[command.transfer_id])
    assert not driver.scheduler.needs_steps()
    assert not driver.pool.kept


def test_idle_engine_stops_in_the_end_and_goes_on_whenever_a_call_wakes_it(
    clock: Clock, driver: SchedulerDriver
) -> None:
    """A pause waits until vLLM has nothing to do, so that this must come."""
    request = request_of(8)
    driver.tables["request"] = TABLE
    (command,) = driver.step({request: 8}).stores
    driver.scheduler.finished(request)

    def steps_for() -> float:
        start = clock.now
        while driver.scheduler.needs_steps():
            assert clock.now < start + 1000
            clock.advance(0.01)
        assert not driver.scheduler.needs_steps()
        return clock.now - start

    assert 30 < steps_for() < 120
    for _ in range(3):
        clock.advance(600)  # then a call wakes it
        assert 30 < steps_for() < 120
    clock.advance(600)
    assert driver.scheduler.needs_steps()
    driver.mark_done(command.transfer_id)
    assert not driver.scheduler.needs_steps()
