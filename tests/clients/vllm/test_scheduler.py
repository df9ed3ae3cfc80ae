"""The scheduler's side: what is asked, loaded, stored and given back, whatever vLLM does with a request."""

from __future__ import annotations

import time

import pytest

from kvdepot.connector.allocations import Allocation
from kvdepot.connector.commands import LoadCommand, StoreCommand, Table, WorkerReport
from kvdepot.vllm.groups import CacheGroup
from tests.fakes.vllm import CHUNK, TABLE, Clock, Engine, Request, request_of

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def ids_of(order: LoadCommand | StoreCommand) -> tuple[list[int], ...]:
    """Of tables without absent blocks."""
    assert not any(table.absent_blocks for table in order.tables)
    return tuple(table.block_ids for table in order.tables)


@pytest.fixture
def engine() -> Engine:
    return Engine()


def test_lookup_is_never_waited_for(engine: Engine) -> None:
    request = request_of(20)
    assert engine.side.matched_tokens(request, 0) == (None, False)
    assert engine.side.matched_tokens(request, 0) == (None, False)
    assert len(engine.asks.questions) == 1
    engine.asks.answer(16)
    assert engine.side.matched_tokens(request, 0) == (16, True)
    assert engine.side.matched_tokens(request, 4) == (12, True)


def test_prefix_is_the_hash_of_each_chunks_last_block(engine: Engine) -> None:
    request = request_of(20, cache_salt="salt", trace_headers={"Traceparent": PARENT})
    engine.side.matched_tokens(request, 4)
    question = engine.asks.questions[0]
    assert list(question.prefix.block_hashes) == [request.block_hashes[1], request.block_hashes[3]]
    assert (question.prefix.hash_block_size, question.prefix.cache_salt) == (CHUNK, "salt")
    assert (question.session_id, question.computed_tokens, question.traceparent) == ("request", 4, PARENT)


@pytest.mark.parametrize(
    "request_",
    [request_of(7), request_of(20, skip_reading_prefix_cache=True)],
    ids=["shorter than a chunk", "may not read caches"],
)
def test_nothing_is_asked_for_what_can_not_be_loaded(engine: Engine, request_: Request) -> None:
    assert engine.side.matched_tokens(request_, 0) == (0, False)
    assert not engine.asks.questions


def test_nothing_is_asked_when_the_engine_has_it_all(engine: Engine) -> None:
    assert engine.side.matched_tokens(request_of(20), 16) == (0, False)
    assert not engine.asks.questions


def test_nothing_is_asked_of_a_depot_that_just_failed(engine: Engine) -> None:
    engine.asks.paused = True
    assert engine.side.matched_tokens(request_of(20), 0) == (0, False)
    assert not engine.asks.questions


@pytest.mark.parametrize("chunk_sizes", [{0: CHUNK}, {0: CHUNK, 1: 0}, {0: CHUNK, 1: 2 * CHUNK}, {0: 6, 1: 6}])
def test_engine_goes_without_a_depot_until_all_workers_are_attached_alike(chunk_sizes: dict[int, int]) -> None:
    engine = Engine(num_workers=2)
    engine.side.reported(WorkerReport(chunk_sizes={0: 0, 1: 0}))
    engine.side.reported(WorkerReport(chunk_sizes={**chunk_sizes}))
    request = request_of(20)
    assert engine.side.matched_tokens(request, 0) == (0, False)
    engine.tables["request"] = TABLE
    assert not engine.step({request: 20}).stores
    engine.side.reported(WorkerReport(chunk_sizes={0: CHUNK, 1: CHUNK}))
    assert engine.side.matched_tokens(request_of(20, "other"), 0) == (None, False)


def test_lease_is_given_back_when_nothing_is_loaded(engine: Engine) -> None:
    request = request_of(20)
    engine.side.matched_tokens(request, 0)
    engine.asks.answer(16)
    assert engine.asks.leased
    engine.side.allocated(request, TABLE, 0)  # another connector was chosen, or vLLM computes
    assert not engine.asks.leased


def test_lease_is_given_back_when_the_request_is_aborted(engine: Engine) -> None:
    request = request_of(20)
    engine.side.matched_tokens(request, 0)
    engine.asks.answer(16)
    engine.side.finished(request)
    assert not engine.asks.leased
    assert engine.asks.ended_sessions == ["request"]


