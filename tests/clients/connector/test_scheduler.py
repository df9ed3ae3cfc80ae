"""The connector's scheduler: what it looks up, loads, stores and releases in all that vLLM does with a request."""

from __future__ import annotations

import time

import pytest

from kvdepot.connector.block_allocations import BlockAllocation
from kvdepot.connector.cache_groups import CacheGroup
from kvdepot.connector.commands import GroupTable, LoadCommand, StoreCommand, WorkerReport
from tests.fakes.vllm import CHUNK, TABLE, Clock, Engine, Request, request_of

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def ids_of(command: LoadCommand | StoreCommand) -> tuple[list[int], ...]:
    """Return the block ids of tables without absent blocks."""
    assert not any(table.absent_blocks for table in command.tables)
    return tuple(table.block_ids for table in command.tables)


@pytest.fixture
def engine() -> Engine:
    return Engine()


def test_lookup_is_never_waited_for(engine: Engine) -> None:
    request = request_of(20)
    assert engine.scheduler.matched_tokens(request, 0) is None
    assert engine.scheduler.matched_tokens(request, 0) is None
    assert len(engine.lookup_client.calls) == 1
    engine.lookup_client.answer(16)
    assert engine.scheduler.matched_tokens(request, 0) == 16
    assert engine.scheduler.matched_tokens(request, 4) == 12


def test_prefix_is_the_hash_of_each_chunks_last_block(engine: Engine) -> None:
    request = request_of(20, cache_salt="salt", trace_headers={"Traceparent": PARENT})
    engine.scheduler.matched_tokens(request, 4)
    call = engine.lookup_client.calls[0]
    assert list(call.prefix.block_hashes) == [request.block_hashes[1], request.block_hashes[3]]
    assert (call.prefix.hash_block_size, call.prefix.cache_salt) == (CHUNK, "salt")
    assert (call.session_id, call.computed_tokens, call.traceparent) == ("request", 4, PARENT)


@pytest.mark.parametrize(
    "request_",
    [request_of(7), request_of(20, skip_reading_prefix_cache=True)],
    ids=["shorter than a chunk", "may not read caches"],
)
def test_what_can_not_be_loaded_is_not_looked_up(engine: Engine, request_: Request) -> None:
    assert engine.scheduler.matched_tokens(request_, 0) == 0
    assert not engine.lookup_client.calls


def test_what_the_engine_has_is_not_looked_up(engine: Engine) -> None:
    assert engine.scheduler.matched_tokens(request_of(20), 16) == 0
    assert not engine.lookup_client.calls


def test_depot_that_just_failed_gets_no_lookup(engine: Engine) -> None:
    engine.lookup_client.paused = True
    assert engine.scheduler.matched_tokens(request_of(20), 0) == 0
    assert not engine.lookup_client.calls


@pytest.mark.parametrize("chunk_sizes", [{0: CHUNK}, {0: CHUNK, 1: 0}, {0: CHUNK, 1: 2 * CHUNK}, {0: 6, 1: 6}])
def test_engine_goes_without_a_depot_until_all_workers_are_attached_alike(chunk_sizes: dict[int, int]) -> None:
    engine = Engine(num_workers=2)
    engine.scheduler.reported(WorkerReport(chunk_sizes={0: 0, 1: 0}))
    engine.scheduler.reported(WorkerReport(chunk_sizes={**chunk_sizes}))
    request = request_of(20)
    assert engine.scheduler.matched_tokens(request, 0) == 0
    engine.tables["request"] = TABLE
    assert not engine.step({request: 20}).stores
    engine.scheduler.reported(WorkerReport(chunk_sizes={0: CHUNK, 1: CHUNK}))
    assert engine.scheduler.matched_tokens(request_of(20, "other"), 0) is None


def test_lease_is_given_back_when_nothing_is_loaded(engine: Engine) -> None:
    request = request_of(20)
    engine.scheduler.matched_tokens(request, 0)
    engine.lookup_client.answer(16)
    assert engine.lookup_client.leased
    engine.scheduler.allocated(request, TABLE, 0)  # another connector was chosen, or vLLM computes
    assert not engine.lookup_client.leased


