"""Tests of the example engine, and of `open_scheduler` and `open_worker`. `test_engine` runs them."""

from __future__ import annotations

import os
import pickle
import random
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.demo.decoder import KvLayout
from examples.engine.depot import Depot
from examples.engine.engine import Engine
from examples.engine.request import Request
from kvdepot import DepotClient
from kvdepot.connector import (
    AttachedMemory,
    CacheGroup,
    CacheIdentity,
    ConfigError,
    ConnectorConfig,
    EngineFacts,
    open_scheduler,
    open_worker,
)
from tests.fakes.demo_model import random_decoder
from tests.fakes.depot import FakeDepot
from tests.fakes.waiting import wait_until

CHUNK = 64
NEW_TOKENS = 20
LIMIT_SECONDS = 90.0  # the machine may be busy
NOWHERE = "unix:/none/depot.sock"
Start = Callable[..., Engine]


def config_of(address: str, *, attach_timeout_seconds: float = 5.0, timeout_seconds: float = 10.0) -> ConnectorConfig:
    """Return settings whose timeouts are long enough for a busy machine."""
    return ConnectorConfig(
        address=address,
        attach_timeout_seconds=attach_timeout_seconds,
        lookup_timeout_seconds=timeout_seconds,
        retrieve_timeout_seconds=timeout_seconds,
        store_timeout_seconds=timeout_seconds,
    )