def test_answer_that_comes_after_the_abort_leaves_no_lease(engine: Engine) -> None:
    request = request_of(20)
    engine.side.matched_tokens(request, 0)
    engine.side.finished(request)
    engine.asks.answer(16)
    assert not engine.asks.leased


def load(engine: Engine, request: Request, *, local_tokens: int = 0, matched_tokens: int = 16) -> int:
    """Lets a request load; returns the operation."""
    engine.side.matched_tokens(request, local_tokens)
    engine.asks.answer(matched_tokens)
    found, asynchronous = engine.side.matched_tokens(request, local_tokens)
    assert found == matched_tokens - local_tokens
    assert asynchronous
    engine.side.allocated(request, TABLE, found)
    request.num_computed_tokens = matched_tokens
    (order,) = engine.step({}).loads
    return order.operation_id


def test_load_writes_what_is_not_the_engines_own(engine: Engine) -> None:
    request = request_of(20)
    engine.side.matched_tokens(request, 4)
    engine.asks.answer(16)
    engine.side.matched_tokens(request, 4)
    engine.side.allocated(request, TABLE, 12)
    (order,) = engine.step({}).loads
    assert ids_of(order) == ([10, 11, 12, 13],)
    assert (order.num_tokens, order.skip_tokens, order.request_id) == (16, 4, "request")
    assert order.leases == ("lease-1",)
    assert engine.pool.kept == {11: 1, 12: 1, 13: 1}
    assert not engine.step({}).loads


def test_blocks_and_lease_are_kept_until_every_worker_has_settled() -> None:
    engine = Engine(num_workers=2)
    request = request_of(20)
    operation_id = load(engine, request)
    engine.side.allocated(request, TABLE, 0)  # vLLM's second call, when the load has ended
    engine.side.finished(request)
    engine.settle(operation_id)
    assert engine.pool.kept
    assert engine.asks.leased
    assert not engine.asks.ended_sessions
    engine.settle(operation_id)
    assert not engine.pool.kept
    assert not engine.asks.leased
    assert engine.asks.ended_sessions == ["request"]


@pytest.mark.parametrize("num_external_tokens", [4, 24], ids=["a part of a chunk", "more than was found"])
def test_load_of_other_tokens_than_were_found_fails_and_is_computed(engine: Engine, num_external_tokens: int) -> None:
    request = request_of(40)
    engine.side.matched_tokens(request, 0)
    engine.asks.answer(16)
    engine.side.matched_tokens(request, 0)
    engine.side.allocated(request, TABLE, num_external_tokens)
    (order,) = engine.step({}).loads
    assert order.leases == ()
    assert not engine.asks.leased


def test_load_fails_if_the_depot_went_away_before_it_began(engine: Engine) -> None:
    request = request_of(20)
    engine.side.matched_tokens(request, 0)
    engine.asks.answer(16)
    engine.side.matched_tokens(request, 0)
    engine.side.reported(WorkerReport(chunk_sizes={0: 0}))
    engine.side.allocated(request, TABLE, 16)
    (order,) = engine.step({}).loads
    assert order.leases == ()
    assert not engine.asks.leased


def test_load_that_failed_is_computed_and_stored_again(engine: Engine) -> None:
    request = request_of(20)
    operation_id = load(engine, request)
    engine.settle(operation_id, failed=[operation_id])
    request.num_computed_tokens = 0
    assert engine.side.matched_tokens(request, 0) == (0, False)
    assert len(engine.asks.questions) == 1
    engine.tables["request"] = TABLE
    (order,) = engine.step({request: 20}).stores
    assert (order.start_token, ids_of(order)) == (0, ([10, 11, 12, 13],))


