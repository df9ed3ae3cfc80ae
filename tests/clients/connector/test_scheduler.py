"""The connector's scheduler: its lookups, loads, stores and releases in the life of a request."""

from __future__ import annotations

from typing import Any

import pytest

from kvdepot.connector.block_allocations import BlockAllocation
from kvdepot.connector.cache_groups import CacheGroup
from kvdepot.connector.commands import GroupTable, LoadCommand, StoreCommand, WorkerReport
from tests.fakes.clock import Clock
from tests.fakes.vllm import CHUNK, TABLE, Request, SchedulerDriver, embeddings_of, request_of

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def ids_of(command: LoadCommand | StoreCommand) -> tuple[list[int], ...]:
    """Return the block ids of tables without absent blocks."""
    assert not any(table.absent_blocks for table in command.tables)
    return tuple(table.block_ids for table in command.tables)


@pytest.fixture
def driver() -> SchedulerDriver:
    return SchedulerDriver()


def test_lookup_is_never_waited_for(driver: SchedulerDriver) -> None:
    request = request_of(20)
    assert driver.scheduler.matched_tokens(request, 0) is None
    assert driver.scheduler.matched_tokens(request, 0) is None
    assert len(driver.lookup_client.calls) == 1
    driver.lookup_client.answer(16)
    assert driver.scheduler.matched_tokens(request, 0) == 16
    assert driver.scheduler.matched_tokens(request, 4) == 12


def test_prefix_is_the_hash_of_each_chunks_last_block(driver: SchedulerDriver) -> None:
    request = request_of(20, cache_salt="salt", trace_headers={"Traceparent": PARENT})
    driver.scheduler.matched_tokens(request, 4)
    call = driver.lookup_client.calls[0]
    assert list(call.prefix.block_hashes) == [request.block_hashes[1], request.block_hashes[3]]
    assert (call.prefix.hash_block_size, call.prefix.cache_salt) == (CHUNK, "salt")
    assert (call.session_id, call.computed_tokens, call.traceparent) == ("request", 4, PARENT)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        (None, None),
        ({}, None),
        ({"kvdepot.will_continue": True}, True),
        ({"kvdepot.will_continue": False, "do_remote_prefill": True}, False),
        ({"kvdepot.will_continue": "yes"}, None),
        (["kvdepot.will_continue"], None),
    ],
)
def test_the_lookups_and_stores_of_a_request_say_whether_it_goes_on(
    driver: SchedulerDriver, params: Any, said: bool | None
) -> None:
    request = request_of(20, kv_transfer_params=params)
    driver.scheduler.matched_tokens(request, 0)
    assert driver.lookup_client.calls[0].will_continue is said
    driver.lookup_client.answer(0)
    driver.scheduler.matched_tokens(request, 0)
    driver.tables["request"] = TABLE
    (store,) = driver.step({request: 20}).stores
    assert store.will_continue is said


@pytest.mark.parametrize(
    ("wanted", "fields", "is_sent"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"mm_features": ["an image"]}, False),  # its tokens do not say which one
        (True, {"prompt_embeds": embeddings_of(20)}, False),
    ],
)
def test_a_store_has_the_tokens_of_its_chunks_if_the_depot_wants_them_and_they_are_all(
    driver: SchedulerDriver, wanted: bool, fields: dict[str, Any], is_sent: bool
) -> None:
    driver.scheduler.reported(WorkerReport(chunk_sizes={0: CHUNK}, wants_token_ids=wanted))
    request = request_of(20, **fields)
    driver.scheduler.matched_tokens(request, 0)
    driver.lookup_client.answer(0)
    driver.scheduler.matched_tokens(request, 0)
    driver.tables["request"] = TABLE
    (store,) = driver.step({request: 20}).stores
    assert list(store.prefix.token_ids) == (list(request.all_token_ids[:16]) if is_sent else [])
    assert len(store.prefix.block_hashes) == 2


def test_the_later_report_of_a_worker_says_whether_the_depot_wants_tokens() -> None:
    wants, silent, wants_not = (WorkerReport(wants_token_ids=each) for each in (True, None, False))
    assert wants.aggregate(silent).wants_token_ids is True
    assert wants.aggregate(wants_not).wants_token_ids is False


@pytest.mark.parametrize(
    "request_",
    [request_of(7), request_of(20, skip_reading_prefix_cache=True)],
    ids=["shorter than a chunk", "may not read caches"],
)
def test_what_can_not_be_loaded_is_not_looked_up(driver: SchedulerDriver, request_: Request) -> None:
    assert driver.scheduler.matched_tokens(request_, 0) == 0
    assert not driver.lookup_client.calls


