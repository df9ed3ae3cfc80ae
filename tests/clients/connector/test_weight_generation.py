"""New weights get keys of their own, and engines share again when they agree on the weights' version."""

from __future__ import annotations

import logging

import pytest

from kvdepot.connector.weight_generation import WeightGeneration
from tests.fakes.vllm import TABLE, Request, SchedulerDriver, request_of


def salt_of(driver: SchedulerDriver, request_id: str) -> str:
    """Return the salt of a new request's lookup."""
    driver.scheduler.matched_tokens(request_of(16, request_id), 0)
    return driver.lookup_client.calls[-1].prefix.cache_salt


def stored(driver: SchedulerDriver, request: Request, num_tokens: int) -> list[str]:
    driver.tables[request.request_id] = TABLE
    return [command.request_id for command in driver.step({request: num_tokens}).stores]


def test_engines_share_exactly_if_run_and_version_are_equal() -> None:
    def salt(training_run: str, *versions: str) -> str:
        generation = WeightGeneration(training_run)
        for version in versions:
            generation.change(version, "an update")
        return generation.salt("")

    assert salt("run") == salt("other run") == salt("") == ""
    assert salt("run", "1", "2") == salt("run", "2") == salt("run", "", "2")
    alone = [salt(run, *versions) for run in ("", "run") for versions in (("",), ("2", ""), ("",))]
    alone += [salt("", "2"), salt("", "2")]
    named = [salt("run", "1"), salt("run", "2"), salt("other run", "2")]
    assert len({"", *alone, *named}) == 1 + len(alone) + len(named)


def test_run_and_version_of_any_length_are_told_apart() -> None:
    salts = set()
    for version in ("a" * 1000, "a" * 1001, "é", "\ud800"):
        generation = WeightGeneration("run" * 100)
        generation.change(version, "an update")
        salts.add(generation.salt("salt"))
    assert len(salts) == 4
    assert all(len(salt.encode()) <= 256 for salt in salts)


def test_version_without_a_run_warns_once_of_what_to_set(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    generation = WeightGeneration()
    for version in ("1", "2"):
        generation.change(version, f"vLLM's weights are version {version}")
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "kvdepot.training_run" in warnings[0].getMessage()
    assert caplog.text.count("until it is started again") == 2


def test_log_says_under_which_weights_an_engine_shares(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    generation = WeightGeneration("run-42")
    for _ in range(2):
        generation.change("", "the workers load others")
    generation.change("7", "version 7")
    generation.change("", "the workers load others")
    assert "the workers load others: this engine shares KV with no other one until its weights have a v" in caplog.text
    assert "version 7 of the training run run-42" in caplog.text
    assert caplog.text.count("the workers load others") == 2, "it says so again, and not twice"


def test_request_that_began_before_an_update_neither_loads_nor_stores() -> None:
    driver = SchedulerDriver(training_run="run")
    old, new = request_of(24, "old"), request_of(16, "new")
    assert stored(driver, old, 4) == []
    driver.scheduler.weights_changed("", "an update")
    driver.scheduler.weights_changed("1", "version 1")
    assert driver.scheduler.matched_tokens(old, 0) == 0
    assert stored(driver, old, 16) == []
    assert stored(driver, new, 16) == ["new"]


def test_request_that_waits_during_an_update_shares_under_the_new_weights() -> None:
    driver = SchedulerDriver(training_run="run")
    waiting = request_of(20, "waiting")
    driver.scheduler.matched_tokens(waiting, 0)
    old_lookup = driver.lookup_client.answer(16)
    driver.scheduler.weights_changed("1", "version 1")
    assert driver.lookup_client.given_up == [old_lookup]
    assert not driver.lookup_client.leased
    assert driver.scheduler.matched_tokens(waiting, 0) is None
    assert driver.lookup_client.calls[-1].prefix.cache_salt == salt_of(driver, "another")
    assert stored(driver, waiting, 16) == ["waiting"]


def test_chunks_that_a_preempted_request_stored_before_are_stored_again_of_new_weights() -> None:
    driver = SchedulerDriver(training_run="run")
    request = request_of(16)
    driver.tables["request"] = TABLE
    (store,) = driver.step({request: 16}).stores
    driver.mark_done(store.transfer_id)
    request.num_computed_tokens = 0  # preempted
    driver.scheduler.weights_changed("1", "version 1")
    driver.scheduler.engine_cache_emptied()
    (again,) = driver.step({request: 16}).stores
    assert (again.start_token, len(again.chunk_hashes)) == (0, 2)
    assert again.cache_salt != store.cache_salt


def test_running_store_of_old_weights_keeps_its_request_from_the_new_ones() -> None:
    driver = SchedulerDriver(training_run="run")
    request = request_of(16)
    driver.tables["request"] = TABLE
    (store,) = driver.step({request: 16}).stores
    request.num_computed_tokens = 0
    driver.scheduler.weights_changed("1", "version 1")
    driver.scheduler.engine_cache_emptied()
    driver.mark_done(store.transfer_id)
    assert not driver.step({request: 16}).stores


@pytest.mark.parametrize("is_loaded", [False, True])
def test_cache_that_was_filled_before_an_update_is_not_stored_from(is_loaded: bool) -> None:
    """A trainer empties the cache before the update, or not at all; only the first leaves no KV of older weights."""
    driver = SchedulerDriver(training_run="run")
    if is_loaded:
        filling = request_of(20, "filling")
        driver.scheduler.matched_tokens(filling, 0)
        driver.lookup_client.answer(16)
        assert driver.scheduler.matched_tokens(filling, 0) == 16
        driver.scheduler.allocated(filling, TABLE, 16)
    else:
        driver.step({request_of(4, "filling"): 4})
    driver.scheduler.weights_changed("1", "version 1")
    on_old = request_of(16, "on old", num_computed_tokens=8)
    driver.scheduler.matched_tokens(on_old, 8)
    assert stored(driver, on_old, 8) == []
    driver.scheduler.engine_cache_emptied()
    driver.scheduler.weights_changed("2", "version 2")
    on_new = request_of(16, "on new", num_computed_tokens=8)
    driver.scheduler.matched_tokens(on_new, 8)
    assert stored(driver, on_new, 8) == ["on new"]


def test_reset_may_mean_that_the_weights_stay() -> None:
    for means_new, is_same in ((True, False), (False, True)):
        driver = SchedulerDriver(reset_means_new_weights=means_new)
        before = salt_of(driver, "before")
        running = request_of(16, "running")
        assert stored(driver, running, 4) == []
        driver.scheduler.reset()
        assert (salt_of(driver, "after") == before) == is_same
        assert (stored(driver, running, 12) == ["running"]) == is_same
        driver.scheduler.weights_changed("", "an update")
        assert salt_of(driver, "updated") != before
