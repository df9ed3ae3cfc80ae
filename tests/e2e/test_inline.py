"""Chunk bytes on the call are the same bytes that blocks hold, and half a stream is nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvdepot import AsyncDepotClient, DepotError, KvShape
from kvdepot.v1.cache_pb2 import StoreInlineRequest
from tests.e2e.conftest import Open
from tests.e2e.engines import SMALL, Engine, InlineStore, Site, attach, calls_running, listening_pid, prompt, refused
from tests.fakes.paged import Group, Kv, canonical
from tests.fakes.waiting import eventually

CHUNK_SIZE = 16
NUM_TOKENS = 64
TOKENS = prompt(NUM_TOKENS)
MIB = 1 << 20

LATENT = KvShape(num_layers=3, num_blocks=40, block_size=4, head_size=9, dtype="uint8")
HYBRID = [
    SMALL,
    Group("NL_X_NB_BS_HS", LATENT),
    Group("VLLM_LHBNC", replace(SMALL.shape, num_heads=5, block_size=8, dtype="float32")),
]
BIG = Group("NL_X_TWO_NB_BS_NH_HS", replace(SMALL.shape, block_size=16, num_blocks=16, num_heads=32, head_size=1280))
"""A chunk of 16 tokens has 5 MiB."""


async def retrieved(engine: Engine, session_id: str, lease: Any, *, skip_tokens: int = 0) -> bytes:
    """Return all that an inline retrieve brings; the client checks the order of the pieces."""
    pieces = engine.attachment.retrieve_inline(session_id, lease, skip_tokens=skip_tokens)
    return b"".join([piece.data async for piece in pieces])


async def test_what_was_stored_inline_is_retrieved_into_blocks(depot: Site) -> None:
    engine = await depot.attach(*HYBRID)
    kv = engine.kv(NUM_TOKENS, seed=1)
    answer = await engine.attachment.store_inline("s", [*TOKENS, 1, 2], b"".join(canonical(kv, CHUNK_SIZE)))
    assert (answer.stored_tokens, answer.resident_tokens) == (NUM_TOKENS, 0)
    assert (answer.refused_tokens, answer.tail_tokens) == (0, 2)
    assert answer.stored_bytes == 4 * engine.attachment.chunk_bytes
    assert await engine.holds("s", TOKENS, kv) == NUM_TOKENS


async def test_what_was_stored_from_blocks_is_retrieved_inline(depot: Site) -> None:
    engine = await depot.attach(*HYBRID)
    kv = engine.kv(NUM_TOKENS, seed=1)
    await engine.store("s", TOKENS, kv)
    lease = (await engine.lookup("s", TOKENS)).lease
    chunks = canonical(kv, CHUNK_SIZE)
    for skip_tokens in (0, 16, 48, 64):
        assert await retrieved(engine, "s", lease, skip_tokens=skip_tokens) == b"".join(chunks[skip_tokens // 16 :])
    for skip_tokens in (8, 80):
        with refused("INVALID_ARGUMENT", "INVALID_REQUEST"):
            await retrieved(engine, "s", lease, skip_tokens=skip_tokens)


async def test_an_engine_without_shared_memory_moves_its_bytes_inline_only(depot: Site) -> None:
    with_memory = await depot.attach(*HYBRID)
    kv = with_memory.kv(NUM_TOKENS, seed=1)
    groups = [group.definition.layout.without_memory(group.shape) for group in HYBRID]
    async with await depot.client.attach(instance_id="far", model_name="model", groups=groups) as attachment:
        assert attachment.transfer_backend == "inline"
        await attachment.store_inline("s", TOKENS, canonical(kv, CHUNK_SIZE))
        found = await attachment.lookup("s", TOKENS)
        received = bytearray(4 * attachment.chunk_bytes)
        await attachment.retrieve_inline_into("s", found.lease, received)
        assert received == b"".join(canonical(kv, CHUNK_SIZE))
        with refused("FAILED_PRECONDITION", "NO_REGIONS"):
            await attachment.store("s", TOKENS, [[0], [0], [0]])
        with refused("FAILED_PRECONDITION", "NO_REGIONS"):
            await attachment.retrieve("s", found.lease, [[0], [0], [0]])
    assert await with_memory.holds("s", TOKENS, kv) == NUM_TOKENS


async def test_an_inline_store_from_start_token_continues_what_was_stored_before(depot: Site) -> None:
    engine = await depot.attach()
    kv = engine.kv(NUM_TOKENS, seed=1)
    chunks = canonical(kv, CHUNK_SIZE)
    await engine.attachment.store_inline("s", TOKENS[:32], chunks[:2])
    answer = await engine.attachment.store_inline("s", TOKENS, chunks[1:], start_token=16)
    assert (answer.stored_tokens, answer.resident_tokens) == (32, 16)
    assert answer.stored_bytes == 2 * engine.attachment.chunk_bytes
    assert await engine.holds("s", TOKENS, kv) == NUM_TOKENS


@pytest.mark.parametrize("seed", range(4))
async def test_pieces_may_be_cut_anywhere(depot: Site, seed: int) -> None:
    engine = await depot.attach()
    kv = engine.kv(NUM_TOKENS, seed=1)
    data = b"".join(canonical(kv, CHUNK_SIZE))
    cuts = np.random.default_rng(seed).integers(1, len(data), (1, 7, 50, 300)[seed])
    pieces = [data[start:end] for start, end in pairwise([0, *sorted({*cuts.tolist()}), len(data)])]
    await engine.attachment.store_inline("s", TOKENS, pieces)
    assert await engine.holds("s", TOKENS, kv) == NUM_TOKENS


async def test_chunks_larger_than_a_piece_come_and_go_whole(open_site: Open) -> None:
    depot = await open_site(l1_size="32MiB")
    engine = await depot.attach(BIG)
    kv = engine.kv(NUM_TOKENS, seed=1)
    await engine.attachment.store_inline("s", TOKENS, b"".join(canonical(kv, CHUNK_SIZE)))
    found = await engine.lookup("s", TOKENS)
    pieces = [piece async for piece in engine.attachment.retrieve_inline("s", found.lease)]
    assert max(len(piece.data) for piece in pieces) <= MIB
    assert b"".join(piece.data for piece in pieces) == b"".join(canonical(kv, CHUNK_SIZE))
    assert await engine.holds("s", TOKENS, kv) == NUM_TOKENS


async def test_a_piece_may_have_a_mebibyte_and_no_byte_more(open_site: Open) -> None:
    depot = await open_site(l1_size="32MiB")
    engine = await depot.attach(BIG)
    kv = engine.kv(CHUNK_SIZE, seed=1)
    [chunk] = canonical(kv, CHUNK_SIZE)
    too_large, right = InlineStore(depot.stub), InlineStore(depot.stub)
    await too_large.header(engine, "s", TOKENS[:CHUNK_SIZE])
    await too_large.data(chunk[: MIB + 1])
    with refused("INVALID_ARGUMENT", "INVALID_REQUEST"):
        await too_large.answer()
    await right.header(engine, "s", TOKENS[:CHUNK_SIZE])
    for start in range(0, len(chunk), MIB):
        await right.data(chunk[start : start + MIB])
    await right.complete()
    assert await engine.holds("s", TOKENS[:CHUNK_SIZE], kv) == CHUNK_SIZE


# Streams that are not what was said


Send = Callable[[InlineStore, Engine, bytes], Awaitable[Any]]


async def no_header(store: InlineStore, engine: Engine, data: bytes) -> None:
    await store.data(data)
    await store.answer()


async def nothing(store: InlineStore, engine: Engine, data: bytes) -> None:
    await store.complete()


async def only_a_header(store: InlineStore, engine: Engine, data: bytes) -> None:
    await store.header(engine, "s", TOKENS)
    await store.complete()


async def a_second_header(store: InlineStore, engine: Engine, data: bytes) -> None:
    await store.header(engine, "s", TOKENS)
    await store.data(data[:5000])
    await store.header(engine, "s", TOKENS)
    await store.answer()


async def too_few_bytes(store: InlineStore, engine: Engine, data: bytes) -> None:
    await store.header(engine, "s", TOKENS)
    await store.data(data[:-1])
    await store.complete()


async def too_many_bytes(store: InlineStore, engine: Engine, data: bytes) -> None:
    await store.header(engine, "s", TOKENS)
    await store.data(data)
    await store.data(b"x")
    await store.answer()


async def an_empty_message(store: InlineStore, engine: Engine, data: bytes) -> None:
    await store.header(engine, "s", TOKENS)
    await store.send(StoreInlineRequest())
    await store.answer()


async def a_start_within_a_chunk(store: InlineStore, engine: Engine, data: bytes) -> None:
    await store.header(engine, "s", TOKENS, start_token=8)
    await store.answer()


@pytest.mark.parametrize(
    "send",
    [
        no_header,
        nothing,
        only_a_header,
        a_second_header,
        too_few_bytes,
        too_many_bytes,
        an_empty_message,
        a_start_within_a_chunk,
    ],
)
async def test_a_stream_that_is_not_what_was_said_is_refused_and_stores_nothing(depot: Site, send: Send) -> None:
    engine = await depot.attach()
    kv = engine.kv(NUM_TOKENS, seed=1)
    with refused("INVALID_ARGUMENT", "INVALID_REQUEST"):
        await send(InlineStore(depot.stub), engine, b"".join(canonical(kv, CHUNK_SIZE)))
    assert await engine.holds("s", TOKENS, kv) == 0
    await depot.assert_comes_to_rest()
    assert (await depot.client.get_status()).tiers[0].used_bytes == 0


# Streams that are cut, or stall


@pytest.mark.parametrize("sent", ["a part of a chunk", "some chunks", "all bytes, but not the end"])
async def test_a_stream_that_is_cut_stores_nothing(depot: Site, sent: str) -> None:
    engine = await depot.attach()
    kv = engine.kv(NUM_TOKENS, seed=1)
    data = b"".join(canonical(kv, CHUNK_SIZE))
    chunk_bytes = engine.attachment.chunk_bytes
    num_bytes = {"a part of a chunk": 1000, "some chunks": 3 * chunk_bytes}.get(sent, len(data))
    before = calls_running()
    store = InlineStore(depot.stub)
    await store.header(engine, "s", TOKENS)
    await store.data(data[:num_bytes])
    await eventually(lambda: depot.num_being_stored() == -(-num_bytes // chunk_bytes))
    store.cancel()
    await eventually(lambda: calls_running() <= before)
    await depot.assert_comes_to_rest()
    assert await engine.holds("s", TOKENS, kv) == 0
    assert (await depot.client.get_status()).tiers[0].used_bytes == 0


async def test_a_stream_whose_deadline_passes_stores_nothing(depot: Site) -> None:
    engine = await depot.attach()
    kv = engine.kv(NUM_TOKENS, seed=1)
    store = InlineStore(depot.stub, timeout_seconds=0.3)
    await store.header(engine, "s", TOKENS)
    await store.data(canonical(kv, CHUNK_SIZE)[0])
    with refused("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"):
        await store.answer()
    await depot.assert_comes_to_rest()
    assert await engine.holds("s", TOKENS, kv) == 0


async def test_a_client_that_stops_sending_gets_an_error_and_holds_no_slot(open_site: Open) -> None:
    depot = await open_site(max_wait="0.3s")
    engine = await depot.attach()
    kv = engine.kv(NUM_TOKENS, seed=1)
    silent, stalled = InlineStore(depot.stub), InlineStore(depot.stub)
    await stalled.header(engine, "s", TOKENS)
    await stalled.data(canonical(kv, CHUNK_SIZE)[0] + b"some")
    for store in (silent, stalled):
        with refused("DEADLINE_EXCEEDED", "STREAM_STALLED"):
            await store.answer()
    await depot.assert_comes_to_rest()
    assert (await depot.client.get_status()).tiers[0].used_bytes == 0
    assert await engine.holds("s", TOKENS, kv) == 0


async def test_a_client_that_only_said_what_it_will_store_holds_no_slot(depot: Site) -> None:
    engine = await depot.attach()
    store = InlineStore(depot.stub)
    await store.header(engine, "s", TOKENS)
    await eventually(lambda: len(depot.depot.sessions) == 1)
    assert depot.depot.index.num_protected == 0
    store.cancel()


async def test_an_inline_store_whose_attachment_ends_fails_and_stores_nothing(depot: Site) -> None:
    engine, other = await depot.attach(), await depot.attach()
    kv = engine.kv(NUM_TOKENS, seed=1)
    data = b"".join(canonical(kv, CHUNK_SIZE))
    store = InlineStore(depot.stub)
    await store.header(engine, "s", TOKENS)
    await store.data(data[:5000])
    await eventually(lambda: depot.num_being_stored() == 2)
    await engine.attachment.close()
    await eventually(lambda: len(depot.depot.instances) == 1)
    await store.data(data[5000:])
    with refused("FAILED_PRECONDITION", "DETACHED"):
        await store.answer()
    assert await other.holds("s", TOKENS, kv) == 0


async def test_an_inline_retrieve_whose_attachment_ends_fails(open_site: Open) -> None:
    depot = await open_site(l1_size="32MiB")
    engine, lease, _ = await leased_big(depot)
    with refused("FAILED_PRECONDITION", "DETACHED"):
        async for piece in engine.attachment.retrieve_inline("s", lease):
            if (piece.chunk_index, piece.offset_bytes) == (0, 0):
                await engine.attachment.close()
                await eventually(lambda: len(depot.depot.instances) == 0)


# Clients that read slowly


async def leased_big(depot: Site) -> tuple[Engine, Any, list[bytes]]:
    engine = await depot.attach(BIG)
    kv = engine.kv(NUM_TOKENS, seed=1)
    await engine.store("s", TOKENS, kv)
    return engine, (await engine.lookup("s", TOKENS)).lease, canonical(kv, CHUNK_SIZE)


async def test_a_client_that_stops_reading_gets_an_error_and_holds_no_chunk(open_site: Open) -> None:
    depot = await open_site(l1_size="32MiB", max_wait="0.4s")
    engine, lease, _ = await leased_big(depot)
    pieces = engine.attachment.retrieve_inline("s", lease)
    await anext(pieces)
    await asyncio.sleep(0.6)
    await engine.attachment.release_lease(lease)
    assert depot.depot.index.num_protected == 0
    with refused("DEADLINE_EXCEEDED", "STREAM_STALLED"):
        async for _ in pieces:
            pass


async def test_a_client_that_stops_reading_keeps_no_call_from_others(open_site: Open) -> None:
    depot = await open_site(l1_size="32MiB", max_wait="0.3s", max_concurrent_rpcs=1)
    engine, lease, _ = await leased_big(depot)
    pieces = engine.attachment.retrieve_inline("s", lease)
    await anext(pieces)
    with refused("RESOURCE_EXHAUSTED", "TOO_MANY_RPCS"):
        await engine.lookup("t", TOKENS)

    async def another_is_served() -> bool:
        with suppress(DepotError):
            await engine.lookup("t", TOKENS)
            return True
        return False

    await eventually(another_is_served, within_seconds=5.0)
    await pieces.aclose()


async def test_releasing_the_lease_stops_an_inline_retrieve(open_site: Open) -> None:
    depot = await open_site(l1_size="32MiB")
    engine, lease, _ = await leased_big(depot)
    with refused("NOT_FOUND", "LEASE_RELEASED"):
        async for piece in engine.attachment.retrieve_inline("s", lease):
            if (piece.chunk_index, piece.offset_bytes) == (0, 0):
                await engine.attachment.release_lease(lease)


async def test_an_inline_retrieve_is_right_though_its_lease_ends_by_itself(open_site: Open) -> None:
    depot = await open_site(l1_size="21MiB")
    engine, lease, chunks = await leased_big(depot)
    received = b""
    async for piece in engine.attachment.retrieve_inline("s", lease):
        if not received:
            assert (await depot.client.clear_cache(force=True)).num_revoked_leases == 1
            answer = await engine.store("t", prompt(NUM_TOKENS, seed=2), engine.kv(NUM_TOKENS, seed=2))
            assert answer.refused_tokens == NUM_TOKENS
        received += piece.data
    assert received == b"".join(chunks)


async def test_a_slow_reader_gets_every_byte_and_the_depot_buffers_few_of_them(
    start_server_process: Callable[..., str],
) -> None:
    address = start_server_process("--chunk-size", "16", "--l1-size", "80MiB")
    pid = listening_pid(address)
    async with AsyncDepotClient(address) as client:
        engine = await attach(client, BIG, instance_id="slow")
        kv = engine.kv(256, seed=1)
        await engine.store("s", prompt(256), kv)
        lease = (await engine.lookup("s", prompt(256))).lease

        async def is_populated() -> bool:
            return (await client.get_status()).tiers[0].populated_bytes == 80 * MIB

        await eventually(is_populated)
        before = resident_bytes(pid)
        pieces = engine.attachment.retrieve_inline("s", lease)
        received = [(await anext(pieces)).data]
        await asyncio.sleep(0.5)
        assert resident_bytes(pid) - before < 16 * MIB
        received += [piece.data async for piece in pieces]
        assert b"".join(received) == b"".join(canonical(kv, CHUNK_SIZE))
        await engine.close()


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


# Several stores of one chunk


async def test_a_chunk_that_is_being_stored_inline_is_counted_once(depot: Site) -> None:
    engine = await depot.attach()
    kv, other_kv = engine.kv(NUM_TOKENS, seed=1), engine.kv(NUM_TOKENS, seed=2)
    first, second = InlineStore(depot.stub), InlineStore(depot.stub)
    await first.header(engine, "s", TOKENS)
    await first.data(canonical(kv, CHUNK_SIZE)[0])
    await eventually(lambda: depot.num_being_stored() == 1)
    await second.header(engine, "t", TOKENS)
    for chunk in canonical(other_kv, CHUNK_SIZE):
        await second.data(chunk)
    await eventually(lambda: depot.num_being_stored() == 4)
    answering = asyncio.create_task(second.complete())
    for chunk in canonical(kv, CHUNK_SIZE)[1:]:
        await first.data(chunk)
    answer, other_answer = await first.complete(), await answering
    assert (answer.stored_tokens, answer.resident_tokens) == (16, 48)
    assert (other_answer.stored_tokens, other_answer.resident_tokens) == (48, 16)
    expected: Kv = [
        np.concatenate([own[:, :, :16], other[:, :, 16:]], axis=2) for own, other in zip(kv, other_kv, strict=True)
    ]
    assert await engine.holds("s", TOKENS, expected) == NUM_TOKENS


async def test_a_chunk_whose_inline_store_failed_is_refused_to_the_one_that_waited(depot: Site) -> None:
    engine = await depot.attach()
    kv = engine.kv(NUM_TOKENS, seed=1)
    first, second = InlineStore(depot.stub), InlineStore(depot.stub)
    await first.header(engine, "s", TOKENS)
    await first.data(b"garbage")
    await eventually(lambda: depot.num_being_stored() == 1)
    await second.header(engine, "t", TOKENS)
    for chunk in canonical(kv, CHUNK_SIZE):
        await second.data(chunk)
    await eventually(lambda: depot.num_being_stored() == 4)
    answering = asyncio.create_task(second.complete())
    first.cancel()
    answer = await answering
    assert (answer.stored_tokens, answer.refused_tokens, answer.resident_tokens) == (48, 16, 0)
    assert (await engine.attachment.store_inline("t", TOKENS, canonical(kv, CHUNK_SIZE))).stored_tokens == 16
    assert await engine.holds("s", TOKENS, kv) == NUM_TOKENS