def test_what_the_engine_has_is_not_looked_up(driver: SchedulerDriver) -> None:
    assert driver.scheduler.matched_tokens(request_of(20), 16) == 0
    assert not driver.lookup_client.calls


def test_depot_that_just_failed_gets_no_lookup(driver: SchedulerDriver) -> None:
    driver.lookup_client.paused = True
    assert driver.scheduler.matched_tokens(request_of(20), 0) == 0
    assert not driver.lookup_client.calls


@pytest.mark.parametrize("chunk_sizes", [{0: CHUNK}, {0: CHUNK, 1: 0}, {0: CHUNK, 1: 2 * CHUNK}, {0: 6, 1: 6}])
def test_engine_goes_without_a_depot_until_all_workers_are_attached_alike(chunk_sizes: dict[int, int]) -> None:
    driver = SchedulerDriver(num_workers=2)
    driver.scheduler.reported(WorkerReport(chunk_sizes={0: 0, 1: 0}))
    driver.scheduler.reported(WorkerReport(chunk_sizes={**chunk_sizes}))
    request = request_of(20)
    assert driver.scheduler.matched_tokens(request, 0) == 0
    driver.tables["request"] = TABLE
    assert not driver.step({request: 20}).stores
    driver.scheduler.reported(WorkerReport(chunk_sizes={0: CHUNK, 1: CHUNK}))
    assert driver.scheduler.matched_tokens(request_of(20, "other"), 0) is None


def test_lease_is_given_back_when_nothing_is_loaded(driver: SchedulerDriver) -> None:
    request = request_of(20)
    driver.scheduler.matched_tokens(request, 0)
    driver.lookup_client.answer(16)
    assert driver.lookup_client.leased
    driver.scheduler.allocated(request, TABLE, 0)  # another connector was chosen, or vLLM computes
    assert not driver.lookup_client.leased


def test_lease_is_given_back_when_the_request_is_aborted(driver: SchedulerDriver) -> None:
    request = request_of(20)
    driver.scheduler.matched_tokens(request, 0)
    driver.lookup_client.answer(16)
    driver.scheduler.finished(request)
    assert not driver.lookup_client.leased
    assert driver.lookup_client.ended_sessions == ["request"]


def test_answer_that_comes_after_the_abort_leaves_no_lease(driver: SchedulerDriver) -> None:
    request = request_of(20)
    driver.scheduler.matched_tokens(request, 0)
    driver.scheduler.finished(request)
    driver.lookup_client.answer(16)
    assert not driver.lookup_client.leased


def load(driver: SchedulerDriver, request: Request, *, local_tokens: int = 0, matched_tokens: int = 16) -> int:
    """Let a request load; return the transfer's id."""
    driver.scheduler.matched_tokens(request, local_tokens)
    driver.lookup_client.answer(matched_tokens)
    found = driver.scheduler.matched_tokens(request, local_tokens)
    assert found == matched_tokens - local_tokens
    driver.scheduler.allocated(request, TABLE, found)
    request.num_computed_tokens = matched_tokens
    (command,) = driver.step({}).loads
    return command.transfer_id


def test_load_writes_what_is_not_the_engines_own(driver: SchedulerDriver) -> None:
    request = request_of(20)
    driver.scheduler.matched_tokens(request, 4)
    driver.lookup_client.answer(16)
    driver.scheduler.matched_tokens(request, 4)
    driver.scheduler.allocated(request, TABLE, 12)
    (command,) = driver.step({}).loads
    assert ids_of(command) == ([10, 11, 12, 13],)
    assert (command.num_tokens, command.skip_tokens, command.request_id) == (16, 4, "request")
    assert command.leases == ("lease-1",)
    assert driver.pool.kept == {11: 1, 12: 1, 13: 1}
    assert not driver.step({}).loads


def test_blocks_and_lease_are_kept_until_the_transfer_is_done_at_every_worker() -> None:
    driver = SchedulerDriver(num_workers=2)
    request = request_of(20)
    transfer_id = load(driver, request)
    driver.scheduler.allocated(request, TABLE, 0)  # vLLM's second call, when the load has ended
    driver.scheduler.finished(request)
    driver.mark_done(transfer_id)
    assert driver.pool.kept
    assert driver.lookup_client.leased
    assert not driver.lookup_client.ended_sessions
    driver.mark_done(transfer_id)
    assert not driver.pool.kept
    assert not driver.lookup_client.leased
    assert driver.lookup_client.ended_sessions == ["request"]


def test_blocks_of_the_tail_are_released_first(driver: SchedulerDriver) -> None:
    """vLLM reuses blocks in the order of their release, and the head of a prefix is worth the most."""
    driver.mark_done(load(driver, request_of(20)))
    assert driver.pool.freed_ids == [13, 12, 11, 10]


