"""The longest messages there are, as the bytes that go over the wire: those of engines, and those of attackers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager

import grpc
import numpy as np

from kvdepot import AsyncAttachment, AsyncDepotClient, SharedBuffer, SharedRegions
from kvdepot.layout import layouts
from kvdepot.requests import allocation_record
from kvdepot.v1 import cache_pb2, observability_pb2
from kvdepot.wire import with_ids

ATTACH = "/kvdepot.v1.CacheService/AttachInstance"
LOOKUP = "/kvdepot.v1.CacheService/Lookup"
STORE = "/kvdepot.v1.CacheService/Store"
REPORT = "/kvdepot.v1.ObservabilityService/ReportBlockAllocation"

INSTANCE = "long"
BLOCK_SIZE = 16
NUM_BLOCKS = 64
MAX_BYTES = (16 << 20) - 1024
NUM_TOKENS = 3_900_000
"""Of a prompt: with its block table it fits into a message as the depot takes them by default."""


@asynccontextmanager
async def attached(client: AsyncDepotClient) -> AsyncIterator[AsyncAttachment]:
    """Attach an engine with a few small blocks; a chunk of 256 tokens has 512 bytes."""
    buffer = SharedBuffer.create(1 << 20)
    shared = SharedRegions()
    shared.add(buffer)
    blocks = buffer.array[: 2 * NUM_BLOCKS * BLOCK_SIZE].reshape(2, NUM_BLOCKS, BLOCK_SIZE, 1, 1)
    groups = [layouts.NL_X_TWO_NB_BS_NH_HS.from_tensors([blocks], shared)]
    attachment = await client.attach(instance_id=INSTANCE, model_name="m", groups=groups, regions=shared.regions)
    try:
        yield attachment
    finally:
        await attachment.close()
        buffer.close()


async def answer(channel: grpc.aio.Channel, method: str, wire: bytes) -> bytes:
    """Return the answer to a call, as bytes. Raises: grpc.aio.AioRpcError."""
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
    return await call(wire, timeout=120.0)


def token_prefix(num_tokens: int = NUM_TOKENS) -> cache_pb2.Prefix:
    """Return token ids of a long prompt, always the same."""
    tokens = np.random.default_rng(0).integers(0, 1 << 17, num_tokens, np.uint32)
    return with_ids(cache_pb2.Prefix(), token_ids=tokens)


def hash_prefix(num_hashes: int, num_bytes: int) -> cache_pb2.Prefix:
    """Block hashes of a long prompt, always the same."""
    hashes = np.random.default_rng(3).bytes(num_hashes * num_bytes)
    return cache_pb2.Prefix(
        block_hashes=[hashes[at : at + num_bytes] for at in range(0, len(hashes), num_bytes)],
        hash_block_size=BLOCK_SIZE,
    )


def lookup(prefix: cache_pb2.Prefix, session_id: str = "s") -> bytes:
    """Return a LookupRequest."""
    return cache_pb2.LookupRequest(instance_id=INSTANCE, session_id=session_id, prefix=prefix).SerializeToString()


def store(prefix: cache_pb2.Prefix, num_tokens: int) -> bytes:
    """Return a StoreRequest, from any blocks."""
    block_ids = np.arange(num_tokens // BLOCK_SIZE, dtype=np.uint32) % NUM_BLOCKS
    tables = [with_ids(cache_pb2.BlockTable(), block_ids=block_ids)]
    return cache_pb2.StoreRequest(
        instance_id=INSTANCE, session_id="s", prefix=prefix, block_tables=tables
    ).SerializeToString()


def attach(num_planes: int) -> bytes:
    """Return an AttachInstanceRequest of one group."""
    plane = cache_pb2.Plane(layer=1, kind=cache_pb2.PLANE_KIND_K, offset_bytes=5)
    group = cache_pb2.KvGroup(
        num_layers=1, num_blocks=1, block_size=1, num_heads=1, head_bytes=1, dtype="uint8", planes=[plane] * num_planes
    )
    return cache_pb2.AttachInstanceRequest(
        instance_id="other", model_name="m", world_size=1, groups=[group]
    ).SerializeToString()


def report(records: Iterable[observability_pb2.BlockAllocationRecord], block_size: int = BLOCK_SIZE) -> bytes:
    """Return a ReportBlockAllocationRequest."""
    return observability_pb2.ReportBlockAllocationRequest(
        instance_id=INSTANCE, model_name="m", block_size=block_size, records=records
    ).SerializeToString()


def new_sessions(num_records: int, prefix: str = "") -> Iterator[observability_pb2.BlockAllocationRecord]:
    """Return a record of each of some new sessions."""
    return (observability_pb2.BlockAllocationRecord(session_id=f"{prefix}{number:x}") for number in range(num_records))


def long_record(num_tokens: int, *, num_different: int | None = None) -> observability_pb2.BlockAllocationRecord:
    """Return a whole prompt in one record, with some different blocks."""
    block_ids = np.arange(num_tokens // BLOCK_SIZE, dtype=np.uint32) % (num_different or num_tokens)
    tokens = np.arange(num_tokens, dtype=np.uint32)
    return allocation_record("long", block_ids=block_ids, token_ids=tokens, reused_block_ids=[])


def one_token_blocks(num_blocks: int) -> observability_pb2.BlockAllocationRecord:
    """Return a table of blocks with a token each; few blocks are different."""
    return allocation_record("long", block_ids=np.arange(num_blocks, dtype=np.uint32) % 7, token_ids=[])


def repeated(field: bytes, within: bytes = b"") -> bytes:
    """Return a field over and over, to the longest message; `within` is the tag of the message that has it."""
    payload = field * (MAX_BYTES // len(field))
    if not within:
        return payload
    length, rest = b"", len(payload)
    while rest > 0x7F:
        length, rest = length + bytes([rest & 0x7F | 0x80]), rest >> 7
    return within + length + bytes([rest]) + payload
