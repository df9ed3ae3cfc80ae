"""Plays the requests of a trace to a depot through its RPCs, with KV so small that an hour of traffic takes minutes."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from kvdepot import AsyncAttachment, AsyncDepotClient, KvShape, SharedBuffer, token_prefix
from kvdepot.cli.request_trace import BLOCK_TOKENS, PlainLru, token_ids
from kvdepot.layout import layouts

CHUNK_BYTES = 2 * BLOCK_TOKENS * 4
"""Bytes of a chunk of the replay's model, which has K and V of one head of one 4-byte element.

This is a page of memory, so that an L1 of N times this size holds exactly N chunks.
"""

_POISON = 0xFFFF_FFFF

Blocks = npt.NDArray[np.uint32]
Response = TypeVar("Response")


class ReplayFailed(Exception):
    """The depot has another size than expected, or returned wrong bytes."""


@dataclass(kw_only=True)
class Replayed:
    """The counts of the played requests. `rpc_seconds` has the duration of every call, by RPC."""

    num_requests: int = 0
    num_blocks: int = 0
    hit_blocks: int = 0
    plain_lru_hit_blocks: int = 0
    refused_blocks: int = 0
    duration_seconds: float = 0.0
    rpc_seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


async def replay_trace(
    address: str,
    requests: Sequence[tuple[int, ...]],
    *,
    l1_chunks: int,
    concurrency: int,
    on_request: Callable[[], None],
) -> Replayed:
    """Play every request, `concurrency` of them at a time, to a depot with an L1 of `l1_chunks`.

    Raises: ReplayFailed, DepotError.
    """
    max_blocks = max(1, *map(len, requests))
    shape = KvShape(
        num_layers=1,
        num_blocks=max_blocks * concurrency,
        block_size=BLOCK_TOKENS,
        num_heads=1,
        head_size=1,
        dtype="uint32",
    )
    layout = layouts.NB_NL_TWO_BS_NH_HS
    async with AsyncDepotClient(address) as client:
        with SharedBuffer.create(layout.size_bytes(shape)) as buffer:
            attachment = await client.attach(
                instance_id=f"replay-{uuid4()}",
                model_name="replay",
                groups=[layout.from_shape(shape)],
                regions=[buffer.region],
            )
            async with attachment:
                await _check_capacity(client, attachment, l1_chunks)
                blocks: Blocks = buffer.view(np.uint32, (shape.num_blocks, 2 * BLOCK_TOKENS))
                player = _Player(attachment, requests, PlainLru(l1_chunks), on_request)
                start = time.perf_counter()
                try:
                    async with asyncio.TaskGroup() as workers:
                        for first_block in range(0, shape.num_blocks, max_blocks):
                            workers.create_task(player.work(blocks[first_block:], first_block))
                except ExceptionGroup as failures:  # the first failure ends the other workers
                    raise failures.exceptions[0] from None
                player.replayed.duration_seconds = time.perf_counter() - start
                return player.replayed


async def _check_capacity(client: AsyncDepotClient, attachment: AsyncAttachment, l1_chunks: int) -> None:
    if (attachment.chunk_size, attachment.chunk_bytes) != (BLOCK_TOKENS, CHUNK_BYTES):
        raise ReplayFailed(f"the depot's chunks are {attachment.chunk_size} tokens of {attachment.chunk_bytes} bytes")
    status = await client.get_status()
    capacity_bytes = status.tiers[0].capacity_bytes
    if capacity_bytes != l1_chunks * CHUNK_BYTES:
        raise ReplayFailed(f"the depot's L1 holds {capacity_bytes / CHUNK_BYTES:g} chunks, not {l1_chunks}")


class _Player:
    """A player that takes the requests of a trace in order, and plays each to its end."""

    def __init__(
        self,
        attachment: AsyncAttachment,
        requests: Sequence[tuple[int, ...]],
        plain_lru: PlainLru,
        on_request: Callable[[], None],
    ) -> None:
        self._attachment = attachment
        self._requests = iter(requests)
        self._plain_lru = plain_lru
        self._on_request = on_request
        self.replayed = Replayed()

    async def work(self, blocks: Blocks, first_block: int) -> None:
        """Play requests until none is left, through blocks that no other worker uses."""
        replayed = self.replayed
        for hash_ids in self._requests:
            replayed.num_requests += 1
            replayed.num_blocks += len(hash_ids)
            replayed.plain_lru_hit_blocks += self._plain_lru.request(hash_ids)
            if hash_ids:
                await self._play(f"request-{replayed.num_requests}", hash_ids, blocks[: len(hash_ids)], first_block)
            self._on_request()

    async def _play(self, session_id: str, hash_ids: tuple[int, ...], blocks: Blocks, first_block: int) -> None:
        """Do the work of an engine: look the prompt up, retrieve the match, "compute" and store the rest."""
        attachment, replayed = self._attachment, self.replayed
        prefix = token_prefix(token_ids(hash_ids))
        block_ids = range(first_block, first_block + len(hash_ids))
        contents = _contents(hash_ids)

        found = await self._timed("Lookup", attachment.lookup(session_id, prefix))
        matched = found.matched_tokens // BLOCK_TOKENS
        replayed.hit_blocks += matched
        if matched:
            blocks[:] = _POISON
            await self._timed("Retrieve", attachment.retrieve(session_id, found.lease, [block_ids[:matched]]))
            if not np.array_equal(blocks[:matched], contents[:matched]):
                raise ReplayFailed(f"{session_id}: the {matched} blocks that came back do not hold what was stored")
        if matched < len(hash_ids):
            blocks[matched:] = contents[matched:]
            store = attachment.store(session_id, prefix, [block_ids[matched:]], start_token=found.matched_tokens)
            stored = await self._timed("Store", store)
            replayed.refused_blocks += stored.refused_tokens // BLOCK_TOKENS
        await self._timed("EndSession", attachment.end_session(session_id))

    async def _timed(self, rpc: str, call: Awaitable[Response]) -> Response:
        start = time.perf_counter()
        response = await call
        self.replayed.rpc_seconds[rpc].append(time.perf_counter() - start)
        return response


def _contents(hash_ids: tuple[int, ...]) -> Blocks:
    """Return the contents of a prompt's blocks, `[blocks, 1024]`. A word is made of the block's id and its offset."""
    ids = np.array(hash_ids, dtype=np.int64)[:, np.newaxis]
    return (ids * 2 * BLOCK_TOKENS + np.arange(2 * BLOCK_TOKENS)).astype(np.uint32)