@pytest.mark.parametrize("num_external_tokens", [4, 24], ids=["a part of a chunk", "more than was found"])
def test_load_of_other_tokens_than_were_found_fails_and_is_computed(
    driver: SchedulerDriver, num_external_tokens: int
) -> None:
    request = request_of(40)
    driver.scheduler.matched_tokens(request, 0)
    driver.lookup_client.answer(16)
    driver.scheduler.matched_tokens(request, 0)
    driver.scheduler.allocated(request, TABLE, num_external_tokens)
    (command,) = driver.step({}).loads
    assert command.leases == ()
    assert not driver.lookup_client.leased


def test_load_fails_if_the_depot_went_away_before_it_began(driver: SchedulerDriver) -> None:
    request = request_of(20)
    driver.scheduler.matched_tokens(request, 0)
    driver.lookup_client.answer(16)
    driver.scheduler.matched_tokens(request, 0)
    driver.scheduler.reported(WorkerReport(chunk_sizes={0: 0}))
    driver.scheduler.allocated(request, TABLE, 16)
    (command,) = driver.step({}).loads
    assert command.leases == ()
    assert not driver.lookup_client.leased


def test_load_that_failed_is_computed_and_stored_again(driver: SchedulerDriver) -> None:
    request = request_of(20)
    transfer_id = load(driver, request)
    driver.mark_done(transfer_id, failed=[transfer_id])
    request.num_computed_tokens = 0
    assert driver.scheduler.matched_tokens(request, 0) == 0
    assert len(driver.lookup_client.calls) == 1
    driver.tables["request"] = TABLE
    (command,) = driver.step({request: 20}).stores
    assert (command.start_token, ids_of(command)) == (0, ([10, 11, 12, 13],))


def test_tail_of_a_partial_load_is_stored_again(driver: SchedulerDriver) -> None:
    request = request_of(20)
    transfer_id = load(driver, request)
    driver.mark_done(transfer_id, partial={transfer_id: 8})
    request.num_computed_tokens = 8  # vLLM goes on there
    driver.tables["request"] = TABLE
    (command,) = driver.step({request: 12}).stores
    assert (command.start_token, ids_of(command)) == (8, ([12, 13],))


def test_partial_load_at_one_worker_is_one_of_the_engine() -> None:
    driver = SchedulerDriver(num_workers=3)
    request = request_of(30)
    transfer_id = load(driver, request, matched_tokens=24)
    driver.mark_done(transfer_id, partial={transfer_id: 8})
    driver.mark_done(transfer_id, partial={transfer_id: 16})
    driver.mark_done(transfer_id)
    request.num_computed_tokens = 8
    driver.tables["request"] = TABLE
    (command,) = driver.step({request: 22}).stores
    assert command.start_token == 8


def test_reports_of_workers_keep_the_fewest_loaded_tokens() -> None:
    reports = [WorkerReport(partial=each) for each in ({1: 16, 2: 8}, {1: 8}, {1: 24, 3: 8}, {})]
    total = WorkerReport()
    for report in reports:
        total = total.aggregate(report)
    assert total.partial == {1: 8, 2: 8, 3: 8}


def test_request_that_has_loaded_partially_may_load_again_after_a_preemption(driver: SchedulerDriver) -> None:
    request = request_of(20)
    transfer_id = load(driver, request)
    driver.mark_done(transfer_id, partial={transfer_id: 8})
    request.num_computed_tokens = 0
    assert driver.scheduler.matched_tokens(request, 0) is None


@pytest.mark.parametrize(
    ("groups", "may_be_partial"),
    [
        ((CacheGroup(block_size=4),), True),
        ((CacheGroup(block_size=4, window=8),), False),
        ((CacheGroup(block_size=4, local_chunk=8),), False),
        ((CacheGroup(block_size=4), CacheGroup(block_size=4)), False),
    ],
    ids=["full attention", "a window", "local attention", "two groups"],
)
def test_load_may_be_partial_only_if_the_engine_can_go_on_after_any_block(
    groups: tuple[CacheGroup, ...], may_be_partial: bool
) -> None:
    driver = SchedulerDriver(groups=groups)
    request = request_of(20)
    driver.scheduler.matched_tokens(request, 0)
    driver.lookup_client.answer(16)
    assert driver.scheduler.matched_tokens(request, 0) == 16
    driver.scheduler.allocated(request, TABLE * len(groups), 16)
    (command,) = driver.step({}).loads
    assert command.may_be_partial == may_be_partial


