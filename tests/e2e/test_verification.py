"""Bytes of L1 are damaged behind the depot's back: no reader gets them with OK, and each chunk counts once."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from kernels.checksum import kvsum64
from kvdepot import ChunkCorrupt, block_table
from kvdepot.v1 import cache_pb2, observability_pb2
from service.depot.scrub import Scrub
from service.l1.chunk import Chunk
from telemetry.kinds import Hop
from tests.e2e.conftest import Open
from tests.e2e.engines import SMALL, Engine, Site, prompt, site
from tests.e2e.servers import running_server
from tests.fakes.paged import Group, Kv, canonical, first_tokens
from tests.fakes.waiting import eventually

CHUNK_SIZE = 16
NUM_CHUNKS = 8
NUM_TOKENS = NUM_CHUNKS * CHUNK_SIZE
TOKENS = prompt(NUM_TOKENS)

Bytes = npt.NDArray[np.uint8]


def with_blocks(num_blocks: int) -> Group:
    return replace(SMALL, shape=replace(SMALL.shape, num_blocks=num_blocks))


def chunks_of(depot: Site) -> list[Chunk]:
    """Return the chunks of the only prompt, in the order of its tokens."""
    return sorted(depot.depot.index.chunks(), key=lambda chunk: chunk.slot.offset_bytes)


def memory(depot: Site, chunk: Chunk) -> Bytes:
    start = chunk.slot.offset_bytes
    return np.frombuffer(depot.depot.l1, np.uint8)[start : start + chunk.namespace_stats.chunk_bytes]


def damage(depot: Site, chunk: Chunk, byte: int = 1_000) -> None:
    memory(depot, chunk)[byte] ^= 1


async def stored(depot: Site, *groups: Group) -> tuple[Engine, Kv, list[Chunk]]:
    engine = await depot.attach(*groups)
    kv = engine.kv(NUM_TOKENS, seed=1)
    await engine.store("s", TOKENS, kv)
    return engine, kv, chunks_of(depot)


async def failed_retrieve(engine: Engine, num_tokens: int = NUM_TOKENS, skip_tokens: int = 0) -> ChunkCorrupt:
    """Look the prompt up, and return the error of its retrieve."""
    found = await engine.lookup("s", TOKENS)
    with pytest.raises(ChunkCorrupt) as failure:
        await engine.retrieve("s", found.lease, num_tokens, skip_tokens=skip_tokens)
    await engine.attachment.release_lease(found.lease)
    assert (failure.value.code.name, failure.value.reason) == ("DATA_LOSS", "CHUNK_CORRUPT")
    return failure.value


# Random damage


def bit(chunk: Bytes, rng: np.random.Generator) -> None:
    chunk[rng.integers(chunk.size)] ^= 1 << rng.integers(8)


def zeroed_line(chunk: Bytes, rng: np.random.Generator) -> None:
    line = rng.integers(chunk.size // 64) * 64
    chunk[line : line + 64] = 0


def swapped_pages(chunk: Bytes, rng: np.random.Generator) -> None:
    first, second = rng.choice(chunk.size // 512, 2, replace=False) * 512
    chunk[first : first + 512], chunk[second : second + 512] = (
        chunk[second : second + 512].copy(),
        chunk[first : first + 512].copy(),
    )


def swapped_words(chunk: Bytes, rng: np.random.Generator) -> None:
    words = chunk.view(np.uint64)
    first, second = rng.choice(words.size, 2, replace=False)
    words[first], words[second] = words[second], words[first]


def swapped_halves(chunk: Bytes, rng: np.random.Generator) -> None:
    halves = chunk.view(np.uint32)
    first = rng.integers(halves.size // 2) * 2
    halves[first], halves[first + 1] = halves[first + 1], halves[first]


def foreign_bytes(chunk: Bytes, rng: np.random.Generator) -> None:
    size = int(rng.integers(1, 513))
    begin = rng.integers(chunk.size - size)
    chunk[begin : begin + size] = np.frombuffer(rng.bytes(size), np.uint8)


KINDS: tuple[Callable[[Bytes, np.random.Generator], None], ...] = (
    *(bit, zeroed_line, swapped_pages, swapped_words, swapped_halves, foreign_bytes),
)


async def test_10_000_random_damages_are_all_found_and_named(depot: Site) -> None:
    num_chunks, rng = 100, np.random.default_rng(1)
    num_tokens = num_chunks * CHUNK_SIZE
    tokens = prompt(num_tokens)
    engine = await depot.attach(with_blocks(num_tokens // SMALL.shape.block_size))
    kv = engine.kv(num_tokens, seed=1)
    tables = engine.put(kv)
    clean = [np.frombuffer(content, np.uint8) for content in canonical(kv, CHUNK_SIZE)]
    num_damaged = 0
    while num_damaged < 10_000:
        await engine.attachment.store("s", tokens, tables)
        found = await engine.lookup("s", tokens)
        [lease] = depot.depot.leases.live()
        damaged = set()
        for position, chunk in enumerate(lease.chunks_by_rank[0]):
            content = memory(depot, chunk)
            KINDS[rng.integers(len(KINDS))](content, rng)
            if not np.array_equal(content, clean[position]):
                damaged.add(position)
        with pytest.raises(ChunkCorrupt) as failure:
            await engine.attachment.retrieve("s", found.lease, tables)
        named = {token // CHUNK_SIZE for tokens in failure.value.bad_tokens for token in tokens}
        assert named == damaged
        num_damaged += len(damaged)
        assert depot.depot.verification.num_corrupt[Hop.RETRIEVE] == num_damaged
        await engine.attachment.release_lease(found.lease)
        engine.buffer.write(tables, kv)
    assert await engine.holds("s", tokens, kv) == 0, "all chunks were damaged in the last round"


# What an engine does


async def test_an_engine_computes_from_the_first_bad_token_stores_again_and_hits(depot: Site) -> None:
    engine, kv, chunks = await stored(depot)
    damage(depot, chunks[5])
    damage(depot, chunks[7])
    tables = engine.tables(NUM_TOKENS)
    engine.buffer.fill(seed=9)
    async with engine.attachment.session("second") as session:
        num_ready = await session.retrieve(await session.lookup(TOKENS), tables)
        assert num_ready == 5 * CHUNK_SIZE
        right = engine.buffer.twin()
        right.write(tables, first_tokens(kv, num_ready))
        assert not engine.buffer.differences(right), "the blocks before the first bad token are right"
        miss = (await session.lookup(TOKENS)).miss
        assert (miss.reason, miss.at_token) == (cache_pb2.MISS_REASON_CORRUPT, num_ready)
        assert "found corrupt" in miss.detail and miss.HasField("drop_time")
        engine.buffer.write(tables, kv)
        answer = await session.store(TOKENS, tables, start_token=num_ready)
        assert (answer.stored_tokens, answer.resident_tokens) == (2 * CHUNK_SIZE, CHUNK_SIZE)
    assert await engine.holds("third", TOKENS, kv) == NUM_TOKENS


async def test_a_chunk_in_two_leases_fails_both_and_counts_once(depot: Site) -> None:
    first, kv, chunks = await stored(depot)
    second = await depot.attach()
    found = [await engine.lookup("s", TOKENS) for engine in (first, second)]
    damage(depot, chunks[2])
    for engine, each in zip((first, second), found, strict=True):
        with pytest.raises(ChunkCorrupt) as failure:
            await engine.retrieve("s", each.lease, NUM_TOKENS)
        assert failure.value.first_bad_token == 2 * CHUNK_SIZE
        assert failure.value.bad_tokens == (range(2 * CHUNK_SIZE, 3 * CHUNK_SIZE),)
        answer = await engine.retrieve("s", each.lease, 2 * CHUNK_SIZE)
        assert answer.retrieved_tokens == 2 * CHUNK_SIZE, "the lease still serves the tokens before"
    assert depot.depot.verification.num_corrupt.total() == 1
    for engine, each in zip((first, second), found, strict=True):
        await engine.attachment.release_lease(each.lease)
    assert depot.depot.index.pool.num_used_slots == NUM_CHUNKS - 1
    assert await first.holds("s", TOKENS, kv) == 2 * CHUNK_SIZE


# Parts of chunks


@pytest.mark.parametrize("byte", [0, -1])
async def test_a_retrieve_that_skips_a_part_of_a_chunk_compares_all_of_it(depot: Site, byte: int) -> None:
    engine, kv, chunks = await stored(depot)
    assert await engine.holds("s", TOKENS, kv) == NUM_TOKENS
    damage(depot, chunks[3], byte)
    error = await failed_retrieve(engine, skip_tokens=3 * CHUNK_SIZE + 8)
    assert error.first_bad_token == 3 * CHUNK_SIZE


async def test_a_damaged_chunk_that_is_skipped_fails_no_retrieve(depot: Site) -> None:
    engine, kv, chunks = await stored(depot)
    damage(depot, chunks[0])
    found = await engine.lookup("s", TOKENS)
    await engine.retrieve_exactly("s", found.lease, kv, skip_tokens=CHUNK_SIZE)


async def test_a_retrieve_without_blocks_of_a_group_compares_a_chunk_at_its_first_use(depot: Site) -> None:
    engine, _, _ = await stored(depot, SMALL, SMALL)
    [full, window] = engine.tables(NUM_TOKENS)
    tables = [block_table(full), block_table(window[-4:], absent_blocks=len(window) - 4)]
    found = await engine.lookup("s", TOKENS)
    num_verified = depot.depot.verification.num_verified
    await engine.attachment.retrieve("s", found.lease, tables)
    assert num_verified[Hop.RETRIEVE] == NUM_CHUNKS
    await engine.attachment.retrieve("s", found.lease, tables)
    assert num_verified[Hop.RETRIEVE] == NUM_CHUNKS + 1, "all blocks of the last chunk are wanted, so it is read anyway"


async def test_damage_in_an_unwanted_group_is_found_at_the_first_use_too(depot: Site) -> None:
    engine, _, chunks = await stored(depot, SMALL, SMALL)
    [full, window] = engine.tables(NUM_TOKENS)
    tables = [block_table(full), block_table(window[-4:], absent_blocks=len(window) - 4)]
    damage(depot, chunks[1], byte=-1)
    found = await engine.lookup("s", TOKENS)
    with pytest.raises(ChunkCorrupt) as failure:
        await engine.attachment.retrieve("s", found.lease, tables)
    assert failure.value.first_bad_token == 0, "the window of a shorter prefix was not asked for"


@pytest.mark.parametrize("accept_partial", [True, False])
@pytest.mark.parametrize(("skip_tokens", "valid_tokens"), [(0, 0), (CHUNK_SIZE, CHUNK_SIZE), (64, 5 * CHUNK_SIZE)])
async def test_a_window_is_right_for_the_whole_prefix_only(
    depot: Site, skip_tokens: int, valid_tokens: int, *, accept_partial: bool
) -> None:
    engine, _, chunks = await stored(depot, SMALL, SMALL)
    [full, window] = engine.tables(NUM_TOKENS)
    num_absent = 64 // SMALL.shape.block_size
    tables = [block_table(full), block_table(window[num_absent:], absent_blocks=num_absent)]
    damage(depot, chunks[5])
    found = await engine.lookup("s", TOKENS)
    retrieve = engine.attachment.retrieve(
        "s", found.lease, tables, skip_tokens=skip_tokens, accept_partial=accept_partial
    )
    if accept_partial:
        answer = await retrieve
        assert (answer.valid_tokens, answer.retrieved_tokens) == (valid_tokens, valid_tokens - skip_tokens)
        assert answer.miss.at_token == 5 * CHUNK_SIZE
    else:
        with pytest.raises(ChunkCorrupt) as failure:
            await retrieve
        assert failure.value.first_bad_token == valid_tokens


# Inline


@pytest.mark.parametrize("skip_chunks", [0, 2, 3, 5])
async def test_an_inline_retrieve_sends_right_chunks_and_none_from_the_first_damaged_one_on(
    depot: Site, skip_chunks: int
) -> None:
    engine, kv, chunks = await stored(depot)
    for position in (3, 6):
        damage(depot, chunks[position])
    found = await engine.lookup("s", TOKENS)
    received = b""
    with pytest.raises(ChunkCorrupt) as failure:
        async for piece in engine.attachment.retrieve_inline("s", found.lease, skip_tokens=skip_chunks * CHUNK_SIZE):
            received += piece.data
    named = [position for position in (3, 6) if position >= skip_chunks]
    assert [tokens.start // CHUNK_SIZE for tokens in failure.value.bad_tokens] == named
    assert received == b"".join(canonical(kv, CHUNK_SIZE)[skip_chunks : named[0]])
    assert depot.depot.verification.num_corrupt[Hop.INLINE] == len(named)


async def test_what_was_stored_inline_is_verified_like_everything_else(depot: Site) -> None:
    engine = await depot.attach()
    data = b"".join(canonical(engine.kv(NUM_TOKENS, seed=1), CHUNK_SIZE))
    cuts = [0, 1, 7, 8, 3_071, 3_072, 3_080, 9_999, len(data)]
    pieces = [data[begin:end] for begin, end in pairwise(cuts)]
    await engine.attachment.store_inline("s", TOKENS, pieces)
    assert [chunk.checksum for chunk in chunks_of(depot)] == [kvsum64(memory(depot, each)) for each in chunks_of(depot)]
    damage(depot, chunks_of(depot)[4])
    assert (await failed_retrieve(engine)).first_bad_token == 4 * CHUNK_SIZE


# Settings


async def test_without_verification_nothing_is_computed_and_nothing_is_found(open_site: Open) -> None:
    depot = await open_site(verify="off")
    engine, _, chunks = await stored(depot)
    await engine.attachment.store_inline("s", prompt(CHUNK_SIZE, seed=2), bytes(engine.attachment.chunk_bytes))
    assert {chunk.checksum for chunk in depot.depot.index.chunks()} == {None}
    damage(depot, chunks[0])
    found = await engine.lookup("s", TOKENS)
    assert (await engine.retrieve("s", found.lease, NUM_TOKENS)).retrieved_tokens == NUM_TOKENS
    assert not any((*depot.depot.verification.num_verified.values(), *depot.depot.verification.num_corrupt.values()))


async def test_verification_of_stores_leaves_the_comparison_to_the_scrub(open_site: Open) -> None:
    depot = await open_site(verify="store")
    engine, _, chunks = await stored(depot)
    damage(depot, chunks[0])
    found = await engine.lookup("s", TOKENS)
    assert (await engine.retrieve("s", found.lease, NUM_TOKENS)).retrieved_tokens == NUM_TOKENS
    await scrubbed(depot)
    with pytest.raises(ChunkCorrupt):
        await engine.retrieve("s", found.lease, NUM_TOKENS)


# The scrub


async def scrubbed(depot: Site) -> None:
    """Scrub all chunks, as if an earlier process had stored them, until one was dropped."""
    for chunk in depot.depot.index.chunks():
        chunk.is_verified = False
    depots = depot.server.depots
    scrub = Scrub(depots.index, depots.verification, depots.backend, depots.slices, 1e9)
    running = asyncio.create_task(scrub.run())
    await eventually(lambda: scrub.seconds_since_round is not None)
    running.cancel()
    await asyncio.wait([running])


async def test_the_scrub_finds_damage_in_a_chunk_that_nobody_reads(depot: Site) -> None:
    engine, kv, chunks = await stored(depot)
    damage(depot, chunks[6])
    await scrubbed(depot)
    assert depot.depot.verification.num_corrupt == dict.fromkeys(Hop, 0) | {Hop.SCRUB: 1}
    assert depot.depot.verification.num_verified[Hop.SCRUB] == NUM_CHUNKS - 1
    found = await engine.lookup("s", TOKENS)
    assert (found.matched_tokens, found.miss.reason) == (6 * CHUNK_SIZE, cache_pb2.MISS_REASON_CORRUPT)
    await engine.retrieve_exactly("s", found.lease, first_tokens(kv, 6 * CHUNK_SIZE))


# Chunks of an earlier process


@asynccontextmanager
async def depot_on(folder: Path, **flags: object) -> AsyncIterator[Site]:
    """Run a depot whose L1 is a file in the folder."""
    file = {"chunk_size": CHUNK_SIZE, "l1_file": f"{folder}/l1"}
    async with running_server({**file, **flags}) as server, site(server) as opened:
        yield opened


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        yield Path(path)


async def test_an_adopted_chunk_is_verified_at_its_first_use_and_dropped_for_good(folder: Path) -> None:
    async with depot_on(folder) as first:
        _, kv, _ = await stored(first)
    async with depot_on(folder, scrub_rate=0) as second:
        engine, chunks = await second.attach(), chunks_of(second)
        assert len(chunks) == NUM_CHUNKS
        assert not any(chunk.is_verified for chunk in chunks)
        damage(second, chunks[3])
        assert (await failed_retrieve(engine)).bad_tokens == (range(3 * CHUNK_SIZE, 4 * CHUNK_SIZE),)
        assert [chunk.is_verified for chunk in chunks] == [position != 3 for position in range(NUM_CHUNKS)]
    async with depot_on(folder) as third:
        assert len(chunks_of(third)) == NUM_CHUNKS - 1
        engine = await third.attach()
        assert await engine.holds("s", TOKENS, kv) == 3 * CHUNK_SIZE


@pytest.mark.parametrize(("verify", "num_adopted"), [("off", NUM_CHUNKS), ("store", 0), ("retrieve", 0), ("all", 0)])
async def test_chunks_without_a_checksum_are_adopted_only_if_nothing_is_verified(
    folder: Path, verify: str, num_adopted: int
) -> None:
    async with depot_on(folder, verify="off") as first:
        await stored(first)
    async with depot_on(folder, verify=verify) as second:
        assert len(chunks_of(second)) == num_adopted


# What an operator sees


async def test_status_activity_and_explain_say_that_a_chunk_was_corrupt(open_site: Open) -> None:
    depot = await open_site()
    engine, _, chunks = await stored(depot)
    damage(depot, chunks[1])
    await failed_retrieve(engine)
    [tier] = (await depot.client.get_status()).tiers
    assert (tier.num_corrupt_chunks, tier.num_verified_chunks) == (1, NUM_CHUNKS - 1)
    explained = await depot.client.explain_prefix(TOKENS, instance_id=engine.attachment.instance_id)
    assert explained.ranks[0].removal == observability_pb2.CHUNK_REMOVAL_CORRUPT