def test_loads_leave_half_of_the_blocks_to_others() -> None:
    engine = Engine(num_blocks=24)  # 12 may be loaded
    first, second = request_of(40, "first"), request_of(40, "second")
    engine.side.matched_tokens(first, 0)
    engine.asks.answer(40)
    assert engine.side.matched_tokens(first, 0) == (40, True)
    engine.side.allocated(first, TABLE, 40)
    engine.side.matched_tokens(second, 0)
    lookup = engine.asks.answer(40)
    assert engine.side.matched_tokens(second, 0) == (None, False)
    (order,) = engine.step({}).loads
    engine.settle(order.operation_id)
    assert engine.side.matched_tokens(second, 0) == (40, True)
    load(engine, request_of(40, "third"), matched_tokens=40)
    assert engine.side.matched_tokens(second, 0) == (None, False)
    lookup.deadline = time.monotonic()  # long enough
    assert engine.side.matched_tokens(second, 0) == (0, False)


def test_load_of_more_than_half_of_the_blocks_is_not_waited_for() -> None:
    engine = Engine(num_blocks=16)
    request = request_of(40)
    engine.side.matched_tokens(request, 0)
    engine.asks.answer(40)
    assert engine.side.matched_tokens(request, 0) == (0, False)


def test_chunks_are_stored_as_they_become_whole(engine: Engine) -> None:
    request = request_of(20)
    engine.tables["request"] = TABLE
    assert not engine.step({request: 6}).stores
    (first,) = engine.step({request: 6}).stores
    assert (first.start_token, ids_of(first)) == (0, ([10, 11],))
    assert first.chunk_hashes == [request.block_hashes[1]]
    (second,) = engine.step({request: 8}).stores
    assert (second.start_token, ids_of(second)) == (8, ([12, 13],))
    assert second.chunk_hashes == [request.block_hashes[1], request.block_hashes[3]]
    for token in range(4):  # decode
        assert engine.step({request: 1}).stores == [], token
        request.tokens.append(1000 + token)
    (third,) = engine.step({request: 1}).stores
    assert (third.start_token, ids_of(third)) == (16, ([14, 15],))
    assert engine.pool.kept == dict.fromkeys(range(10, 16), 1)


def test_tokens_that_are_not_known_yet_are_not_stored(engine: Engine) -> None:
    request = request_of(14)
    engine.tables["request"] = TABLE
    (order,) = engine.step({request: 18}).stores  # 4 of them are drafts, or placeholders of what is being sampled
    assert order.chunk_hashes == [request.block_hashes[1]]


def test_what_the_depot_has_is_not_stored_again(engine: Engine) -> None:
    request = request_of(20)
    load(engine, request, matched_tokens=8)
    engine.tables["request"] = TABLE
    (order,) = engine.step({request: 12}).stores
    assert order.start_token == 8


def test_what_only_the_engine_has_is_stored(engine: Engine) -> None:
    request = request_of(30)
    engine.side.matched_tokens(request, 16)
    engine.asks.answer(8)
    engine.side.matched_tokens(request, 16)
    engine.side.allocated(request, TABLE, 0)
    request.num_computed_tokens = 16
    engine.tables["request"] = TABLE
    (order,) = engine.step({request: 8}).stores
    assert (order.start_token, ids_of(order)) == (8, ([12, 13, 14, 15],))


def test_store_that_failed_is_tried_again_with_the_next_chunk(engine: Engine) -> None:
    request = request_of(20)
    engine.tables["request"] = TABLE
    (first,) = engine.step({request: 8}).stores
    engine.settle(first.operation_id, failed=[first.operation_id])
    (again,) = engine.step({request: 8}).stores
    assert (again.start_token, len(again.chunk_hashes)) == (0, 2)


def test_stores_keep_a_quarter_of_the_blocks_at_most() -> None:
    engine = Engine(num_blocks=16)  # 4 may be kept: 2 chunks
    request = request_of(40)
    engine.tables["request"] = ([10, 1, 2, 3, 4, 5, 6, 7, 8, 9],)
    (first,) = engine.step({request: 30}).stores
    assert ids_of(first) == ([10, 1, 2, 3],)
    assert not engine.step({request: 1}).stores
    engine.settle(first.operation_id)
    (second,) = engine.step({request: 1}).stores
    assert (second.start_token, ids_of(second)) == (16, ([4, 5, 6, 7],))