def test_lookups_carry_the_measured_rate_of_prefill(driver: SchedulerDriver, clock: Clock) -> None:
    prompt = request_of(4000, "prompt")
    for _ in range(12):
        driver.scheduler.matched_tokens(request_of(20, f"request-{clock.now}"), 0)
        driver.step({prompt: 100})
        clock.advance(0.1)
    assert driver.lookup_client.calls[0].prefill_rate is None
    assert driver.lookup_client.calls[-1].prefill_rate == pytest.approx(1000)


def test_time_without_requests_is_not_the_time_of_a_step(driver: SchedulerDriver, clock: Clock) -> None:
    for number in range(12):
        request = request_of(100, f"request-{number}")
        driver.step({request: 100})
        clock.advance(0.1)
        driver.scheduler.finished(request)
        clock.advance(1000)
    driver.scheduler.matched_tokens(request_of(20, "last"), 0)
    assert driver.lookup_client.calls[-1].prefill_rate == pytest.approx(1000)


def test_loads_leave_half_of_the_blocks_to_others() -> None:
    driver = SchedulerDriver(num_blocks=24)  # 12 may be loaded
    first, second = request_of(40, "first"), request_of(40, "second")
    driver.scheduler.matched_tokens(first, 0)
    driver.lookup_client.answer(40)
    assert driver.scheduler.matched_tokens(first, 0) == 40
    driver.scheduler.allocated(first, TABLE, 40)
    driver.scheduler.matched_tokens(second, 0)
    lookup = driver.lookup_client.answer(40)
    assert driver.scheduler.matched_tokens(second, 0) is None
    (command,) = driver.step({}).loads
    driver.mark_done(command.transfer_id)
    assert driver.scheduler.matched_tokens(second, 0) == 40
    load(driver, request_of(40, "third"), matched_tokens=40)
    assert driver.scheduler.matched_tokens(second, 0) is None
    lookup.deadline = driver.clock.now  # long enough
    assert driver.scheduler.matched_tokens(second, 0) == 0


def test_load_of_more_than_half_of_the_blocks_is_not_waited_for() -> None:
    driver = SchedulerDriver(num_blocks=16)
    request = request_of(40)
    driver.scheduler.matched_tokens(request, 0)
    driver.lookup_client.answer(40)
    assert driver.scheduler.matched_tokens(request, 0) == 0


def test_chunks_are_stored_as_they_become_whole(driver: SchedulerDriver) -> None:
    request = request_of(20)
    driver.tables["request"] = TABLE
    assert not driver.step({request: 6}).stores
    (first,) = driver.step({request: 6}).stores
    assert (first.start_token, ids_of(first)) == (0, ([10, 11],))
    assert first.chunk_hashes == [request.block_hashes[1]]
    (second,) = driver.step({request: 8}).stores
    assert (second.start_token, ids_of(second)) == (8, ([12, 13],))
    assert second.chunk_hashes == [request.block_hashes[1], request.block_hashes[3]]
    for token in range(4):  # decode
        assert driver.step({request: 1}).stores == [], token
        request.tokens.append(1000 + token)
    (third,) = driver.step({request: 1}).stores
    assert (third.start_token, ids_of(third)) == (16, ([14, 15],))
    assert driver.pool.kept == dict.fromkeys(range(10, 16), 1)


def test_tokens_that_are_not_known_yet_are_not_stored(driver: SchedulerDriver) -> None:
    request = request_of(14)
    driver.tables["request"] = TABLE
    (command,) = driver.step({request: 18}).stores  # 4 are drafts, or placeholders of tokens to be sampled
    assert command.chunk_hashes == [request.block_hashes[1]]


def test_what_the_depot_has_is_not_stored_again(driver: SchedulerDriver) -> None:
    request = request_of(20)
    load(driver, request, matched_tokens=8)
    driver.tables["request"] = TABLE
    (command,) = driver.step({request: 12}).stores
    assert command.start_token == 8


def test_what_only_the_engine_has_is_stored(driver: SchedulerDriver) -> None:
    request = request_of(30)
    driver.scheduler.matched_tokens(request, 16)
    driver.lookup_client.answer(8)
    driver.scheduler.matched_tokens(request, 16)
    driver.scheduler.allocated(request, TABLE, 0)
    request.num_computed_tokens = 16
    driver.tables["request"] = TABLE
    (command,) = driver.step({request: 8}).stores
    assert (command.start_token, ids_of(command)) == (8, ([12, 13, 14, 15],))


def test_store_that_failed_is_tried_again_with_the_next_chunk(driver: SchedulerDriver) -> None:
    request = request_of(20)
    driver.tables["request"] = TABLE
    (first,) = driver.step({request: 8}).stores
    driver.mark_done(first.transfer_id, failed=[first.transfer_id])
    (again,) = driver.step({request: 8}).stores
    assert (again.start_token, len(again.chunk_hashes)) == (0, 2)