@pytest.fixture
def depot() -> Iterator[Depot]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, ExitStack() as until_end:
        depot = Depot(Path(folder), CHUNK, until_end)
        depot.start()
        yield depot


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(address)` starts an engine."""
    engines: list[Engine] = []

    def started(
        address: str,
        layout: KvLayout = KvLayout.SPLIT,
        block_size: int = 16,
        num_blocks: int = 64,
        **timeouts: float,
    ) -> Engine:
        config = config_of(address, **timeouts)
        decoder, _ = random_decoder(layout, block_size, num_blocks)
        engines.append(Engine(config, f"engine-{len(engines)}", decoder))
        return engines[-1]

    yield started
    for engine in engines:
        engine.close()


def prompt(seed: int, num_tokens: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(0, 256, num_tokens)]


def run(*engines: Engine, until: Callable[[], bool] | None = None) -> None:
    """Make steps until something is so: at the latest, until the engines have nothing to do."""

    def is_done() -> bool:
        for engine in engines:
            engine.step()
        return until() if until is not None else not any(engine.needs_steps for engine in engines)

    wait_until(is_done, within_seconds=LIMIT_SECONDS)


def assert_right(*requests: Request) -> None:
    """Each new token is the most likely one, or as likely, as one computes it without an engine."""
    decoder, block_ids = random_decoder()
    for request in requests:
        assert request.new_tokens
        start = 0
        for position in range(request.num_prompt_tokens, request.num_tokens):
            logits = decoder.prefill(request.all_token_ids[:position], start, block_ids, lambda _: None)
            start = position
            token = request.all_token_ids[position]
            assert logits[token] >= logits.max() - 1e-3, f"{request!r}: {token} at {position}"


def assert_nothing_is_left(depot: Depot, *engines: Engine) -> None:
    for engine in engines:
        assert engine.pool.num_free == engine.pool.num_blocks
    with DepotClient(depot.address) as client:
        wait_until(lambda: client.get_status().num_sessions == 0)
        wait_until(lambda: client.get_status().num_leases == 0)


def test_an_engine_loads_what_another_one_with_other_blocks_has_computed(depot: Depot, start: Start) -> None:
    one, two = start(depot.address), start(depot.address, KvLayout.PACKED, 32, 32)
    first = one.add("first", prompt(1, 200), NEW_TOKENS)
    run(one)
    second, longer = two.add("first", prompt(1, 200), NEW_TOKENS), two.add("longer", first.all_token_ids, NEW_TOKENS)
    run(two)
    assert (first.loaded_tokens, second.loaded_tokens, longer.loaded_tokens) == (0, 192, 192)
    assert second.new_tokens == first.new_tokens
    assert_right(first, second, longer)
    assert_nothing_is_left(depot, one, two)


def test_a_prompt_of_whole_chunks_is_loaded_and_still_gets_its_first_token(depot: Depot, start: Start) -> None:
    engine = start(depot.address)
    requests = []
    for number in range(2):
        requests.append(engine.add(f"request-{number}", prompt(2, 2 * CHUNK), NEW_TOKENS))
        run(engine)
    assert [request.loaded_tokens for request in requests] == [0, 2 * CHUNK]
    assert_right(*requests)


def test_a_request_that_fits_no_buffer_is_refused(start: Start) -> None:
    engine = start(NOWHERE, num_blocks=4)
    with pytest.raises(ValueError, match="more than the buffer holds"):
        engine.add("request", prompt(1, 64), 1)


def test_when_no_request_can_grow_the_last_one_gives_its_blocks_to_the_others(start: Start) -> None:
    engine = start(NOWHERE, num_blocks=21)  # all are taken by the prompts of three requests
    requests = [engine.add(f"request-{number}", prompt(number, 100), 60) for number in range(5)]
    run(engine)
    assert_right(*requests)
    assert engine.pool.num_free == 21


def test_an_engine_whose_depot_hangs_goes_on_and_gets_its_blocks_back_afterwards(depot: Depot, start: Start) -> None:
    engine = start(depot.address, timeout_seconds=1.0)
    first = engine.add("first", prompt(1, 200), NEW_TOKENS)
    run(engine)
    os.kill(depot.pid, signal.SIGSTOP)
    try:
        hung = [engine.add(f"hung-{number}", prompt(number, 200), NEW_TOKENS) for number in range(1, 3)]
        run(engine, until=lambda: all(request.is_finished for request in hung))
        assert engine.pool.num_free < engine.pool.num_blocks  # the depot may still read these
    finally:
        os.kill(depot.pid, signal.SIGCONT)
    run(engine)
    assert_right(first, *hung)
    assert_nothing_is_left(depot, engine)


@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_aborted_preempted_or_killed_all_tokens_are_right_and_nothing_is_left(
    depot: Depot, start: Start, seed: int
) -> None:
    chance = random.Random(seed)
    engines = [start(depot.address, num_blocks=40), start(depot.address, KvLayout.PACKED, 32, 20)]
    for number in range(3):
        engines[0].add(f"stored-{number}", prompt(number, 280), 1)
    run(*engines)
    live: list[tuple[Engine, Request]] = []
    finished: list[Request] = []

    def add(engine: Engine, number: int) -> None:
        """Add a request that begins with a part of a stored prompt."""
        tokens = prompt(chance.randrange(3), chance.randrange(20, 250)) + prompt(number, chance.randrange(30))
        live.append((engine, engine.add(f"request-{number}", tokens, NEW_TOKENS)))

    def is_loading_or_done() -> bool:
        return any(engine.num_loading for engine in engines) or all(request.is_finished for _, request in live)

    for number in range(150):
        action = chance.random()
        if action < 0.3 and len(live) < 12:
            add(chance.choice(engines), number)
        elif action < 0.35 and live:
            engine, aborted = live.pop(chance.randrange(len(live)))
            engine.abort(aborted)
        elif action < 0.4:
            run(*engines, until=is_loading_or_done)
        if number == 100:
            add(engines[0], number)
            run(*engines, until=is_loading_or_done)
            depot.kill()
        for engine in engines:
            engine.step()
        finished += [request for _, request in live if request.is_finished]
        live = [(engine, request) for engine, request in live if not request.is_finished]
    depot.start()
    run(*engines)
    finished += [request for _, request in live]
    assert len(finished) > 10
    run(*engines, until=lambda: all(engine.depot.is_attached for engine in engines))
    last = [engine.add("last", prompt(0, 200), NEW_TOKENS) for engine in engines]
    run(*engines)
    assert_right(*chance.sample(finished, 8), *last)
    assert_nothing_is_left(depot, *engines)


FACTS = EngineFacts(
    engine_id="pod-1",
    identity=CacheIdentity(model_name="model", model_revision="2", block_hash_seed="seed"),
    groups=(CacheGroup(block_size=4),),
    num_blocks=64,
    hash_block_size=4,
)


@pytest.fixture
def fake_depot() -> Iterator[FakeDepot]:
    depot = FakeDepot()
    depot.start()
    yield depot
    depot.stop()


class Blocks:
    """A block pool that only counts."""

    null_block_id = -1

    def __init__(self) -> None:
        self.held = 0

    def hold(self, block_ids: Any) -> None:
        self.held += len(block_ids)

    def release(self, block_ids: Any) -> None:
        self.held -= len(list(block_ids))


def memory() -> AttachedMemory:
    decoder, _ = random_decoder(block_size=4)
    return AttachedMemory(groups=(decoder.group,), regions=decoder.regions.regions)


def test_both_sides_say_who_the_engine_is_and_their_messages_can_be_pickled(fake_depot: FakeDepot) -> None:
    fake_depot.found.lease.expire_time.FromSeconds(int(time.time()) + 3600)
    config = config_of(fake_depot.address)
    blocks = Blocks()
    scheduler, worker = open_scheduler(config, FACTS, blocks), open_worker(config, FACTS)
    try:
        assert scheduler.needs_steps()
        worker.attach(memory)
        attached = fake_depot.last("AttachInstance")
        assert (attached.instance_id, attached.model_name, attached.model_revision) == ("pod-1", "model", "2")
        assert (attached.block_hash_seed, attached.rank, attached.world_size) == ("seed", 0, 1)
        assert not scheduler.is_attached  # no report has come yet
        assert scheduler.reported(pickle.loads(pickle.dumps(worker.take_report()))) == []
        assert scheduler.is_attached
        assert worker.take_report() is None

        request = Request("request", list(range(20)), 1, 4)
        scheduler.arrived(request)
        wait_until(lambda: scheduler.matched_tokens(request, 0) is not None)
        assert scheduler.matched_tokens(request, 0) == 16
        table: Any = (list(range(5)),)
        scheduler.allocated(request, table, 16)
        worker.load(pickle.loads(pickle.dumps(scheduler.step({}, {"request": table}.get))).loads)
        assert blocks.held == 4
        ended = []

        def has_ended() -> bool:
            if (report := worker.take_report()) is not None:
                ended.extend(scheduler.reported(report))
            return bool(ended) and not blocks.held

        wait_until(has_ended)
        assert ended == [("request", 16, False)]
        assert worker.results.take_loaded() == (set(), set())  # nothing that no one takes piles up
        scheduler.finished(request)
        wait_until(lambda: "EndSession" in [name for name, _ in list(fake_depot.requests)])
    finally:
        scheduler.close()
        worker.close()
    assert fake_depot.detached.wait(10)


def test_no_side_waits_for_a_depot_that_is_not_there() -> None:
    config = config_of(NOWHERE, attach_timeout_seconds=0.1)
    scheduler, worker = open_scheduler(config, FACTS, Blocks()), open_worker(config, FACTS)
    worker.attach(memory)
    report = worker.take_report()
    assert report is not None and report.chunk_sizes == {0: 0}
    scheduler.reported(report)
    assert not scheduler.is_attached
    assert scheduler.matched_tokens(Request("request", list(range(20)), 1, 4), 0) == 0
    scheduler.close()
    worker.close()


def test_an_engine_is_attached_once_each_of_its_workers_has_reported_that_it_is(fake_depot: FakeDepot) -> None:
    config, facts = config_of(fake_depot.address), replace(FACTS, num_workers=4, num_replicas=2)
    scheduler = open_scheduler(config, facts, Blocks())
    workers = [open_worker(config, facts, index) for index in range(4)]
    try:
        for worker in workers:
            assert not scheduler.is_attached
            worker.attach(memory)
            report = worker.take_report()
            assert report is not None
            scheduler.reported(report)
        assert scheduler.is_attached
    finally:
        scheduler.close()
        for worker in workers:
            worker.close()
    attached = [request for name, request in fake_depot.requests if name == "AttachInstance"]
    assert [(each.instance_id, each.rank, each.world_size) for each in attached] == [
        ("pod-1-replica0", 0, 2),
        ("pod-1-replica1", 0, 2),
        ("pod-1-replica0", 1, 2),
        ("pod-1-replica1", 1, 2),
    ]


@pytest.mark.parametrize("index", [-1, 1])
def test_a_worker_that_the_engine_does_not_have_is_refused(index: int) -> None:
    with pytest.raises(ConfigError, match=f"worker_index is {index}, and the engine has 1 workers"):
        open_worker(ConnectorConfig(), FACTS, index)


def test_memory_of_a_gpu_without_events_is_refused() -> None:
    worker = open_worker(ConnectorConfig(address=NOWHERE), FACTS)
    with pytest.raises(ValueError, match="record_event"):
        worker.attach(lambda: AttachedMemory(groups=(), regions=(), on_gpu=True))
