"""Long work sees what others do between its slices: it answers, leases and shows nothing that is removed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import service.depot.slices
from kernels.geometry import Group, Plane, PlaneKind
from service.depot.clear import ClearCounts, clearing
from service.depot.depot import Depot, DepotLimits
from service.depot.instances import Attachment
from service.depot.lookup import lookup
from service.depot.match import match_prefix
from service.depot.open_store import OpenStore
from service.depot.values import LookupRequest, StoreHeader
from service.errors import InstanceNotFound, LeaseExpired
from service.l1.keys import Prefix, RankIdentity
from service.l1.past import RemovalReason
from telemetry.kinds import RefusalReason

CHUNK_SIZE = 16
CHUNK_BYTES = 64
NUM_CHUNKS = 1_000
GROUP = Group(
    num_layers=1,
    num_blocks=1,
    block_size=CHUNK_SIZE,
    num_heads=1,
    head_bytes=4,
    dtype="uint8",
    block_stride_bytes=0,
    token_stride_bytes=4,
    head_stride_bytes=4,
    planes=(Plane(layer=0, kind=PlaneKind.KV, region=0, offset_bytes=0),),
)


def prefix(num_chunks: int, seed: int = 1) -> Prefix:
    tokens = np.random.default_rng(seed).integers(0, 1 << 31, num_chunks * CHUNK_SIZE, np.uint32)
    return Prefix(token_ids=tokens)


async def passes_until(condition: Callable[[], bool]) -> None:
    """Let the loop go round until something holds, and not once more."""
    async with asyncio.timeout(10.0):
        while not condition():  # noqa: ASYNC110 - each pass counts
            await asyncio.sleep(0)


class Site:
    """A depot with one engine, and transfers that move no bytes."""

    def __init__(self, num_slots: int) -> None:
        backend: Any = None
        limits = DepotLimits(chunk_size=CHUNK_SIZE)
        self.depot = Depot(memoryview(bytearray(num_slots * CHUNK_BYTES)), backend, limits, None)
        self.attachment = Attachment(
            instance_id="i",
            model_name="m",
            world_size=1,
            rank=0,
            groups=(GROUP,),
            identity=RankIdentity.of("m", 1, 0, (GROUP,), CHUNK_SIZE),
            chunk_bytes=CHUNK_BYTES,
            slot_bytes=CHUNK_BYTES,
            buffer=None,
            transfer_backend="inline",
        )
        self.depot.instances.add(self.attachment)

    def open_store(self, of: Prefix) -> OpenStore:
        header = StoreHeader(instance_id="i", rank=0, session_id="s", prefix=of, start_token=0)
        store = OpenStore(self.depot, self.attachment, header)
        store.open("1", self.depot.index.new_request())
        return store

    async def store(self, of: Prefix) -> OpenStore:
        store = self.open_store(of)
        for position in store.positions:
            store.plan({position: ()})
        await store.commit(self.depot.slices.pace())
        store.close()
        return store

    async def settled(self) -> None:
        """Wait until no chunk is protected, and check the invariants."""
        await passes_until(lambda: self.depot.index.num_protected == 0)
        self.depot.index.check()


@pytest.fixture
async def site() -> Site:
    return Site(NUM_CHUNKS)


@pytest.fixture
def shortest_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step of long work is a slice."""
    monkeypatch.setattr(service.depot.slices, "SLICE_SECONDS", 0.0)