def test_stores_keep_a_quarter_of_the_blocks_at_most() -> None:
    driver = SchedulerDriver(num_blocks=16)  # 4 may be kept: 2 chunks
    request = request_of(40)
    driver.tables["request"] = ([10, 1, 2, 3, 4, 5, 6, 7, 8, 9],)
    (first,) = driver.step({request: 30}).stores
    assert ids_of(first) == ([10, 1, 2, 3],)
    assert not driver.step({request: 1}).stores
    driver.mark_done(first.transfer_id)
    (second,) = driver.step({request: 1}).stores
    assert (second.start_token, ids_of(second)) == (16, ([4, 5, 6, 7],))


def test_session_ends_when_the_last_store_is_done(driver: SchedulerDriver) -> None:
    request = request_of(8)
    driver.tables["request"] = TABLE
    (command,) = driver.step({request: 8}).stores
    driver.scheduler.finished(request)
    assert not driver.lookup_client.ended_sessions
    assert driver.scheduler.needs_steps()
    driver.mark_done(command.transfer_id)
    assert driver.lookup_client.ended_sessions == ["request"]
    assert not driver.scheduler.needs_steps()
    assert not driver.pool.kept


def test_request_that_the_depot_never_heard_of_ends_no_session(driver: SchedulerDriver) -> None:
    request = request_of(4)
    driver.scheduler.matched_tokens(request, 0)
    driver.step({request: 4})
    driver.scheduler.finished(request)
    assert not driver.lookup_client.ended_sessions


def test_id_that_comes_again_is_another_request_and_session(driver: SchedulerDriver) -> None:
    first = request_of(8)
    driver.tables["request"] = TABLE
    (command,) = driver.step({first: 8}).stores
    driver.scheduler.finished(first)
    second = request_of(20)
    driver.scheduler.arrived(second)
    assert driver.scheduler.matched_tokens(second, 0) is None
    assert driver.lookup_client.calls[-1].session_id == "request#2"
    driver.mark_done(command.transfer_id)
    assert driver.lookup_client.ended_sessions == ["request"]  # and not that of its successor
    driver.lookup_client.answer(16)
    assert driver.scheduler.matched_tokens(second, 0) == 16


def test_id_that_comes_again_before_its_session_has_ended_is_another_session(driver: SchedulerDriver) -> None:
    for session_id in ("request", "request#2", "request#3"):
        request = request_of(20)
        driver.scheduler.arrived(request)
        driver.scheduler.matched_tokens(request, 0)
        assert driver.lookup_client.calls[-1].session_id == session_id
        driver.scheduler.finished(request)
    assert driver.lookup_client.ended_sessions == ["request", "request#2", "request#3"]


def test_preempted_request_finds_what_it_had_stored(driver: SchedulerDriver) -> None:
    request = request_of(20)
    driver.tables["request"] = TABLE
    (command,) = driver.step({request: 20}).stores
    request.tokens.append(7)
    request.num_computed_tokens = 0  # preempted: others may take its blocks, except those that are being stored
    assert driver.pool.kept == dict.fromkeys(range(10, 14), 1)
    assert driver.scheduler.matched_tokens(request, 0) is None
    driver.lookup_client.answer(16)
    assert driver.scheduler.matched_tokens(request, 0) == 16
    driver.mark_done(command.transfer_id)


def stored_of(driver: SchedulerDriver, request: Request, num_tokens: int) -> list[int]:
    """Return the first and the last token of each store in a step that computes this many tokens."""
    driver.tables["request"] = TABLE
    return [
        token
        for command in driver.step({request: num_tokens}).stores
        for token in (command.start_token, len(command.chunk_hashes) * CHUNK)
    ]


def test_chunks_that_were_evicted_before_blocks_were_free_are_stored_again(
    clock: Clock, driver: SchedulerDriver
) -> None:
    request = request_of(40)
    driver.scheduler.matched_tokens(request, 0)
    driver.lookup_client.answer(32)
    assert driver.scheduler.matched_tokens(request, 0) == 32  # and vLLM has no free blocks
    driver.step({})
    clock.advance(5.0)
    driver.step({})
    driver.scheduler.matched_tokens(request, 0)
    driver.lookup_client.answer(8)  # the others were evicted
    assert driver.scheduler.matched_tokens(request, 0) == 8
    driver.scheduler.allocated(request, TABLE, 0)  # another connector has more, or vLLM has no free blocks for a load
    assert stored_of(driver, request, 40) == [8, 40]