def test_session_ends_when_the_last_store_has_settled(engine: Engine) -> None:
    request = request_of(8)
    engine.tables["request"] = TABLE
    (order,) = engine.step({request: 8}).stores
    engine.side.finished(request)
    assert not engine.asks.ended_sessions
    assert engine.side.needs_steps()
    engine.settle(order.operation_id)
    assert engine.asks.ended_sessions == ["request"]
    assert not engine.side.needs_steps()
    assert not engine.pool.kept


def test_request_that_the_depot_never_heard_of_ends_no_session(engine: Engine) -> None:
    request = request_of(4)
    engine.side.matched_tokens(request, 0)
    engine.step({request: 4})
    engine.side.finished(request)
    assert not engine.asks.ended_sessions


def test_id_that_comes_again_is_another_request_and_session(engine: Engine) -> None:
    first = request_of(8)
    engine.tables["request"] = TABLE
    (order,) = engine.step({first: 8}).stores
    engine.side.finished(first)
    second = request_of(20)
    engine.side.arrived(second)
    assert engine.side.matched_tokens(second, 0) == (None, False)
    assert engine.asks.questions[-1].session_id == "request#2"
    engine.settle(order.operation_id)
    assert engine.asks.ended_sessions == ["request"]  # and not that of its successor
    engine.asks.answer(16)
    assert engine.side.matched_tokens(second, 0) == (16, True)


def test_id_that_comes_again_before_the_end_is_told_is_another_session(engine: Engine) -> None:
    for session_id in ("request", "request#2", "request#3"):
        request = request_of(20)
        engine.side.arrived(request)
        engine.side.matched_tokens(request, 0)
        assert engine.asks.questions[-1].session_id == session_id
        engine.side.finished(request)
    assert engine.asks.ended_sessions == ["request", "request#2", "request#3"]


def test_preempted_request_finds_what_it_had_stored(engine: Engine) -> None:
    request = request_of(20)
    engine.tables["request"] = TABLE
    (order,) = engine.step({request: 20}).stores
    request.tokens.append(7)
    request.num_computed_tokens = 0  # preempted: its blocks are others' now, but for those that are being stored
    assert engine.pool.kept == dict.fromkeys(range(10, 14), 1)
    assert engine.side.matched_tokens(request, 0) == (None, False)
    engine.asks.answer(16)
    assert engine.side.matched_tokens(request, 0) == (16, True)
    engine.settle(order.operation_id)


def stored_of(engine: Engine, request: Request, num_tokens: int) -> list[int]:
    """What a step that computes so many tokens stores: the first token, and where it ends."""
    engine.tables["request"] = TABLE
    return [
        token
        for order in engine.step({request: num_tokens}).stores
        for token in (order.start_token, len(order.chunk_hashes) * CHUNK)
    ]


def test_chunks_that_were_evicted_before_there_was_room_are_stored_again(clock: Clock, engine: Engine) -> None:
    request = request_of(40)
    engine.side.matched_tokens(request, 0)
    engine.asks.answer(32)
    assert engine.side.matched_tokens(request, 0) == (32, True)  # and vLLM has no room
    engine.step({})
    clock.advance(5.0)
    engine.step({})
    engine.side.matched_tokens(request, 0)
    engine.asks.answer(8)  # the others were evicted
    assert engine.side.matched_tokens(request, 0) == (8, True)
    engine.side.allocated(request, TABLE, 0)  # another connector has more, or vLLM has no room for a load
    assert stored_of(engine, request, 40) == [8, 40]


def test_chunks_that_were_evicted_while_the_request_was_preempted_are_stored_again(engine: Engine) -> None:
    request = request_of(40)
    assert stored_of(engine, request, 40) == [0, 40]
    engine.settle(1)
    request.num_computed_tokens = 0  # preempted
    engine.side.matched_tokens(request, 0)
    engine.asks.answer(16)
    assert engine.side.matched_tokens(request, 0) == (16, True)
    engine.side.allocated(request, TABLE, 16)
    engine.step({})
    engine.settle(2)
    request.num_computed_tokens = 16
    assert stored_of(engine, request, 24) == [16, 40]


def test_everything_is_stored_again_where_no_answer_tells_what_there_is(engine: Engine) -> None:
    request = request_of(40)
    assert stored_of(engine, request, 40) == [0, 40]
    engine.settle(1)
    request.num_computed_tokens = 0  # preempted
    engine.asks.paused = True
    assert engine.side.matched_tokens(request, 0) == (0, False)
    assert stored_of(engine, request, 40) == [0, 40]


