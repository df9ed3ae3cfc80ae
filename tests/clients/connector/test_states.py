"""Models that hold states: only certain states are stored, and a load ends exactly where the depot found one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvdepot.connector.cache_groups import CacheGroup
from kvdepot.connector.commands import BlockIds, GroupTable, StoreCommand
from kvdepot.connector.config import ConfigError
from kvdepot.connector.engine_facts import EngineFacts
from kvdepot.connector.identity import CacheIdentity
from tests.fakes.vllm import BLOCK, CHUNK, Request, SchedulerDriver, request_of

GROUPS = (CacheGroup(block_size=BLOCK, holds_state=True), CacheGroup(block_size=BLOCK))
NUM_BLOCKS = 10


def tables(*states: int) -> BlockIds:
    """Return a request's tables: the blocks that end at these tokens have states, numbered as their block."""
    return [40 + n if (n + 1) * BLOCK in states else 0 for n in range(NUM_BLOCKS)], list(range(10, 10 + NUM_BLOCKS))


@pytest.fixture
def driver() -> SchedulerDriver:
    return SchedulerDriver(groups=GROUPS)


def missed(driver: SchedulerDriver, request: Request) -> None:
    """Let the depot say that it has nothing of the request, if it is asked."""
    if driver.scheduler.matched_tokens(request, 0) is None:
        driver.lookup_client.answer(0)
        driver.scheduler.matched_tokens(request, 0)
    driver.scheduler.allocated(request, tables(), 0)


def step(driver: SchedulerDriver, request: Request, num_tokens: int, *states: int) -> StoreCommand | None:
    """Compute some tokens; afterwards the engine has these states."""
    driver.tables[request.request_id] = tables(*states)
    stores = driver.step({request: num_tokens}).stores
    return stores[0] if stores else None


def states_of(command: StoreCommand | None) -> GroupTable:
    assert command is not None
    return command.tables[0]


def test_a_step_that_ends_with_a_chunk_stores_its_last_state_only(driver: SchedulerDriver) -> None:
    request = request_of(40)
    missed(driver, request)
    assert states_of(step(driver, request, 3 * CHUNK, 12, 24)) == GroupTable(absent_blocks=5, block_ids=[45])


def test_a_step_that_ends_within_a_chunk_stores_no_state(driver: SchedulerDriver) -> None:
    request = request_of(40)
    missed(driver, request)
    command = step(driver, request, 2 * CHUNK + 3, 16, 20)
    assert states_of(command) == GroupTable(absent_blocks=4, block_ids=[])
    assert command is not None and command.tables[1].block_ids == [10, 11, 12, 13]


def test_the_state_is_stored_later_if_the_hash_comes_later(driver: SchedulerDriver) -> None:
    """A step that is scheduled ahead of the sampled token ends with a chunk whose hash is not known yet."""
    request = request_of(CHUNK - 1)
    missed(driver, request)
    assert step(driver, request, CHUNK - 1, 8) is None
    request.num_generated_tokens = 1
    assert step(driver, request, 1, 8) is None  # the token is on its way
    request.tokens.append(7)
    assert states_of(step(driver, request, 1, 8, 12)) == GroupTable(absent_blocks=1, block_ids=[41])


def test_a_state_that_the_engine_has_freed_is_not_stored_later(driver: SchedulerDriver) -> None:
    request = request_of(CHUNK - 1)
    missed(driver, request)
    step(driver, request, CHUNK - 1, 8)
    step(driver, request, 1, 8)
    request.tokens.append(7)
    assert states_of(step(driver, request, 1, 12)) == GroupTable(absent_blocks=2, block_ids=[])


def test_a_step_whose_tokens_may_be_drafts_stores_no_state() -> None:
    driver = SchedulerDriver(groups=GROUPS, steps_ahead=0)
    request = request_of(CHUNK - 2)
    missed(driver, request)
    step(driver, request, CHUNK - 3)
    assert step(driver, request, 3, 8) is None  # one token and two drafts
    request.tokens += [7, 8, 9]
    assert states_of(step(driver, request, 1, 8, 12)) == GroupTable(absent_blocks=2, block_ids=[])