def test_chunks_that_were_evicted_while_the_request_was_preempted_are_stored_again(driver: SchedulerDriver) -> None:
    request = request_of(40)
    assert stored_of(driver, request, 40) == [0, 40]
    driver.mark_done(1)
    request.num_computed_tokens = 0  # preempted
    driver.scheduler.matched_tokens(request, 0)
    driver.lookup_client.answer(16)
    assert driver.scheduler.matched_tokens(request, 0) == 16
    driver.scheduler.allocated(request, TABLE, 16)
    driver.step({})
    driver.mark_done(2)
    request.num_computed_tokens = 16
    assert stored_of(driver, request, 24) == [16, 40]


def test_everything_is_stored_again_without_an_answer_of_the_depot(driver: SchedulerDriver) -> None:
    request = request_of(40)
    assert stored_of(driver, request, 40) == [0, 40]
    driver.mark_done(1)
    request.num_computed_tokens = 0  # preempted
    driver.lookup_client.paused = True
    assert driver.scheduler.matched_tokens(request, 0) == 0
    assert stored_of(driver, request, 40) == [0, 40]


def test_chunks_that_are_being_stored_are_not_stored_twice(driver: SchedulerDriver) -> None:
    request = request_of(32)
    assert stored_of(driver, request, 16) == [0, 16]
    assert stored_of(driver, request, 16) == [16, 32]
    request.num_computed_tokens = 0  # preempted; the depot has not got them yet
    driver.scheduler.matched_tokens(request, 0)
    driver.lookup_client.answer(0)
    assert driver.scheduler.matched_tokens(request, 0) == 0
    assert stored_of(driver, request, 32) == []
    driver.mark_done(2, failed=[2])
    request.tokens += range(8)
    assert stored_of(driver, request, 8) == [16, 40]


def test_request_that_has_loaded_may_load_again_after_a_preemption(driver: SchedulerDriver) -> None:
    request = request_of(20)
    transfer_id = load(driver, request)
    assert driver.scheduler.matched_tokens(request, 0) == 0
    driver.mark_done(transfer_id)
    request.num_computed_tokens = 0
    assert driver.scheduler.matched_tokens(request, 0) is None


def test_another_depot_is_given_everything_again(driver: SchedulerDriver) -> None:
    request = request_of(30)
    driver.tables["request"] = TABLE
    driver.step({request: 10})
    driver.scheduler.reported(WorkerReport(chunk_sizes={0: 0}))
    assert not driver.step({request: 10}).stores
    driver.scheduler.reported(WorkerReport(chunk_sizes={0: 2 * CHUNK}))
    (command,) = driver.step({request: 4}).stores
    assert (command.start_token, command.chunk_size) == (0, 2 * CHUNK)
    assert command.chunk_hashes == [request.block_hashes[3]]
    driver.scheduler.reported(WorkerReport(chunk_sizes={0: 0}))
    driver.scheduler.reported(WorkerReport(chunk_sizes={0: CHUNK}))
    (command,) = driver.step({request: 1}).stores
    assert (command.start_token, command.chunk_hashes) == (0, request.block_hashes[1:6:2])


def test_nothing_is_stored_of_requests_that_another_connector_loads_while_they_run(driver: SchedulerDriver) -> None:
    one, other = request_of(8, "one"), request_of(16, "other")
    driver.tables |= {"one": TABLE, "other": TABLE}
    driver.step({other: 4})
    commands = driver.step({one: 8, other: 8}, [("one", TABLE, True), ("other", TABLE, False)], may_store=False)
    assert [command.request_id for command in commands.stores] == ["other"]
    one.tokens += range(8)
    assert not driver.step({one: 8}).stores


def test_reset_engine_neither_finds_nor_stores_what_was_computed_before(driver: SchedulerDriver) -> None:
    old, new = request_of(16, "old", cache_salt="salt"), request_of(16, "new", cache_salt="salt")
    loading = request_of(20, "loading")
    transfer_id = load(driver, loading)
    driver.tables["old"] = TABLE
    driver.step({old: 4})
    driver.scheduler.matched_tokens(old, 0)
    driver.scheduler.reset()
    driver.lookup_client.answer(16)
    assert len(driver.lookup_client.leased) == 1  # of the load, which goes on
    driver.mark_done(transfer_id)
    assert not driver.lookup_client.leased
    assert driver.scheduler.matched_tokens(old, 0) == 0
    assert driver.scheduler.matched_tokens(loading, 0) == 0
    driver.tables["new"] = TABLE
    assert not driver.step({old: 12}).stores
    driver.scheduler.matched_tokens(new, 0)
    salt = driver.lookup_client.calls[-1].prefix.cache_salt
    assert "salt" in salt
    assert salt != "salt"
    assert [command.cache_salt for command in driver.step({new: 16}).stores] == [salt]