def test_chunks_that_are_being_stored_are_not_stored_twice(engine: Engine) -> None:
    request = request_of(32)
    assert stored_of(engine, request, 16) == [0, 16]
    assert stored_of(engine, request, 16) == [16, 32]
    request.num_computed_tokens = 0  # preempted; the depot has not got them yet
    engine.side.matched_tokens(request, 0)
    engine.asks.answer(0)
    assert engine.side.matched_tokens(request, 0) == (0, False)
    assert stored_of(engine, request, 32) == []
    engine.settle(2, failed=[2])
    request.tokens += range(8)
    assert stored_of(engine, request, 8) == [16, 40]


def test_request_that_has_loaded_may_load_again_after_a_preemption(engine: Engine) -> None:
    request = request_of(20)
    operation_id = load(engine, request)
    assert engine.side.matched_tokens(request, 0) == (0, False)
    engine.settle(operation_id)
    request.num_computed_tokens = 0
    assert engine.side.matched_tokens(request, 0) == (None, False)


def test_another_depot_is_given_everything_again(engine: Engine) -> None:
    request = request_of(30)
    engine.tables["request"] = TABLE
    engine.step({request: 10})
    engine.side.reported(WorkerReport(chunk_sizes={0: 0}))
    assert not engine.step({request: 10}).stores
    engine.side.reported(WorkerReport(chunk_sizes={0: 2 * CHUNK}))
    (order,) = engine.step({request: 4}).stores
    assert (order.start_token, order.chunk_size) == (0, 2 * CHUNK)
    assert order.chunk_hashes == [request.block_hashes[3]]
    engine.side.reported(WorkerReport(chunk_sizes={0: 0}))
    engine.side.reported(WorkerReport(chunk_sizes={0: CHUNK}))
    (order,) = engine.step({request: 1}).stores
    assert (order.start_token, order.chunk_hashes) == (0, request.block_hashes[1:6:2])


def test_nothing_is_stored_of_requests_that_another_connector_loads_while_they_run(engine: Engine) -> None:
    one, other = request_of(8, "one"), request_of(16, "other")
    engine.tables |= {"one": TABLE, "other": TABLE}
    engine.step({other: 4})
    orders = engine.step({one: 8, other: 8}, [("one", TABLE, True), ("other", TABLE, False)], may_store=False)
    assert [order.request_id for order in orders.stores] == ["other"]
    one.tokens += range(8)
    assert not engine.step({one: 8}).stores


def test_reset_engine_neither_finds_nor_stores_what_was_computed_before(engine: Engine) -> None:
    old, new = request_of(16, "old", cache_salt="salt"), request_of(16, "new", cache_salt="salt")
    loading = request_of(20, "loading")
    operation_id = load(engine, loading)
    engine.side.matched_tokens(old, 0)
    engine.side.reset()
    engine.asks.answer(16)
    assert len(engine.asks.leased) == 1  # of the load, which goes on
    engine.settle(operation_id)
    assert not engine.asks.leased
    assert engine.side.matched_tokens(old, 0) == (0, False)
    assert engine.side.matched_tokens(loading, 0) == (0, False)
    engine.tables |= {"old": TABLE, "new": TABLE}
    assert not engine.step({old: 16}).stores
    engine.side.matched_tokens(new, 0)
    salt = engine.asks.questions[-1].prefix.cache_salt
    assert salt.startswith("salt#")
    assert [order.cache_salt for order in engine.step({new: 16}).stores] == [salt]


def test_what_builds_on_an_old_cache_of_vllms_is_not_stored(engine: Engine) -> None:
    """vLLM refused the reset: what it still has was computed before."""
    engine.side.reset()
    on_old, anew = request_of(16, "on old"), request_of(16, "anew")
    engine.tables |= {"on old": TABLE, "anew": TABLE}
    engine.side.matched_tokens(on_old, 8)
    engine.side.matched_tokens(anew, 0)
    on_old.num_computed_tokens = 8
    assert [order.request_id for order in engine.step({on_old: 8, anew: 16}).stores] == ["anew"]
    engine.side.emptied()
    later = request_of(16, "later")
    engine.tables["later"] = TABLE
    engine.side.matched_tokens(later, 8)
    later.num_computed_tokens = 8
    assert [order.request_id for order in engine.step({later: 8}).stores] == ["later"]