@pytest.mark.usefixtures("shortest_slices")
async def test_a_lookup_does_not_match_what_is_cleared_while_it_goes_on(site: Site) -> None:
    of = prefix(NUM_CHUNKS)
    await site.store(of)
    await site.settled()
    looking = asyncio.create_task(match_prefix(site.depot, "i", of))
    await passes_until(lambda: site.depot.index.num_protected >= NUM_CHUNKS // 2)
    cleared = next(iter(site.depot.index.chunks()))  # the first of the prefix, which the lookup has passed
    assert cleared.num_pins
    site.depot.index.remove(cleared, RemovalReason.CLEARED)
    match = await looking
    assert match.num_chunks == 0
    match.unpin(site.depot)
    await site.settled()


@pytest.mark.usefixtures("shortest_slices")
async def test_a_lookup_that_is_cancelled_lets_go_of_what_it_passed(site: Site) -> None:
    of = prefix(NUM_CHUNKS)
    await site.store(of)
    await site.settled()
    looking = asyncio.create_task(match_prefix(site.depot, "i", of))
    await passes_until(lambda: site.depot.index.num_protected > 0)
    looking.cancel()
    await asyncio.wait([looking])
    assert looking.cancelled()
    await site.settled()


@pytest.mark.usefixtures("shortest_slices")
async def test_a_lookup_of_an_instance_that_goes_meanwhile_matches_nothing(site: Site) -> None:
    of = prefix(NUM_CHUNKS)
    await site.store(of)
    await site.settled()
    looking = asyncio.create_task(match_prefix(site.depot, "i", of))
    await passes_until(lambda: site.depot.index.num_protected > 0)
    site.depot.instances.remove(site.attachment)
    with pytest.raises(InstanceNotFound):
        await looking
    await site.settled()


async def test_what_a_store_reserves_after_a_clear_began_does_not_become_visible(site: Site) -> None:
    store = site.open_store(prefix(8))
    store.plan(dict.fromkeys(range(4), ()))
    counts = ClearCounts()
    steps = clearing(site.depot, list(site.depot.index.chunks()), "m", None, force=False, counts=counts)
    next(steps)
    store.plan(dict.fromkeys(range(4, 8), ()))
    for _ in steps:
        pass
    await store.commit(site.depot.slices.pace())
    store.close()
    await site.settled()
    assert site.depot.index.num_resident == 0
    assert counts.num_cleared_chunks == 4
    assert (await site.store(prefix(8))).answer.stored_tokens == 8 * CHUNK_SIZE
    assert site.depot.index.num_resident == 8


@pytest.mark.parametrize("ends_by", ["commit", "close"])
async def test_a_store_wakes_those_that_wait_for_its_chunks_before_it_waits_itself(site: Site, ends_by: str) -> None:
    writing, waiting = site.open_store(prefix(1)), site.open_store(prefix(1))
    assert writing.plan({0: ()}).reserved
    (pending,) = waiting.plan({0: ()}).pending.values()
    assert not pending.done.done()
    if ends_by == "commit":
        await writing.commit(site.depot.slices.pace())
        assert pending.done.done()
    writing.close()
    await passes_until(pending.done.done)
    assert bool(waiting.plan({0: ()}).resident) == (ends_by == "commit")
    waiting.close()
    await site.settled()


async def test_a_clear_of_another_model_leaves_a_store_alone(site: Site) -> None:
    store = site.open_store(prefix(8))
    for _ in clearing(site.depot, [], "another", None, force=True, counts=ClearCounts()):
        pass
    assert store.plan({0: ()}).reserved
    await store.commit(site.depot.slices.pace())
    store.close()
    assert site.depot.index.num_resident == 1


async def test_a_store_that_finds_no_slot_stops_searching(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = prefix(NUM_CHUNKS)
    await site.store(stored)
    in_use = await match_prefix(site.depot, "i", stored)
    index, num_asked = site.depot.index, 0
    reserve = index.reserve

    def counted(*arguments: Any) -> Any:
        nonlocal num_asked
        num_asked += 1
        return reserve(*arguments)

    monkeypatch.setattr(index, "reserve", counted)
    answer = (await site.store(prefix(500, seed=2))).answer
    assert num_asked == 1
    assert answer.refused_tokens == 500 * CHUNK_SIZE
    assert answer.refusal is not None
    assert answer.refusal.reason is RefusalReason.NO_SLOT
    in_use.unpin(site.depot)
    await site.settled()


async def test_an_overdue_lease_has_expired_even_before_the_timer_ends_it(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = prefix(4)
    await site.store(of)
    session = site.depot.lifetimes.session("i", "s", "m")
    lease = (await match_prefix(site.depot, "i", of)).lease(site.depot, session)
    assert site.depot.lifetimes.require_lease(lease.lease_id, "i", "s") is lease
    lease.expire_monotonic = time.monotonic()
    with pytest.raises(LeaseExpired):
        site.depot.lifetimes.require_lease(lease.lease_id, "i", "s")
    await site.settled()
    site.depot.lifetimes.stop()


async def test_a_session_with_very_many_leases_ends_and_with_it_all_of_them(site: Site) -> None:
    of = prefix(NUM_CHUNKS)
    await site.store(of)
    session = site.depot.lifetimes.session("i", "s", "m")
    leases = [(await match_prefix(site.depot, "i", of)).lease(site.depot, session) for _ in range(100)]
    await site.depot.lifetimes.end_session("i", "s")
    assert all(lease.end is not None for lease in leases)
    assert site.depot.index.num_protected == 0
    site.depot.index.check()
    site.depot.lifetimes.stop()


@pytest.mark.usefixtures("shortest_slices")
async def test_a_lookup_answers_before_it_has_counted_very_many_uses(site: Site) -> None:
    of = prefix(NUM_CHUNKS)
    await site.store(of)
    await site.settled()
    chunks = list(site.depot.index.chunks())
    request = LookupRequest(instance_id="i", session_id="s", prefix=of, computed_tokens=0, max_wait_seconds=0.0)
    answer = await lookup(site.depot, request)
    assert answer.matched_tokens == NUM_CHUNKS * CHUNK_SIZE
    assert {chunk.num_uses for chunk in chunks} == {1, 2}, "some are counted later"
    await passes_until(lambda: all(chunk.num_uses == 2 for chunk in chunks))