def test_lease_is_given_back_when_the_request_is_aborted(engine: Engine) -> None:
    request = request_of(20)
    engine.scheduler.matched_tokens(request, 0)
    engine.lookup_client.answer(16)
    engine.scheduler.finished(request)
    assert not engine.lookup_client.leased
    assert engine.lookup_client.ended_sessions == ["request"]


def test_answer_that_comes_after_the_abort_leaves_no_lease(engine: Engine) -> None:
    request = request_of(20)
    engine.scheduler.matched_tokens(request, 0)
    engine.scheduler.finished(request)
    engine.lookup_client.answer(16)
    assert not engine.lookup_client.leased


def load(engine: Engine, request: Request, *, local_tokens: int = 0, matched_tokens: int = 16) -> int:
    """Let a request load; return the transfer's id."""
    engine.scheduler.matched_tokens(request, local_tokens)
    engine.lookup_client.answer(matched_tokens)
    found = engine.scheduler.matched_tokens(request, local_tokens)
    assert found == matched_tokens - local_tokens
    engine.scheduler.allocated(request, TABLE, found)
    request.num_computed_tokens = matched_tokens
    (command,) = engine.step({}).loads
    return command.transfer_id


def test_load_writes_what_is_not_the_engines_own(engine: Engine) -> None:
    request = request_of(20)
    engine.scheduler.matched_tokens(request, 4)
    engine.lookup_client.answer(16)
    engine.scheduler.matched_tokens(request, 4)
    engine.scheduler.allocated(request, TABLE, 12)
    (command,) = engine.step({}).loads
    assert ids_of(command) == ([10, 11, 12, 13],)
    assert (command.num_tokens, command.skip_tokens, command.request_id) == (16, 4, "request")
    assert command.leases == ("lease-1",)
    assert engine.pool.kept == {11: 1, 12: 1, 13: 1}
    assert not engine.step({}).loads


def test_blocks_and_lease_are_kept_until_the_transfer_is_done_at_every_worker() -> None:
    engine = Engine(num_workers=2)
    request = request_of(20)
    transfer_id = load(engine, request)
    engine.scheduler.allocated(request, TABLE, 0)  # vLLM's second call, when the load has ended
    engine.scheduler.finished(request)
    engine.mark_done(transfer_id)
    assert engine.pool.kept
    assert engine.lookup_client.leased
    assert not engine.lookup_client.ended_sessions
    engine.mark_done(transfer_id)
    assert not engine.pool.kept
    assert not engine.lookup_client.leased
    assert engine.lookup_client.ended_sessions == ["request"]


def test_blocks_of_the_tail_are_released_first(engine: Engine) -> None:
    """vLLM reuses blocks in the order of their release, and the head of a prefix is worth the most."""
    engine.mark_done(load(engine, request_of(20)))
    assert engine.pool.freed_ids == [13, 12, 11, 10]


@pytest.mark.parametrize("num_external_tokens", [4, 24], ids=["a part of a chunk", "more than was found"])
def test_load_of_other_tokens_than_were_found_fails_and_is_computed(engine: Engine, num_external_tokens: int) -> None:
    request = request_of(40)
    engine.scheduler.matched_tokens(request, 0)
    engine.lookup_client.answer(16)
    engine.scheduler.matched_tokens(request, 0)
    engine.scheduler.allocated(request, TABLE, num_external_tokens)
    (command,) = engine.step({}).loads
    assert command.leases == ()
    assert not engine.lookup_client.leased


def test_load_fails_if_the_depot_went_away_before_it_began(engine: Engine) -> None:
    request = request_of(20)
    engine.scheduler.matched_tokens(request, 0)
    engine.lookup_client.answer(16)
    engine.scheduler.matched_tokens(request, 0)
    engine.scheduler.reported(WorkerReport(chunk_sizes={0: 0}))
    engine.scheduler.allocated(request, TABLE, 16)
    (command,) = engine.step({}).loads
    assert command.leases == ()
    assert not engine.lookup_client.leased


def test_load_that_failed_is_computed_and_stored_again(engine: Engine) -> None:
    request = request_of(20)
    transfer_id = load(engine, request)
    engine.mark_done(transfer_id, failed=[transfer_id])
    request.num_computed_tokens = 0
    assert engine.scheduler.matched_tokens(request, 0) == 0
    assert len(engine.lookup_client.calls) == 1
    engine.tables["request"] = TABLE
    (command,) = engine.step({request: 20}).stores
    assert (command.start_token, ids_of(command)) == (0, ([10, 11, 12, 13],))