def test_what_builds_on_an_old_cache_of_vllms_is_not_stored(driver: SchedulerDriver) -> None:
    """vLLM refused the reset: what it still has was computed before."""
    driver.step({request_of(4, "before"): 4})
    driver.scheduler.reset()
    on_old, anew = request_of(16, "on old"), request_of(16, "anew")
    driver.tables |= {"on old": TABLE, "anew": TABLE}
    driver.scheduler.matched_tokens(on_old, 8)
    driver.scheduler.matched_tokens(anew, 0)
    on_old.num_computed_tokens = 8
    assert [command.request_id for command in driver.step({on_old: 8, anew: 16}).stores] == ["anew"]
    driver.scheduler.engine_cache_emptied()
    later = request_of(16, "later")
    driver.tables["later"] = TABLE
    driver.scheduler.matched_tokens(later, 8)
    later.num_computed_tokens = 8
    assert [command.request_id for command in driver.step({later: 8}).stores] == ["later"]


@pytest.mark.parametrize(("loads", "stores"), [(True, False), (False, True)])
def test_role_says_what_is_done(loads: bool, stores: bool) -> None:
    driver = SchedulerDriver(loads=loads, stores=stores)
    request = request_of(20)
    driver.tables["request"] = TABLE
    assert (driver.scheduler.matched_tokens(request, 0) is None) == loads
    assert bool(driver.step({request: 20}).stores) == stores


def test_groups_have_block_sizes_of_their_own() -> None:
    driver = SchedulerDriver(groups=(CacheGroup(block_size=4), CacheGroup(block_size=8)))
    request = request_of(20)
    driver.tables["request"] = ([5, 1, 2, 3, 4], [10, 11, 12])
    (command,) = driver.step({request: 20}).stores
    assert ids_of(command) == ([5, 1, 2, 3], [10, 11])
    assert driver.pool.kept == dict.fromkeys([5, 1, 2, 3, 10, 11], 1)


WINDOWS = (CacheGroup(block_size=4), CacheGroup(block_size=4, window=5))
HYBRID_TABLES = ([10, 11, 12, 13, 14], [0, 0, 22, 23, 24])


def test_store_leaves_out_the_blocks_that_the_window_has_left() -> None:
    driver = SchedulerDriver(groups=WINDOWS)
    request = request_of(20)
    driver.tables["request"] = ([10, 11], [20, 21])
    (first,) = driver.step({request: 8}).stores
    driver.mark_done(first.transfer_id)
    driver.tables["request"] = HYBRID_TABLES
    (second,) = driver.step({request: 12}).stores
    assert (second.start_token, second.tables) == (
        8,
        (GroupTable(absent_blocks=0, block_ids=[12, 13]), GroupTable(absent_blocks=0, block_ids=[22, 23])),
    )
    assert driver.pool.kept == dict.fromkeys([12, 13, 22, 23], 1)


def test_chunk_whose_window_is_gone_is_never_stored() -> None:
    driver = SchedulerDriver(groups=WINDOWS)
    request = request_of(20, num_computed_tokens=12)
    driver.tables["request"] = HYBRID_TABLES
    (command,) = driver.step({request: 8}).stores  # the first time: its first chunk was vLLM's own
    assert (command.start_token, len(command.chunk_hashes)) == (8, 2)
    request.tokens += range(12)
    driver.tables["request"] = ([*range(10, 18)], [0] * 6 + [26, 27])
    (later,) = driver.step({request: 12}).stores
    assert later.start_token == 24
    assert [table.absent_blocks for table in later.tables] == [0, 0]
    driver.mark_done(command.transfer_id, later.transfer_id, failed=[command.transfer_id])
    request.tokens += [7]
    (again,) = driver.step({request: 1}).stores
    assert again.start_token == 24  # the lost chunk stays lost


def test_load_fills_the_window_and_never_the_null_block() -> None:
    driver = SchedulerDriver(groups=WINDOWS)
    request = request_of(24)
    driver.scheduler.matched_tokens(request, 8)
    driver.lookup_client.answer(24)
    assert driver.scheduler.matched_tokens(request, 8) == 8  # not the whole prompt: see below
    driver.scheduler.allocated(request, ([10, 11, 12, 13], [0, 0, 22, 23]), 8)
    (command,) = driver.step({}).loads
    assert (command.num_tokens, command.skip_tokens) == (16, 8)
    assert command.tables == (
        GroupTable(absent_blocks=0, block_ids=[10, 11, 12, 13]),
        GroupTable(absent_blocks=2, block_ids=[22, 23]),
    )
    assert driver.pool.kept == dict.fromkeys([12, 13, 22, 23], 1)
    driver.mark_done(command.transfer_id)
    assert not driver.pool.kept