@pytest.mark.parametrize(("loads", "stores"), [(True, False), (False, True)])
def test_role_says_what_is_done(loads: bool, stores: bool) -> None:
    engine = Engine(loads=loads, stores=stores)
    request = request_of(20)
    engine.tables["request"] = TABLE
    assert (engine.side.matched_tokens(request, 0)[0] is None) == loads
    assert bool(engine.step({request: 20}).stores) == stores


def test_groups_have_block_sizes_of_their_own() -> None:
    engine = Engine(groups=(CacheGroup(block_size=4), CacheGroup(block_size=8)))
    request = request_of(20)
    engine.tables["request"] = ([5, 1, 2, 3, 4], [10, 11, 12])
    (order,) = engine.step({request: 20}).stores
    assert ids_of(order) == ([5, 1, 2, 3], [10, 11])
    assert engine.pool.kept == dict.fromkeys([5, 1, 2, 3, 10, 11], 1)


WINDOWS = (CacheGroup(block_size=4), CacheGroup(block_size=4, window=5))
HYBRID_TABLES = ([10, 11, 12, 13, 14], [0, 0, 22, 23, 24])


def test_store_leaves_out_the_blocks_that_the_window_has_left() -> None:
    engine = Engine(groups=WINDOWS)
    request = request_of(20)
    engine.tables["request"] = ([10, 11], [20, 21])
    (first,) = engine.step({request: 8}).stores
    engine.settle(first.operation_id)
    engine.tables["request"] = HYBRID_TABLES
    (second,) = engine.step({request: 12}).stores
    assert (second.start_token, second.tables) == (
        8,
        (Table(absent_blocks=0, block_ids=[12, 13]), Table(absent_blocks=0, block_ids=[22, 23])),
    )
    assert engine.pool.kept == dict.fromkeys([12, 13, 22, 23], 1)


def test_chunk_whose_window_is_gone_is_never_stored() -> None:
    engine = Engine(groups=WINDOWS)
    request = request_of(20, num_computed_tokens=12)
    engine.tables["request"] = HYBRID_TABLES
    (order,) = engine.step({request: 8}).stores  # the first time: its first chunk was vLLM's own
    assert (order.start_token, len(order.chunk_hashes)) == (8, 2)
    request.tokens += range(12)
    engine.tables["request"] = ([*range(10, 18)], [0] * 6 + [26, 27])
    (later,) = engine.step({request: 12}).stores
    assert later.start_token == 24
    assert [table.absent_blocks for table in later.tables] == [0, 0]
    engine.settle(order.operation_id, later.operation_id, failed=[order.operation_id])
    request.tokens += [7]
    (again,) = engine.step({request: 1}).stores
    assert again.start_token == 24  # what is lost is lost


def test_load_fills_the_window_and_never_the_null_block() -> None:
    engine = Engine(groups=WINDOWS)
    request = request_of(24)
    engine.side.matched_tokens(request, 8)
    engine.asks.answer(24)
    assert engine.side.matched_tokens(request, 8) == (8, True)  # not the whole prompt: see below
    engine.side.allocated(request, ([10, 11, 12, 13], [0, 0, 22, 23]), 8)
    (order,) = engine.step({}).loads
    assert (order.num_tokens, order.skip_tokens) == (16, 8)
    assert order.tables == (
        Table(absent_blocks=0, block_ids=[10, 11, 12, 13]),
        Table(absent_blocks=2, block_ids=[22, 23]),
    )
    assert engine.pool.kept == dict.fromkeys([12, 13, 22, 23], 1)
    engine.settle(order.operation_id)
    assert not engine.pool.kept


def test_last_chunk_of_a_whole_prompt_is_computed_where_a_window_would_lack_a_block() -> None:
    for groups, found in ((WINDOWS, 8), (WINDOWS[:1], 16)):
        engine = Engine(groups=groups)
        request = request_of(16)
        engine.side.matched_tokens(request, 0)
        engine.asks.answer(16)
        assert engine.side.matched_tokens(request, 0) == (found, True)