def test_loads_leave_half_of_the_blocks_to_others() -> None:
    engine = Engine(num_blocks=24)  # 12 may be loaded
    first, second = request_of(40, "first"), request_of(40, "second")
    engine.scheduler.matched_tokens(first, 0)
    engine.lookup_client.answer(40)
    assert engine.scheduler.matched_tokens(first, 0) == 40
    engine.scheduler.allocated(first, TABLE, 40)
    engine.scheduler.matched_tokens(second, 0)
    lookup = engine.lookup_client.answer(40)
    assert engine.scheduler.matched_tokens(second, 0) is None
    (command,) = engine.step({}).loads
    engine.mark_done(command.transfer_id)
    assert engine.scheduler.matched_tokens(second, 0) == 40
    load(engine, request_of(40, "third"), matched_tokens=40)
    assert engine.scheduler.matched_tokens(second, 0) is None
    lookup.deadline = time.monotonic()  # long enough
    assert engine.scheduler.matched_tokens(second, 0) == 0


def test_load_of_more_than_half_of_the_blocks_is_not_waited_for() -> None:
    engine = Engine(num_blocks=16)
    request = request_of(40)
    engine.scheduler.matched_tokens(request, 0)
    engine.lookup_client.answer(40)
    assert engine.scheduler.matched_tokens(request, 0) == 0


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
    (command,) = engine.step({request: 18}).stores  # 4 are drafts, or placeholders of tokens to be sampled
    assert command.chunk_hashes == [request.block_hashes[1]]


def test_what_the_depot_has_is_not_stored_again(engine: Engine) -> None:
    request = request_of(20)
    load(engine, request, matched_tokens=8)
    engine.tables["request"] = TABLE
    (command,) = engine.step({request: 12}).stores
    assert command.start_token == 8


def test_what_only_the_engine_has_is_stored(engine: Engine) -> None:
    request = request_of(30)
    engine.scheduler.matched_tokens(request, 16)
    engine.lookup_client.answer(8)
    engine.scheduler.matched_tokens(request, 16)
    engine.scheduler.allocated(request, TABLE, 0)
    request.num_computed_tokens = 16
    engine.tables["request"] = TABLE
    (command,) = engine.step({request: 8}).stores
    assert (command.start_token, ids_of(command)) == (8, ([12, 13, 14, 15],))


def test_store_that_failed_is_tried_again_with_the_next_chunk(engine: Engine) -> None:
    request = request_of(20)
    engine.tables["request"] = TABLE
    (first,) = engine.step({request: 8}).stores
    engine.mark_done(first.transfer_id, failed=[first.transfer_id])
    (again,) = engine.step({request: 8}).stores
    assert (again.start_token, len(again.chunk_hashes)) == (0, 2)


def test_stores_keep_a_quarter_of_the_blocks_at_most() -> None:
    engine = Engine(num_blocks=16)  # 4 may be kept: 2 chunks
    request = request_of(40)
    engine.tables["request"] = ([10, 1, 2, 3, 4, 5, 6, 7, 8, 9],)
    (first,) = engine.step({request: 30}).stores
    assert ids_of(first) == ([10, 1, 2, 3],)
    assert not engine.step({request: 1}).stores
    engine.mark_done(first.transfer_id)
    (second,) = engine.step({request: 1}).stores
    assert (second.start_token, ids_of(second)) == (16, ([4, 5, 6, 7],))


def test_session_ends_when_the_last_store_is_done(engine: Engine) -> None:
    request = request_of(8)
    engine.tables["request"] = TABLE
    (command,) = engine.step({request: 8}).stores
    engine.scheduler.finished(request)
    assert not engine.lookup_client.ended_sessions
    assert engine.scheduler.needs_steps()
    engine.mark_done(command.transfer_id)
    assert engine.lookup_client.ended_sessions == ["request"]
    assert not engine.scheduler.needs_steps()
    assert not engine.pool.kept