def test_last_chunk_of_a_whole_prompt_is_computed_where_a_window_would_lack_a_block() -> None:
    for groups, found in ((WINDOWS, 8), (WINDOWS[:1], 16)):
        driver = SchedulerDriver(groups=groups)
        request = request_of(16)
        driver.scheduler.matched_tokens(request, 0)
        driver.lookup_client.answer(16)
        assert driver.scheduler.matched_tokens(request, 0) == found


def test_load_counts_the_blocks_that_it_writes() -> None:
    one = CacheGroup(block_size=4, window=3)
    driver = SchedulerDriver(groups=(one,), num_blocks=4)  # two may be loading
    request = request_of(40)
    driver.scheduler.matched_tokens(request, 0)
    driver.lookup_client.answer(32)
    assert driver.scheduler.matched_tokens(request, 0) == 32


def test_blocks_of_full_attention_are_reported_from_any_group() -> None:
    driver = SchedulerDriver(reports=True, groups=WINDOWS[::-1])
    driver.step({request_of(8): 8}, [("request", ([0, 21], [10, 11]), True)])
    assert [each.block_ids for each in driver.reports.allocations] == [[10, 11]]
    driver = SchedulerDriver(reports=True, groups=WINDOWS[1:])
    driver.step({request_of(8): 8}, [("request", ([0, 21],), True)])
    assert not driver.reports.allocations


def test_table_that_is_too_short_is_not_stored(driver: SchedulerDriver) -> None:
    request = request_of(16)
    driver.tables["request"] = ([1, 2, 3],)
    assert not driver.step({request: 16}).stores
    assert not driver.pool.kept


def test_reports_have_reused_and_new_blocks_and_their_tokens() -> None:
    driver = SchedulerDriver(reports=True)
    request = request_of(14)
    driver.scheduler.matched_tokens(request, 4)
    request.num_computed_tokens = 4
    driver.step({request: 6}, [("request", ([5, 6, 7],), True)])
    driver.step({request: 4}, [("request", ([8],), False)])
    request.tokens += [50, 51, 52]
    driver.step({request: 1})
    driver.step({request: 1}, [("request", ([9],), False)])
    assert driver.reports.allocations == [
        BlockAllocation("request", [6, 7], [5], list(range(10)), resumed=False),
        BlockAllocation("request", [8], [], list(range(10, 14)), resumed=False),
        BlockAllocation("request", [9], [], [50, 51], resumed=False),
    ]
    request.num_computed_tokens = 0
    driver.step({request: 8}, [("request", ([1, 2],), True)])
    assert driver.reports.allocations[-1].resumed
    assert list(driver.reports.allocations[-1].token_ids) == list(range(8))
    driver.scheduler.finished(request)
    assert driver.reports.ended_sessions == ["request"]  # after all that was noted of it
    assert not driver.lookup_client.ended_sessions


def test_request_whose_beginning_was_not_reported_is_not_reported() -> None:
    driver = SchedulerDriver(reports=True)
    driver.scheduler.reported(WorkerReport(chunk_sizes={0: 0}))
    request = request_of(20)
    driver.step({request: 8}, [("request", ([1, 2],), True)])
    driver.scheduler.reported(WorkerReport(chunk_sizes={0: CHUNK}))
    driver.step({request: 8}, [("request", ([3, 4],), False)])
    assert not driver.reports.allocations


def test_prompt_of_embeddings_has_no_tokens_to_report() -> None:
    driver = SchedulerDriver(reports=True)
    driver.step({request_of(8, prompt_embeds=embeddings_of(8)): 8}, [("request", ([1, 2],), True)])
    assert not driver.reports.allocations


def test_first_request_waits_until_all_workers_have_reported_whether_they_are_attached() -> None:
    driver = SchedulerDriver(num_workers=2, is_heard=False)
    assert driver.scheduler.needs_steps()  # so that vLLM makes a step, in which they report
    request = request_of(20)
    assert driver.scheduler.matched_tokens(request, 0) is None
    driver.scheduler.reported(WorkerReport(chunk_sizes={0: CHUNK}))
    assert driver.scheduler.matched_tokens(request, 0) is None
    assert not driver.lookup_client.calls
    driver.scheduler.reported(WorkerReport(chunk_sizes={1: CHUNK}))
    assert not driver.scheduler.needs_steps()
    assert driver.scheduler.matched_tokens(request, 0) is None
    assert driver.lookup_client.calls


def test_wait_for_workers_that_never_report_has_a_bound() -> None:
    driver = SchedulerDriver(is_heard=False)
    request = request_of(20)
    assert driver.scheduler.matched_tokens(request, 0) is None
    driver.clock.advance(6)
    assert driver.scheduler.matched_tokens(request, 0) == 0
    assert not driver.scheduler.needs_steps()
