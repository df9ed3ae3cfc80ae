"""The parameters of a request: what they limit, and what becomes of wrong ones."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from kvdepot.connector.request_limits import MAX_WARNED_KEYS, RequestLimits, RequestParameters
from tests.fakes.vllm import BLOCK, TABLE, SchedulerDriver, request_of


@pytest.mark.parametrize(
    ("parameters", "limits"),
    [
        (None, RequestLimits()),
        (["kvdepot.load"], RequestLimits()),
        ({"do_remote_prefill": True, 7: "x"}, RequestLimits()),
        ({"kvdepot.will_continue": False}, RequestLimits(will_continue=False)),
        ({"kvdepot.load": True, "kvdepot.store": True}, RequestLimits()),
        ({"kvdepot.load": False}, RequestLimits(max_load_tokens=0)),
        ({"kvdepot.store": False, "kvdepot.max_store_tokens": 512}, RequestLimits(max_store_tokens=0)),
        (
            {"kvdepot.max_load_tokens": 0, "kvdepot.max_store_tokens": 512},
            RequestLimits(max_load_tokens=0, max_store_tokens=512),
        ),
    ],
)
def test_parameters_are_read(parameters: Any, limits: RequestLimits, caplog: pytest.LogCaptureFixture) -> None:
    assert RequestParameters().limits(parameters) == limits
    assert not caplog.records


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("will_continue", "yes", "true or false is expected, not 'yes'"),
        ("load", 0, "true or false is expected, not 0"),
        ("max_load_tokens", -1, "a whole number from 0 on is expected, not -1"),
        ("max_load_tokens", True, "a whole number from 0 on is expected, not True"),
        ("max_store_tokens", 1.5, "a whole number from 0 on is expected, not 1.5"),
        ("max_store_tokens", "9" * 1000, "a whole number from 0 on is expected, not '999"),
        ("max_tokens", 1, "is no parameter"),
    ],
)
def test_wrong_parameter_is_ignored_and_warned_of_once(
    key: str, value: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    parameters = RequestParameters()
    for _ in range(3):
        limits = parameters.limits({f"kvdepot.{key}": value, "kvdepot.will_continue": True} | {f"kvdepot.{key}": value})
        assert limits == RequestLimits(will_continue=None if key == "will_continue" else True)
    (record,) = caplog.records
    assert f"a request's kvdepot.{key} is ignored: {message}" in record.getMessage()
    assert len(record.getMessage()) < 200


def test_warnings_are_bounded_whatever_keys_users_make_up(caplog: pytest.LogCaptureFixture) -> None:
    parameters = RequestParameters()
    with caplog.at_level(logging.WARNING):
        for number in range(10 * MAX_WARNED_KEYS):
            parameters.limits({f"kvdepot.{number}" + "x" * 10_000: 1})
    assert len(caplog.records) == MAX_WARNED_KEYS
    assert max(len(record.getMessage()) for record in caplog.records) < 200


@pytest.fixture
def driver() -> SchedulerDriver:
    return SchedulerDriver()


@pytest.mark.parametrize(
    ("limit", "local_tokens", "loaded"),
    [(16, 0, 16), (15, 0, 8), (8, 0, 8), (8, 4, 4), (12, 4, 12), (7, 0, 0), (0, 0, 0), (4, 16, 0)],
)
def test_no_more_is_loaded_than_the_request_allows(
    driver: SchedulerDriver, limit: int, local_tokens: int, loaded: int
) -> None:
    request = request_of(30, kv_transfer_params={"kvdepot.max_load_tokens": limit})
    found = driver.scheduler.matched_tokens(request, local_tokens)
    if loaded == 0:
        assert found == 0
        assert not driver.lookup_client.calls, "nothing is looked up that is not loaded"
        return
    driver.lookup_client.answer(24)
    assert driver.scheduler.matched_tokens(request, local_tokens) == loaded


@pytest.mark.parametrize(("limit", "ends"), [(100, [16, 24]), (24, [16, 24]), (23, [16]), (15, [8]), (7, []), (0, [])])
def test_no_chunk_is_stored_that_ends_behind_the_requests_limit(
    driver: SchedulerDriver, limit: int, ends: list[int]
) -> None:
    request = request_of(26, kv_transfer_params={"kvdepot.max_store_tokens": limit})
    driver.tables["request"] = TABLE
    stores = [*driver.step({request: 20}).stores, *driver.step({request: 6}).stores]
    assert [len(store.chunk_hashes) * store.chunk_size for store in stores] == ends


@pytest.mark.parametrize(("prompts_only", "ends"), [(False, [16, 24]), (True, [16])])
def test_generated_tokens_are_stored_unless_the_setting_forbids_it(prompts_only: bool, ends: list[int]) -> None:
    driver = SchedulerDriver(store_prompts_only=prompts_only)
    request = request_of(20)
    driver.tables["request"] = TABLE
    stores = list(driver.step({request: 20}).stores)
    for token in range(6):
        request.tokens.append(100 + token)
        request.num_generated_tokens += 1
        stores += driver.step({request: 1}).stores
    assert [len(store.chunk_hashes) * store.chunk_size for store in stores] == ends
    assert all(len(table.block_ids) * BLOCK % 8 == 0 for store in stores for table in store.tables)