def test_request_that_the_depot_never_heard_of_ends_no_session(engine: Engine) -> None:
    request = request_of(4)
    engine.scheduler.matched_tokens(request, 0)
    engine.step({request: 4})
    engine.scheduler.finished(request)
    assert not engine.lookup_client.ended_sessions


def test_id_that_comes_again_is_another_request_and_session(engine: Engine) -> None:
    first = request_of(8)
    engine.tables["request"] = TABLE
    (command,) = engine.step({first: 8}).stores
    engine.scheduler.finished(first)
    second = request_of(20)
    engine.scheduler.arrived(second)
    assert engine.scheduler.matched_tokens(second, 0) is None
    assert engine.lookup_client.calls[-1].session_id == "request#2"
    engine.mark_done(command.transfer_id)
    assert engine.lookup_client.ended_sessions == ["request"]  # and not that of its successor
    engine.lookup_client.answer(16)
    assert engine.scheduler.matched_tokens(second, 0) == 16


def test_id_that_comes_again_before_its_session_has_ended_is_another_session(engine: Engine) -> None:
    for session_id in ("request", "request#2", "request#3"):
        request = request_of(20)
        engine.scheduler.arrived(request)
        engine.scheduler.matched_tokens(request, 0)
        assert engine.lookup_client.calls[-1].session_id == session_id
        engine.scheduler.finished(request)
    assert engine.lookup_client.ended_sessions == ["request", "request#2", "request#3"]


def test_preempted_request_finds_what_it_had_stored(engine: Engine) -> None:
    request = request_of(20)
    engine.tables["request"] = TABLE
    (command,) = engine.step({request: 20}).stores
    request.tokens.append(7)
    request.num_computed_tokens = 0  # preempted: others may take its blocks, except those that are being stored
    assert engine.pool.kept == dict.fromkeys(range(10, 14), 1)
    assert engine.scheduler.matched_tokens(request, 0) is None
    engine.lookup_client.answer(16)
    assert engine.scheduler.matched_tokens(request, 0) == 16
    engine.mark_done(command.transfer_id)


def stored_of(engine: Engine, request: Request, num_tokens: int) -> list[int]:
    """Return the first and the last token of each store in a step that computes this many tokens."""
    engine.tables["request"] = TABLE
    return [
        token
        for command in engine.step({request: num_tokens}).stores
        for token in (command.start_token, len(command.chunk_hashes) * CHUNK)
    ]


def test_chunks_that_were_evicted_before_there_was_room_are_stored_again(clock: Clock, engine: Engine) -> None:
    request = request_of(40)
    engine.scheduler.matched_tokens(request, 0)
    engine.lookup_client.answer(32)
    assert engine.scheduler.matched_tokens(request, 0) == 32  # and vLLM has no room
    engine.step({})
    clock.advance(5.0)
    engine.step({})
    engine.scheduler.matched_tokens(request, 0)
    engine.lookup_client.answer(8)  # the others were evicted
    assert engine.scheduler.matched_tokens(request, 0) == 8
    engine.scheduler.allocated(request, TABLE, 0)  # another connector has more, or vLLM has no room for a load
    assert stored_of(engine, request, 40) == [8, 40]


def test_chunks_that_were_evicted_while_the_request_was_preempted_are_stored_again(engine: Engine) -> None:
    request = request_of(40)
    assert stored_of(engine, request, 40) == [0, 40]
    engine.mark_done(1)
    request.num_computed_tokens = 0  # preempted
    engine.scheduler.matched_tokens(request, 0)
    engine.lookup_client.answer(16)
    assert engine.scheduler.matched_tokens(request, 0) == 16
    engine.scheduler.allocated(request, TABLE, 16)
    engine.step({})
    engine.mark_done(2)
    request.num_computed_tokens = 16
    assert stored_of(engine, request, 24) == [16, 40]


def test_everything_is_stored_again_without_an_answer_of_the_depot(engine: Engine) -> None:
    request = request_of(40)
    assert stored_of(engine, request, 40) == [0, 40]
    engine.mark_done(1)
    request.num_computed_tokens = 0  # preempted
    engine.lookup_client.paused = True
    assert engine.scheduler.matched_tokens(request, 0) == 0
    assert stored_of(engine, request, 40) == [0, 40]