def test_load_counts_the_blocks_that_it_writes() -> None:
    one = CacheGroup(block_size=4, window=3)
    engine = Engine(groups=(one,), num_blocks=4)  # two may be loading
    request = request_of(40)
    engine.side.matched_tokens(request, 0)
    engine.asks.answer(32)
    assert engine.side.matched_tokens(request, 0) == (32, True)


def test_blocks_of_full_attention_are_reported_whichever_group_they_are() -> None:
    engine = Engine(reports=True, groups=WINDOWS[::-1])
    engine.step({request_of(8): 8}, [("request", ([0, 21], [10, 11]), True)])
    assert [each.block_ids for each in engine.reports.noted] == [[10, 11]]
    engine = Engine(reports=True, groups=WINDOWS[1:])
    engine.step({request_of(8): 8}, [("request", ([0, 21],), True)])
    assert not engine.reports.noted


def test_table_that_is_too_short_is_not_stored(engine: Engine) -> None:
    request = request_of(16)
    engine.tables["request"] = ([1, 2, 3],)
    assert not engine.step({request: 16}).stores
    assert not engine.pool.kept


def test_reports_tell_reused_and_new_blocks_and_their_tokens() -> None:
    engine = Engine(reports=True)
    request = request_of(14)
    engine.side.matched_tokens(request, 4)
    request.num_computed_tokens = 4
    engine.step({request: 6}, [("request", ([5, 6, 7],), True)])
    engine.step({request: 4}, [("request", ([8],), False)])
    request.tokens += [50, 51, 52]
    engine.step({request: 1})
    engine.step({request: 1}, [("request", ([9],), False)])
    assert engine.reports.noted == [
        Allocation("request", [6, 7], [5], list(range(10)), resumed=False),
        Allocation("request", [8], [], list(range(10, 14)), resumed=False),
        Allocation("request", [9], [], [50, 51], resumed=False),
    ]
    request.num_computed_tokens = 0
    engine.step({request: 8}, [("request", ([1, 2],), True)])
    assert engine.reports.noted[-1].resumed
    assert list(engine.reports.noted[-1].token_ids) == list(range(8))
    engine.side.finished(request)
    assert engine.reports.ended == ["request"]  # after all that was noted of it
    assert not engine.asks.ended_sessions


def test_request_of_which_the_beginning_was_not_reported_is_not_reported() -> None:
    engine = Engine(reports=True)
    engine.side.reported(WorkerReport(chunk_sizes={0: 0}))
    request = request_of(20)
    engine.step({request: 8}, [("request", ([1, 2],), True)])
    engine.side.reported(WorkerReport(chunk_sizes={0: CHUNK}))
    engine.step({request: 8}, [("request", ([3, 4],), False)])
    assert not engine.reports.noted


def test_prompt_of_embeddings_has_no_tokens_to_report() -> None:
    engine = Engine(reports=True)
    engine.step({request_of(8, prompt_embeds=object()): 8}, [("request", ([1, 2],), True)])
    assert not engine.reports.noted


def test_first_request_waits_until_all_workers_have_reported_whether_they_are_attached() -> None:
    engine = Engine(num_workers=2, is_heard=False)
    assert engine.side.needs_steps()  # so that vLLM makes a step, in which they report
    request = request_of(20)
    assert engine.side.matched_tokens(request, 0) == (None, False)
    engine.side.reported(WorkerReport(chunk_sizes={0: CHUNK}))
    assert engine.side.matched_tokens(request, 0) == (None, False)
    assert not engine.asks.questions
    engine.side.reported(WorkerReport(chunk_sizes={1: CHUNK}))
    assert not engine.side.needs_steps()
    assert engine.side.matched_tokens(request, 0) == (None, False)
    assert engine.asks.questions


def test_wait_for_workers_that_never_report_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(is_heard=False)
    request = request_of(20)
    assert engine.side.matched_tokens(request, 0) == (None, False)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 6)
    assert engine.side.matched_tokens(request, 0) == (0, False)
    assert not engine.side.needs_steps()
