"""Events of the depot's work: matching pairs, ages and owners of chunks, ends of attachments."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import pytest

from kvdepot import token_prefix
from kvdepot.v1.observability_pb2 import BlockAllocationRecord
from telemetry.delivery import Subscriber
from telemetry.events import (
    BlocksAllocated,
    ChunksEvicted,
    ChunksReused,
    ChunksStored,
    Event,
    InstanceDetached,
    RetrieveStarted,
    SessionEnded,
    SessionStarted,
    StoreFinished,
    StoreStarted,
    TransferFinished,
    TransferStarted,
)
from tests.e2e.conftest import Open
from tests.e2e.engines import SLOW, SLOW_TOKENS, Engine, Site, prompt
from tests.fakes.waiting import eventually

CHUNK = 16
CHUNK_BYTES = 3_072
NUM_CHUNKS = 4
NUM_TOKENS = NUM_CHUNKS * CHUNK

E = TypeVar("E", bound=Event)
End = Callable[[Engine], Awaitable[None]]


async def close(engine: Engine) -> None:
    """End the attachment as the client does."""
    await engine.attachment.close()


class Seen(Subscriber):
    """Every event since it subscribed."""

    name = "seen"

    def __init__(self, site: Site) -> None:
        self._site = site
        self._events: list[Event] = []
        site.server.bus.subscribe(self)  # type: ignore[union-attr]

    def handle(self, batch: Sequence[Event]) -> None:
        self._events += batch

    async def of(self, event_type: type[E], at_least: int = 1) -> list[E]:
        """Return the events of a type, once there are so many."""

        def found() -> list[E]:
            return [event for event in self._events if isinstance(event, event_type)]

        await eventually(lambda: len(found()) >= at_least)
        return found()


async def store(engine: Engine, session_id: str, seed: int = 1, num_tokens: int = NUM_TOKENS) -> None:
    await engine.store(session_id, prompt(num_tokens, seed), engine.kv(num_tokens, seed))


async def lease(engine: Engine, session_id: str, seed: int = 1) -> Any:
    found = await engine.lookup(session_id, prompt(NUM_TOKENS, seed))
    assert found.matched_tokens == NUM_TOKENS
    return found.lease


async def test_work_is_a_pair_and_its_transfer_a_pair_of_its_own(depot: Site) -> None:
    seen, engine = Seen(depot), await depot.attach()
    await asyncio.gather(*(store(engine, "s", seed) for seed in range(3)))
    started, finished = await seen.of(StoreStarted, 3), await seen.of(StoreFinished, 3)
    moving, moved = await seen.of(TransferStarted, 3), await seen.of(TransferFinished, 3)
    stores = {event.operation_id for event in started}
    assert len(stores) == 3 and stores == {event.operation_id for event in finished}
    assert {event.parent_operation_id for event in moving} == {event.parent_operation_id for event in moved} == stores
    transfers = {event.operation_id for event in moving}
    assert len(transfers) == 3 and transfers == {event.operation_id for event in moved}
    assert not transfers & stores
    for event in moved:
        assert [step.name for step in event.steps] == ["wait", "copy"]
        for step in event.steps:
            assert 0 <= step.start_seconds <= step.start_seconds + step.duration_seconds <= event.duration_seconds


async def test_a_chunk_that_is_leased_again_reports_its_idle_time(depot: Site) -> None:
    seen, engine = Seen(depot), await depot.attach()
    await store(engine, "s")
    released = time.monotonic()
    first = await lease(engine, "s")
    await lease(engine, "s")  # while it is leased: no reuse
    longest = time.monotonic() - released
    (reuse,) = await seen.of(ChunksReused)
    assert len(reuse.reuse_gap_seconds) == NUM_CHUNKS
    assert all(0 <= gap <= longest for gap in reuse.reuse_gap_seconds)
    await engine.attachment.release_lease(first)
    await engine.end_session("s")
    await asyncio.sleep(0.02)  # it is unused for at least this long
    await lease(engine, "t")
    assert all((await seen.of(ChunksReused, 2))[1].reuse_gap_seconds >= 0.02)


async def test_an_evicted_chunk_reports_its_lifetime_its_idle_time_and_its_return(open_site: Open) -> None:
    depot = await open_site(l1_size=NUM_CHUNKS * 4096)
    seen, engine = Seen(depot), await depot.attach()
    begin = time.monotonic()
    await store(engine, "s", seed=1)
    await asyncio.sleep(0.02)
    granted = await lease(engine, "s", seed=1)
    await asyncio.sleep(0.02)
    await engine.attachment.release_lease(granted)
    await asyncio.sleep(0.02)
    await store(engine, "s", seed=2)
    longest = time.monotonic() - begin
    evicted = await seen.of(ChunksEvicted, 1)
    assert sum(len(event.keys) for event in evicted) == NUM_CHUNKS
    for event in evicted:
        assert (event.model_name, event.tier) == ("model", "l1")
        assert all(0.06 <= lifetime <= longest for lifetime in event.lifetime_seconds)
        # Not idle while it was leased.
        assert all(
            0.02 <= idle <= life - 0.04 for idle, life in zip(event.idle_seconds, event.lifetime_seconds, strict=True)
        )
    await store(engine, "s", seed=1)
    first, second, third = await seen.of(ChunksStored, 3)
    assert len(first.seconds_since_eviction) == len(second.seconds_since_eviction) == 0
    assert len(third.seconds_since_eviction) == NUM_CHUNKS
    assert all(0 <= seconds <= time.monotonic() - begin for seconds in third.seconds_since_eviction)


async def test_a_chunk_that_another_model_evicts_reports_its_own_model(open_site: Open) -> None:
    depot = await open_site(l1_size="16KiB", chunk_size=16)
    seen = Seen(depot)
    small = [await depot.attach(model_name=name) for name in ("a", "b")]
    for engine in small:
        await store(engine, "s", num_tokens=2 * CHUNK)
    for seed in range(2, 8):
        await store(small[0], "s", seed=seed)
    evicted = await seen.of(ChunksEvicted, 2)
    assert {event.model_name for event in evicted} == {"a", "b"}
    assert sum(len(event.keys) for event in evicted if event.model_name == "b") == 2


async def test_a_retrieve_names_the_stores_that_its_chunks_came_from(depot: Site) -> None:
    seen, engine = Seen(depot), await depot.attach()
    await store(engine, "s", num_tokens=NUM_TOKENS // 2)
    await store(engine, "t")
    stores = [event.operation_id for event in await seen.of(StoreStarted, 2)]
    granted = await lease(engine, "u")
    await engine.retrieve("u", granted, NUM_TOKENS)
    (retrieve,) = await seen.of(RetrieveStarted)
    assert (retrieve.num_tokens, retrieve.skip_tokens) == (NUM_TOKENS, 0)
    assert sorted(retrieve.stored_by) == sorted(stores)


@pytest.mark.parametrize(
    "end, has_work, reason",
    [(close, False, "closed"), (close, True, "closed"), (Engine.die, False, "closed"), (Engine.die, True, "lost")],
)
async def test_only_an_attachment_that_leaves_work_without_a_detach_was_lost(
    depot: Site, end: End, has_work: bool, reason: str
) -> None:
    seen, engine = Seen(depot), await depot.attach()
    await store(engine, "s")
    if not has_work:
        await engine.end_session("s")
    await end(engine)
    (detached,) = await seen.of(InstanceDetached)
    assert (detached.reason, detached.num_ranks_left) == (reason, 0)
    (ended,) = await seen.of(SessionEnded)
    assert ended.reason == ("instance detached" if has_work else "requested")


async def test_with_its_last_rank_an_instance_is_gone(depot: Site) -> None:
    seen = Seen(depot)
    ranks = [await depot.attach(instance_id="i", world_size=2, rank=rank) for rank in range(2)]
    for engine in ranks:
        await engine.attachment.close()
    assert [event.num_ranks_left for event in await seen.of(InstanceDetached, 2)] == [1, 0]


@pytest.mark.parametrize("end, reason", [(close, "closed"), (Engine.die, "lost")])
async def test_an_attachment_may_end_while_its_bytes_move(open_site: Open, end: End, reason: str) -> None:
    depot = await open_site(transfer_threads=1, l1_size="32MiB")
    seen, engine = Seen(depot), await depot.attach(*SLOW)
    blocks = engine.tables(SLOW_TOKENS)
    storing = engine.attachment.store("s", token_prefix(prompt(SLOW_TOKENS)), blocks)
    moving = await depot.begun(engine, storing)
    await end(engine)
    await asyncio.wait([moving])
    assert moving.exception() is not None
    assert [event.reason for event in await seen.of(InstanceDetached)] == [reason]
    assert (await seen.of(TransferFinished))[0].outcome == "cancelled"


async def test_a_report_begins_a_session_that_end_session_ends(depot: Site) -> None:
    seen = Seen(depot)
    record = BlockAllocationRecord(session_id="s", block_ids=[1, 2], token_ids=range(20))
    for _ in range(2):
        await depot.client.report_block_allocation("scheduler", "model", 16, [record])
    started = await seen.of(SessionStarted)
    assert [(event.instance_id, event.session_id, event.model_name) for event in started] == [
        ("scheduler", "s", "model")
    ]
    assert len(await seen.of(BlocksAllocated, 2)) == 2
    ended = await depot.client.end_session("scheduler", "s")
    assert ended.summary.model_name == "model"
    assert [event.session_id for event in await seen.of(SessionEnded)] == ["s"]