def test_chunks_that_are_being_stored_are_not_stored_twice(engine: Engine) -> None:
    request = request_of(32)
    assert stored_of(engine, request, 16) == [0, 16]
    assert stored_of(engine, request, 16) == [16, 32]
    request.num_computed_tokens = 0  # preempted; the depot has not got them yet
    engine.scheduler.matched_tokens(request, 0)
    engine.lookup_client.answer(0)
    assert engine.scheduler.matched_tokens(request, 0) == 0
    assert stored_of(engine, request, 32) == []
    engine.mark_done(2, failed=[2])
    request.tokens += range(8)
    assert stored_of(engine, request, 8) == [16, 40]


def test_request_that_has_loaded_may_load_again_after_a_preemption(engine: Engine) -> None:
    request = request_of(20)
    transfer_id = load(engine, request)
    assert engine.scheduler.matched_tokens(request, 0) == 0
    engine.mark_done(transfer_id)
    request.num_computed_tokens = 0
    assert engine.scheduler.matched_tokens(request, 0) is None


def test_another_depot_is_given_everything_again(engine: Engine) -> None:
    request = request_of(30)
    engine.tables["request"] = TABLE
    engine.step({request: 10})
    engine.scheduler.reported(WorkerReport(chunk_sizes={0: 0}))
    assert not engine.step({request: 10}).stores
    engine.scheduler.reported(WorkerReport(chunk_sizes={0: 2 * CHUNK}))
    (command,) = engine.step({request: 4}).stores
    assert (command.start_token, command.chunk_size) == (0, 2 * CHUNK)
    assert command.chunk_hashes == [request.block_hashes[3]]
    engine.scheduler.reported(WorkerReport(chunk_sizes={0: 0}))
    engine.scheduler.reported(WorkerReport(chunk_sizes={0: CHUNK}))
    (command,) = engine.step({request: 1}).stores
    assert (command.start_token, command.chunk_hashes) == (0, request.block_hashes[1:6:2])


def test_nothing_is_stored_of_requests_that_another_connector_loads_while_they_run(engine: Engine) -> None:
    one, other = request_of(8, "one"), request_of(16, "other")
    engine.tables |= {"one": TABLE, "other": TABLE}
    engine.step({other: 4})
    commands = engine.step({one: 8, other: 8}, [("one", TABLE, True), ("other", TABLE, False)], may_store=False)
    assert [command.request_id for command in commands.stores] == ["other"]
    one.tokens += range(8)
    assert not engine.step({one: 8}).stores


def test_reset_engine_neither_finds_nor_stores_what_was_computed_before(engine: Engine) -> None:
    old, new = request_of(16, "old", cache_salt="salt"), request_of(16, "new", cache_salt="salt")
    loading = request_of(20, "loading")
    transfer_id = load(engine, loading)
    engine.scheduler.matched_tokens(old, 0)
    engine.scheduler.reset()
    engine.lookup_client.answer(16)
    assert len(engine.lookup_client.leased) == 1  # of the load, which goes on
    engine.mark_done(transfer_id)
    assert not engine.lookup_client.leased
    assert engine.scheduler.matched_tokens(old, 0) == 0
    assert engine.scheduler.matched_tokens(loading, 0) == 0
    engine.tables |= {"old": TABLE, "new": TABLE}
    assert not engine.step({old: 16}).stores
    engine.scheduler.matched_tokens(new, 0)
    salt = engine.lookup_client.calls[-1].prefix.cache_salt
    assert salt.startswith("salt#")
    assert [command.cache_salt for command in engine.step({new: 16}).stores] == [salt]


def test_what_builds_on_an_old_cache_of_vllms_is_not_stored(engine: Engine) -> None:
    """vLLM refused the reset: what it still has was computed before."""
    engine.scheduler.reset()
    on_old, anew = request_of(16, "on old"), request_of(16, "anew")
    engine.tables |= {"on old": TABLE, "anew": TABLE}
    engine.scheduler.matched_tokens(on_old, 8)
    engine.scheduler.matched_tokens(anew, 0)
    on_old.num_computed_tokens = 8
    assert [command.request_id for command in engine.step({on_old: 8, anew: 16}).stores] == ["anew"]
    engine.scheduler.engine_cache_emptied()
    later = request_of(16, "later")
    engine.tables["later"] = TABLE
    engine.scheduler.matched_tokens(later, 8)
    later.num_computed_tokens = 8
    assert [command.request_id for command in engine.step({later: 8}).stores] == ["later"]