def test_a_state_from_before_a_preemption_is_not_certain(driver: SchedulerDriver) -> None:
    request = request_of(CHUNK - 1)
    missed(driver, request)
    step(driver, request, CHUNK - 1, 8)
    step(driver, request, 1, 8)
    request.tokens += [7, 8]
    request.num_computed_tokens = 0
    missed(driver, request)
    assert states_of(step(driver, request, CHUNK + 1, 8, 12)) == GroupTable(absent_blocks=2, block_ids=[])


def test_a_lookup_names_no_chunk_that_could_not_end_a_load(driver: SchedulerDriver) -> None:
    request = request_of(2 * CHUNK)  # the engine computes the last token again
    driver.scheduler.matched_tokens(request, 0)
    assert len(driver.lookup_client.calls[0].prefix.block_hashes) == 1
    limited = request_of(5 * CHUNK, "limited", kv_transfer_params={"kvdepot.max_load_tokens": 2 * CHUNK})
    driver.scheduler.matched_tokens(limited, 0)
    assert len(driver.lookup_client.calls[1].prefix.block_hashes) == 2


def test_a_match_that_became_too_long_is_not_loaded_in_part(driver: SchedulerDriver) -> None:
    request = request_of(5 * CHUNK, kv_transfer_params={"kvdepot.max_load_tokens": 2 * CHUNK})
    driver.scheduler.matched_tokens(request, CHUNK)
    driver.lookup_client.answer(3 * CHUNK)
    assert driver.scheduler.matched_tokens(request, 0) == 0  # the engine's own chunk has left meanwhile
    driver.scheduler.allocated(request, tables(), 0)
    assert not driver.lookup_client.leased


def test_a_load_reads_all_kv_and_the_last_state(driver: SchedulerDriver) -> None:
    request = request_of(40)
    driver.scheduler.matched_tokens(request, 0)
    driver.lookup_client.answer(3 * CHUNK)
    assert driver.scheduler.matched_tokens(request, 0) == 3 * CHUNK
    driver.scheduler.allocated(request, tables(24), 3 * CHUNK)
    (load,) = driver.step({}).loads
    assert load.tables == (
        GroupTable(absent_blocks=5, block_ids=[45]),
        GroupTable(absent_blocks=0, block_ids=list(range(10, 16))),
    )
    assert load.leases and not load.may_be_partial


def test_a_load_that_the_engine_made_shorter_is_computed(driver: SchedulerDriver) -> None:
    request = request_of(40)
    driver.scheduler.matched_tokens(request, 0)
    driver.lookup_client.answer(3 * CHUNK)
    driver.scheduler.matched_tokens(request, 0)
    driver.scheduler.allocated(request, tables(16), 2 * CHUNK)
    (load,) = driver.step({}).loads
    assert not load.leases, "the load fails"
    assert not driver.lookup_client.leased


@given(st.lists(st.integers(1, 11), min_size=1, max_size=12), st.integers(0, 3))
def test_a_stored_state_is_always_that_of_its_chunks_end(steps: list[int], late: int) -> None:
    """The fake engine writes a state into the last block of each step. Hashes come some tokens late."""
    driver = SchedulerDriver(groups=GROUPS, steps_ahead=3)
    request = request_of(0)
    missed(driver, request)
    content: dict[int, int] = {}  # by block: after how many tokens it has the state
    computed = 0
    for count in steps:
        computed = min(computed + count, NUM_BLOCKS * BLOCK)
        last = (computed - 1) // BLOCK
        content = {block: tokens for block, tokens in content.items() if block >= last - 1} | {last: computed}
        request.tokens = list(range(max(0, computed - late)))
        ids = [40 + block if block in content else 0 for block in range(NUM_BLOCKS)]
        driver.tables["request"] = ids, list(range(10, 10 + NUM_BLOCKS))
        for store in driver.step({request: computed - request.num_computed_tokens}).stores:
            first = store.start_token // BLOCK + store.tables[0].absent_blocks
            for number, block_id in enumerate(store.tables[0].block_ids, start=first):
                assert (block_id, content[number]) == (40 + number, (number + 1) * BLOCK)
            driver.mark_done(store.transfer_id)


def test_workers_with_equal_kv_and_states_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_replicas is above 1"):
        EngineFacts(
            engine_id="engine",
            identity=CacheIdentity(model_name="model"),
            groups=GROUPS,
            num_blocks=8,
            hash_block_size=BLOCK,
            num_workers=2,
            num_replicas=2,
        )
