"""KV events of a real depot over real sockets: what a router believes is what the depot holds."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from kvdepot import AsyncDepotClient, block_table, hash_prefix, token_prefix
from kvdepot.v1.cache_pb2 import StoreInlineHeader, StoreInlineRequest
from service.l1.past import RemovalReason
from service.load_settings import BadSettings
from service.observability.kv_event_gauges import read_kv_events
from telemetry.kinds import Hop
from telemetry.kv_events.topics import Topics
from telemetry.metrics.kv_event_definitions import CHUNKS, EVENTS, KV_EVENT_METRICS
from tests.e2e.conftest import Open
from tests.e2e.engines import SMALL, Site, attach, prompt, refused
from tests.e2e.kv_events.reading import BLOCK, CHUNK, events_of, opened, reader_of
from tests.e2e.real_tiers import available
from tests.e2e.restarts import depot_process, engines
from tests.e2e.servers import running_server
from tests.fakes.kv_event_reader import Reader
from tests.fakes.waiting import eventually

SLOT_BYTES = 4_096


def free_address() -> str:
    """Return an address that no process uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


async def test_a_reader_learns_of_blocks_with_their_tokens_and_of_their_end(open_site: Open) -> None:
    site = await opened(open_site)
    engine = await site.attach(SMALL, instance_id="engine")
    tokens = prompt(3 * CHUNK)
    async with reader_of(site, topic=b"kv@pod-1@") as reader:
        await engine.store("s", tokens, engine.kv(3 * CHUNK, seed=1))
        await reader.until(lambda: len(reader.held("CPU_PINNED")) == 3 * CHUNK // BLOCK)
        assert set(reader.topics) == {b"kv@pod-1@model"}
        blocks = [block for block, parent in reader.parents.items() if parent is None]
        while len(blocks) < 3 * CHUNK // BLOCK:
            blocks += [block for block, parent in reader.parents.items() if parent == blocks[-1]]
        assert [token for block in blocks for token in reader.tokens[block]] == tokens
        await site.client.clear_cache()
        await reader.until(lambda: not reader.held("CPU_PINNED"))


async def at_rest(site: Site, reader: Reader) -> None:
    """Wait until the depot has told everything, and the reader has taken it."""
    publisher = events_of(site).publisher

    async def has_all() -> bool:
        while await reader.take(0.01):
            pass
        assert site.server.bus is not None
        is_told = site.server.bus.stats().depth == 0 and publisher.is_up_to_date
        return is_told and reader.last == publisher.batches.next_number - 1

    await eventually(has_all)


def in_l1(site: Site) -> set[int]:
    """Return the numbers of the last blocks of all chunks in L1, which are those of their keys."""
    chunks = site.depot.index.chunks()
    return {int.from_bytes(chunk.key[-8:], "big") for chunk in chunks if chunk.pending_write is None}


def last_blocks(reader: Reader, medium: str = "CPU_PINNED") -> set[int]:
    """Return the blocks in a medium that end a chunk: every fourth one of a prompt."""
    held = reader.held(medium)
    return {block for block in held if depth_of(reader, block) % (CHUNK // BLOCK) == CHUNK // BLOCK - 1}


def depth_of(reader: Reader, block: int) -> int:
    depth = 0
    while (parent := reader.parents[block]) is not None:
        block, depth = parent, depth + 1
    return depth


async def test_a_reader_knows_what_a_full_l1_has_evicted(open_site: Open) -> None:
    site = await opened(open_site, l1_size=6 * SLOT_BYTES)
    engine = await site.attach(SMALL)
    async with reader_of(site) as reader:
        for seed in range(5):
            await engine.store("s", prompt(3 * CHUNK, seed), engine.kv(3 * CHUNK, seed))
        await at_rest(site, reader)
        assert 0 < len(in_l1(site)) <= 6
        assert last_blocks(reader) == in_l1(site)
        assert len(reader.held("CPU_PINNED")) == len(in_l1(site)) * CHUNK // BLOCK


async def test_a_reader_that_starts_late_is_told_all_without_asking(open_site: Open) -> None:
    site = await opened(open_site)
    engine = await site.attach(SMALL)
    await engine.store("s", prompt(3 * CHUNK), engine.kv(3 * CHUNK, seed=1))
    await eventually(lambda: events_of(site).publisher.batches.next_number > 0)
    async with Reader(events_of(site).sockets.address) as late:
        await late.until(lambda: len(late.held("CPU_PINNED")) == 3 * CHUNK // BLOCK)
        assert late.num_unknown_parents == 0
    assert events_of(site).publisher.num_retold["reader"] >= 1


async def test_a_reader_replays_what_it_lost_and_is_told_all_if_that_is_gone(open_site: Open) -> None:
    site = await opened(open_site, kv_events_replay_size="64KiB")
    engine = await site.attach(SMALL)
    async with reader_of(site) as reader:
        await engine.store("s", prompt(CHUNK), engine.kv(CHUNK, seed=1))
        await reader.until(lambda: len(reader.held("CPU_PINNED")) == CHUNK // BLOCK)
        await engine.store("s", prompt(CHUNK, 2), engine.kv(CHUNK, seed=2))
        await eventually(lambda: events_of(site).publisher.batches.next_number > reader.last + 1)
        missed = await reader.replay(reader.last + 1)
        assert [number for _, number, _ in missed] == [reader.last + 1]
        for batch in missed:
            reader.take_batch(*batch)
        assert last_blocks(reader) == in_l1(site)

        retold = events_of(site).publisher.num_retold["reader"]
        assert await reader.replay(1_000_000) == []  # of an earlier depot
        await eventually(lambda: events_of(site).publisher.num_retold["reader"] > retold)
        await at_rest(site, reader)
        assert last_blocks(reader) == in_l1(site)
    assert events_of(site).sockets.num_replays == {"whole": 1, "too old": 1, "abandoned": 0}


async def test_a_request_that_is_none_is_counted_and_others_are_answered(open_site: Open) -> None:
    site = await opened(open_site)
    async with reader_of(site) as reader:
        assert reader._replay is not None
        await reader._replay.send_multipart((b"", b"short"))
        await reader._replay.send_multipart((b"one frame",))
        assert await reader.replay(0) == []
    assert events_of(site).sockets.num_bad_requests == 2


async def test_dropped_events_make_readers_forget_and_learn_all_again(open_site: Open) -> None:
    site = await opened(open_site, event_queue_size=1)
    engine = await site.attach(SMALL)
    async with reader_of(site) as reader:
        for seed in range(4):
            await engine.store("s", prompt(2 * CHUNK, seed), engine.kv(2 * CHUNK, seed))
        await eventually(lambda: events_of(site).publisher.num_retold["gap"] > 0)
        await at_rest(site, reader)
        assert last_blocks(reader) == in_l1(site)


async def test_hashes_and_tokens_of_an_engine_are_told_in_its_blocks(open_site: Open) -> None:
    site = await opened(open_site)
    engine = await site.attach(SMALL)
    assert engine.attachment.wants_token_ids
    hashes = [bytes([number]) * 32 for number in range(2)]
    tokens = prompt(2 * CHUNK)
    prefix = hash_prefix(hashes, CHUNK, adapter="lora")
    async with reader_of(site) as reader:
        await engine.store("s", prefix, engine.kv(2 * CHUNK, seed=1))
        ends = {int.from_bytes(each[-8:], "big") for each in hashes}
        await reader.until(lambda: reader.held("CPU_PINNED") == ends)
        assert not any(reader.tokens.values())
        prefix.token_ids.extend(tokens)
        await engine.store("s", prefix, engine.kv(2 * CHUNK, seed=1))  # nothing is new but the tokens
        await reader.until(lambda: len(reader.held("CPU_PINNED")) == 2 * CHUNK // BLOCK)
        assert ends <= reader.held("CPU_PINNED")
        told = sorted(reader.held("CPU_PINNED"), key=lambda block: depth_of(reader, block))
        assert [token for block in told for token in reader.tokens[block]] == tokens


async def test_too_few_tokens_beside_hashes_are_refused(open_site: Open) -> None:
    site = await opened(open_site)
    engine = await site.attach(SMALL)
    prefix = hash_prefix([b"hash" * 8], CHUNK)
    prefix.token_ids.extend(range(CHUNK - 1))
    with refused("INVALID_ARGUMENT", "INVALID_REQUEST"):
        await engine.store("s", prefix, engine.kv(CHUNK, seed=1))


async def test_a_block_is_stored_when_all_ranks_have_it_and_removed_when_one_has_not(open_site: Open) -> None:
    site = await opened(open_site)
    ranks = [await site.attach(SMALL, instance_id="tp", world_size=2, rank=rank) for rank in range(2)]
    tokens = prompt(2 * CHUNK)
    async with reader_of(site) as reader:
        await ranks[1].store("s", tokens, ranks[1].kv(2 * CHUNK, seed=1))
        await at_rest(site, reader)
        assert not reader.held("CPU_PINNED")
        await ranks[0].store("s", tokens[:CHUNK], ranks[0].kv(CHUNK, seed=1))
        await reader.until(lambda: len(reader.held("CPU_PINNED")) == CHUNK // BLOCK)
        site.depot.verification.drop(
            [each for each in site.depot.index.chunks() if each.namespace_stats.rank == 1 and each.position == 0],
            Hop.SCRUB,
        )
        await reader.until(lambda: not reader.held("CPU_PINNED"))


async def test_a_depot_that_ends_lets_readers_forget_it() -> None:
    settings = {"kv_events": "tcp://127.0.0.1:0", "chunk_size": CHUNK}
    async with running_server(settings) as server, AsyncDepotClient(server.addresses[0]) as client:
        engine = await attach(client, SMALL, instance_id="engine")
        address = server._kv_events.sockets.address  # type: ignore[union-attr]
        reader = Reader(address)
        await engine.store("s", prompt(CHUNK), engine.kv(CHUNK, seed=1))
        await reader.until(lambda: bool(reader.held("CPU_PINNED")))
        await engine.close()
    await reader.until(lambda: not reader.held("CPU_PINNED"))
    await reader.__aexit__(None, None, None)


async def test_a_depot_that_starts_again_names_its_chunks_as_their_prompts_come() -> None:
    events = free_address()
    async with depot_process("--kv-events", events, "--kv-events-replay", free_address()) as depot:
        async with engines(depot.address) as (engine,):
            await engine.store("s", prompt(3 * CHUNK), engine.kv(3 * CHUNK, seed=1))
        await depot.end()
        await depot.start()
        async with engines(depot.address) as (engine,), Reader(events) as reader:
            found = await engine.lookup("s", prompt(2 * CHUNK))
            assert found.matched_tokens == 2 * CHUNK
            await reader.until(lambda: len(reader.held("CPU_PINNED")) == 2 * CHUNK // BLOCK)
            assert any(reader.tokens.values())


async def test_a_replaced_chunk_is_reported_so_that_a_store_that_fails_leaves_no_trace(open_site: Open) -> None:
    site = await opened(open_site)
    engine = await site.attach(SMALL, SMALL)
    kv = engine.kv(CHUNK, seed=1)
    tables = engine.put(kv)
    some = [block_table(ids[2:], absent_blocks=2) if number else ids for number, ids in enumerate(tables)]
    async with reader_of(site) as reader:
        await engine.attachment.store("s", prompt(CHUNK), some)
        await reader.until(lambda: bool(reader.held("CPU_PINNED")))
        header = StoreInlineHeader(
            instance_id=engine.attachment.instance_id, session_id="s", prefix=token_prefix(prompt(CHUNK))
        )
        call = site.stub.StoreInline()
        await call.write(StoreInlineRequest(header=header))
        await call.write(StoreInlineRequest(data=b"x"))  # the chunk is replaced at its first byte
        await reader.until(lambda: not reader.held("CPU_PINNED"))
        call.cancel()


async def test_disk_and_l1_are_told_apart(open_site: Open, tmp_path: Path) -> None:
    site = await opened(open_site, l2=f"disk://{tmp_path}?size=64MiB", l2_write="all")
    await available(site.server)
    engine = await site.attach(SMALL)
    async with reader_of(site) as reader:
        await engine.store("s", prompt(2 * CHUNK), engine.kv(2 * CHUNK, seed=1))
        await reader.until(lambda: len(reader.held("DISK")) == 2 * CHUNK // BLOCK == len(reader.held("CPU_PINNED")))
        for chunk in sorted(site.depot.index.chunks(), key=lambda each: -each.position):
            site.depot.index.remove(chunk, RemovalReason.EVICTED)
            site.depot.publish_evicted([chunk])
        await reader.until(lambda: not reader.held("CPU_PINNED"))
        assert len(reader.held("DISK")) == 2 * CHUNK // BLOCK
        found = await engine.lookup("s", prompt(2 * CHUNK))
        assert found.l2_tokens == 2 * CHUNK
        await reader.until(lambda: len(reader.held("CPU_PINNED")) == 2 * CHUNK // BLOCK)
        if found.HasField("lease"):
            await engine.attachment.release_lease(found.lease)
        await site.client.clear_cache()
        await reader.until(lambda: not reader.held("DISK") and not reader.held("CPU_PINNED"))


async def test_metrics_count_what_is_published(open_site: Open) -> None:
    site = await opened(open_site)
    engine = await site.attach(SMALL)
    async with reader_of(site) as reader:
        await engine.store("s", prompt(2 * CHUNK), engine.kv(2 * CHUNK, seed=1))
        await reader.until(lambda: len(reader.held("CPU_PINNED")) == 2 * CHUNK // BLOCK)
        values = read_kv_events(events_of(site))
        assert values.keys() == set(KV_EVENT_METRICS)
        assert values[EVENTS]["BlockStored", "CPU_PINNED"] >= 2
        assert values[CHUNKS] == {(): 2}


async def test_an_address_that_is_taken_is_refused_at_the_start(open_site: Open) -> None:
    site = await opened(open_site)
    taken = events_of(site).sockets.address
    with pytest.raises(BadSettings, match=f"^kv_events: {taken}: Address already in use$"):
        await opened(open_site, kv_events=taken)


def test_only_the_default_tenants_blocks_are_told_unless_others_are_named() -> None:
    default, named, every = (Topics("{tenant}@{model}", "pod", tenants) for tenants in ((), ("red",), ("*",)))
    assert [default.tells(tenant) for tenant in ("", "red", "blue")] == [True, False, False]
    assert [named.tells(tenant) for tenant in ("", "red", "blue")] == [False, True, False]
    assert [every.tells(tenant) for tenant in ("", "red", "blue")] == [True, True, True]
    assert named.topic("m", "red") == b"red@m"