@pytest.mark.parametrize(("loads", "stores"), [(True, False), (False, True)])
def test_role_says_what_is_done(loads: bool, stores: bool) -> None:
    engine = Engine(loads=loads, stores=stores)
    request = request_of(20)
    engine.tables["request"] = TABLE
    assert (engine.scheduler.matched_tokens(request, 0) is None) == loads
    assert bool(engine.step({request: 20}).stores) == stores


def test_groups_have_block_sizes_of_their_own() -> None:
    engine = Engine(groups=(CacheGroup(block_size=4), CacheGroup(block_size=8)))
    request = request_of(20)
    engine.tables["request"] = ([5, 1, 2, 3, 4], [10, 11, 12])
    (command,) = engine.step({request: 20}).stores
    assert ids_of(command) == ([5, 1, 2, 3], [10, 11])
    assert engine.pool.kept == dict.fromkeys([5, 1, 2, 3, 10, 11], 1)


WINDOWS = (CacheGroup(block_size=4), CacheGroup(block_size=4, window=5))
HYBRID_TABLES = ([10, 11, 12, 13, 14], [0, 0, 22, 23, 24])


def test_store_leaves_out_the_blocks_that_the_window_has_left() -> None:
    engine = Engine(groups=WINDOWS)
    request = request_of(20)
    engine.tables["request"] = ([10, 11], [20, 21])
    (first,) = engine.step({request: 8}).stores
    engine.mark_done(first.transfer_id)
    engine.tables["request"] = HYBRID_TABLES
    (second,) = engine.step({request: 12}).stores
    assert (second.start_token, second.tables) == (
        8,
        (GroupTable(absent_blocks=0, block_ids=[12, 13]), GroupTable(absent_blocks=0, block_ids=[22, 23])),
    )
    assert engine.pool.kept == dict.fromkeys([12, 13, 22, 23], 1)


def test_chunk_whose_window_is_gone_is_never_stored() -> None:
    engine = Engine(groups=WINDOWS)
    request = request_of(20, num_computed_tokens=12)
    engine.tables["request"] = HYBRID_TABLES
    (command,) = engine.step({request: 8}).stores  # the first time: its first chunk was vLLM's own
    assert (command.start_token, len(command.chunk_hashes)) == (8, 2)
    request.tokens += range(12)
    engine.tables["request"] = ([*range(10, 18)], [0] * 6 + [26, 27])
    (later,) = engine.step({request: 12}).stores
    assert later.start_token == 24
    assert [table.absent_blocks for table in later.tables] == [0, 0]
    engine.mark_done(command.transfer_id, later.transfer_id, failed=[command.transfer_id])
    request.tokens += [7]
    (again,) = engine.step({request: 1}).stores
    assert again.start_token == 24  # the lost chunk stays lost


def test_load_fills_the_window_and_never_the_null_block() -> None:
    engine = Engine(groups=WINDOWS)
    request = request_of(24)
    engine.scheduler.matched_tokens(request, 8)
    engine.lookup_client.answer(24)
    assert engine.scheduler.matched_tokens(request, 8) == 8  # not the whole prompt: see below
    engine.scheduler.allocated(request, ([10, 11, 12, 13], [0, 0, 22, 23]), 8)
    (command,) = engine.step({}).loads
    assert (command.num_tokens, command.skip_tokens) == (16, 8)
    assert command.tables == (
        GroupTable(absent_blocks=0, block_ids=[10, 11, 12, 13]),
        GroupTable(absent_blocks=2, block_ids=[22, 23]),
    )
    assert engine.pool.kept == dict.fromkeys([12, 13, 22, 23], 1)
    engine.mark_done(command.transfer_id)
    assert not engine.pool.kept


def test_last_chunk_of_a_whole_prompt_is_computed_where_a_window_would_lack_a_block() -> None:
    for groups, found in ((WINDOWS, 8), (WINDOWS[:1], 16)):
        engine = Engine(groups=groups)
        request = request_of(16)
        engine.scheduler.matched_tokens(request, 0)
        engine.lookup_client.answer(16)
        assert engine.scheduler.matched_tokens(request, 0) == found


def test_load_counts_the_blocks_that_it_writes() -> None:
    one = CacheGroup(block_size=4, window=3)
    engine = Engine(groups=(one,), num_blocks=4)  # two may be loading
    request = request_of(40)
    engine.scheduler.matched_tokens(request, 0)
    engine.lookup_client.answer(32)
    assert engine.scheduler.matched_tokens(request, 0) == 32


def test_blocks_of_full_attention_are_reported_whichever_group_they_are() -> None:
    engine = Engine(reports=True, groups=WINDOWS[::-1])
    engine.step({request_of(8): 8}, [("request", ([0, 21], [10, 11]), True)])
    assert [each.block_ids for each in engine.reports.allocations] == [[10, 11]]
    engine = Engine(reports=True, groups=WINDOWS[1:])
    engine.step({request_of(8): 8}, [("request", ([0, 21],), True)])
    assert not engine.reports.allocations


def test_table_that_is_too_short_is_not_stored(engine: Engine) -> None:
    request = request_of(16)
    engine.tables["request"] = ([1, 2, 3],)
    assert not engine.step({request: 16}).stores
    assert not engine.pool.kept


def test_reports_have_reused_and_new_blocks_and_their_tokens() -> None:
    engine = Engine(reports=True)
    request = request_of(14)
    engine.scheduler.matched_tokens(request, 4)
    request.num_computed_tokens = 4
    engine.step({request: 6}, [("request", ([5, 6, 7],), True)])
    engine.step({request: 4}, [("request", ([8],), False)])
    request.tokens += [50, 51, 52]
    engine.step({request: 1})
    engine.step({request: 1}, [("request", ([9],), False)])
    assert engine.reports.allocations == [
        BlockAllocation("request", [6, 7], [5], list(range(10)), resumed=False),
        BlockAllocation("request", [8], [], list(range(10, 14)), resumed=False),
        BlockAllocation("request", [9], [], [50, 51], resumed=False),
    ]
    request.num_computed_tokens = 0
    engine.step({request: 8}, [("request", ([1, 2],), True)])
    assert engine.reports.allocations[-1].resumed
    assert list(engine.reports.allocations[-1].token_ids) == list(range(8))
    engine.scheduler.finished(request)
    assert engine.reports.ended_sessions == ["request"]  # after all that was noted of it
    assert not engine.lookup_client.ended_sessions


def test_request_of_which_the_beginning_was_not_reported_is_not_reported() -> None:
    engine = Engine(reports=True)
    engine.scheduler.reported(WorkerReport(chunk_sizes={0: 0}))
    request = request_of(20)
    engine.step({request: 8}, [("request", ([1, 2],), True)])
    engine.scheduler.reported(WorkerReport(chunk_sizes={0: CHUNK}))
    engine.step({request: 8}, [("request", ([3, 4],), False)])
    assert not engine.reports.allocations


def test_prompt_of_embeddings_has_no_tokens_to_report() -> None:
    engine = Engine(reports=True)
    engine.step({request_of(8, prompt_embeds=object()): 8}, [("request", ([1, 2],), True)])
    assert not engine.reports.allocations


def test_first_request_waits_until_all_workers_have_reported_whether_they_are_attached() -> None:
    engine = Engine(num_workers=2, is_heard=False)
    assert engine.scheduler.needs_steps()  # so that vLLM makes a step, in which they report
    request = request_of(20)
    assert engine.scheduler.matched_tokens(request, 0) is None
    engine.scheduler.reported(WorkerReport(chunk_sizes={0: CHUNK}))
    assert engine.scheduler.matched_tokens(request, 0) is None
    assert not engine.lookup_client.calls
    engine.scheduler.reported(WorkerReport(chunk_sizes={1: CHUNK}))
    assert not engine.scheduler.needs_steps()
    assert engine.scheduler.matched_tokens(request, 0) is None
    assert engine.lookup_client.calls


def test_wait_for_workers_that_never_report_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(is_heard=False)
    request = request_of(20)
    assert engine.scheduler.matched_tokens(request, 0) is None
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 6)
    assert engine.scheduler.matched_tokens(request, 0) == 0
    assert not engine.scheduler.needs_steps()
