"""Plays the requests of a trace to depots through their RPCs, with KV so small that an hour takes minutes."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from kvdepot import AsyncDepotClient, KvShape, SharedBuffer, token_prefix
from kvdepot.cli.lru_models import HashIds
from kvdepot.cli.replay_node import Node, ReplayFailed, chunk_bytes_of, words_per_token
from kvdepot.cli.request_trace import BLOCK_TOKENS, token_ids
from kvdepot.layout import layouts
from kvdepot.v1 import admin_pb2, cache_pb2

CALL_SECONDS = 120.0
"""The limit of a call. The depot waits for a tier for less time, also on a busy machine."""
_POISON = 0xFFFF_FFFF

Blocks = npt.NDArray[np.uint32]
Response = TypeVar("Response")


@dataclass(kw_only=True)
class Replayed:
    """The counts of the played requests. `rpc_seconds` has the duration of every call, by RPC.

    A hit is a block that came back, `l2_hit_blocks` are those that were on their way from a tier. `blocks_before_hits`
    is the sum over all hits of the number of blocks before them in their prompts. `cut_hits` counts
    the requests that a tier gave no answer to, or not all that it has, by reason. `tiers[node]` is how the tiers of
    each node were at the end.
    """

    num_requests: int = 0
    num_blocks: int = 0
    hit_blocks: int = 0
    l2_hit_blocks: int = 0
    blocks_before_hits: int = 0
    stored_blocks: int = 0
    refused_blocks: int = 0
    cut_hits: Counter[str] = field(default_factory=Counter)
    tiers: list[list[admin_pb2.TierStatus]] = field(default_factory=list)
    duration_seconds: float = 0.0
    rpc_seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


async def replay_trace(
    addresses: Sequence[str],
    requests: Sequence[HashIds],
    routes: Sequence[int],
    *,
    l1_chunks: int,
    concurrency: int,
    on_request: Callable[[], None],
    block_tokens: int = BLOCK_TOKENS,
    outputs: Sequence[HashIds] = (),
) -> Replayed:
    """Play every request, `concurrency` of them at a time, to depots with an L1 of `l1_chunks` each.

    `routes` has the place of each request's depot in `addresses`. `outputs[request]` has the blocks that a request
    stores behind its prompt; it may be empty for all. A request ends when the tiers have what it gave them.

    Raises: ReplayFailed, DepotError.
    """
    outputs = outputs or [()] * len(requests)
    max_blocks = max(1, *(len(prompt) + len(output) for prompt, output in zip(requests, outputs, strict=True)))
    shape = KvShape(
        num_layers=1,
        num_blocks=max_blocks * concurrency,
        block_size=block_tokens,
        num_heads=1,
        head_size=words_per_token(block_tokens),
        dtype="uint32",
    )
    layout = layouts.NB_NL_TWO_BS_NH_HS
    replay_id = f"replay-{uuid4()}"
    async with AsyncExitStack() as stack:
        buffer = stack.enter_context(SharedBuffer.create(layout.size_bytes(shape)))
        nodes: list[Node] = []
        for number, address in enumerate(addresses, start=1):
            client = await stack.enter_async_context(AsyncDepotClient(address, timeout_seconds=CALL_SECONDS))
            attaching = client.attach(
                instance_id=f"{replay_id}-{number}",
                model_name="replay",
                model_revision=replay_id,  # a shared tier may have the chunks of an earlier replay
                chunk_size=block_tokens,
                groups=[layout.from_shape(shape)],
                regions=[buffer.region],
            )
            node = Node(number, client, await stack.enter_async_context(await attaching))
            await node.check(l1_chunks, block_tokens)
            nodes.append(node)
        blocks: Blocks = buffer.view(np.uint32, (shape.num_blocks, chunk_bytes_of(block_tokens) // 4))
        player = _Player(nodes, requests, outputs, routes, block_tokens, on_request)
        start = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as workers:
                for first_block in range(0, shape.num_blocks, max_blocks):
                    workers.create_task(player.work(blocks[first_block:], first_block))
        except ExceptionGroup as failures:  # the first failure ends the other workers
            raise failures.exceptions[0] from None
        player.replayed.duration_seconds = time.perf_counter() - start
        player.replayed.tiers = [await node.tiers() for node in nodes]
        return player.replayed


class _Player:
    """A player that takes the requests of a trace in order, and plays each to its end."""

    def __init__(
        self,
        nodes: Sequence[Node],
        requests: Sequence[HashIds],
        outputs: Sequence[HashIds],
        routes: Sequence[int],
        block_tokens: int,
        on_request: Callable[[], None],
    ) -> None:
        self._nodes = nodes
        self._requests = zip(requests, outputs, routes, strict=True)
        self._block_tokens = block_tokens
        self._on_request = on_request
        self.replayed = Replayed()

    async def work(self, blocks: Blocks, first_block: int) -> None:
        """Play requests until none is left, through blocks that no other worker uses."""
        replayed = self.replayed
        for hash_ids, output, place in self._requests:
            replayed.num_requests += 1
            replayed.num_blocks += len(hash_ids)
            if hash_ids or output:
                node = self._nodes[place]
                session_id = f"request-{replayed.num_requests}"
                await self._play(node, session_id, hash_ids, output, blocks, first_block)
                await node.written()
            self._on_request()

    async def _play(
        self, node: Node, session_id: str, hash_ids: HashIds, output: HashIds, blocks: Blocks, first_block: int
    ) -> None:
        """Do the work of an engine: look the prompt up, retrieve the match, "compute" and store the rest."""
        attachment, replayed, block_tokens = node.attachment, self.replayed, self._block_tokens
        stored_ids = hash_ids + output
        blocks = blocks[: len(stored_ids)]
        prefix = token_prefix(token_ids(stored_ids, block_tokens))
        block_ids = range(first_block, first_block + len(stored_ids))
        contents = _contents(stored_ids, blocks.shape[1])

        matched = 0
        if hash_ids:
            prompt = token_prefix(token_ids(hash_ids, block_tokens)) if output else prefix
            found = await self._timed("Lookup", attachment.lookup(session_id, prompt))
            if found.miss.tier == cache_pb2.TIER_L2:
                self._note_miss(found.miss)
            matched = found.matched_tokens // block_tokens
        valid = 0
        if matched:
            blocks[:] = _POISON
            retrieving = attachment.retrieve(session_id, found.lease, [block_ids[:matched]], accept_partial=True)
            retrieved = await self._timed("Retrieve", retrieving)
            if retrieved.HasField("miss"):
                self._note_miss(retrieved.miss)
            valid = retrieved.valid_tokens // block_tokens
            if not np.array_equal(blocks[:valid], contents[:valid]):
                raise ReplayFailed(f"{session_id}: the {valid} blocks that came back do not hold what was stored")
            replayed.hit_blocks += valid
            replayed.blocks_before_hits += valid * (valid - 1) // 2
            replayed.l2_hit_blocks += retrieved.l2_tokens // block_tokens
        if valid < len(stored_ids):
            blocks[valid:] = contents[valid:]
            store = attachment.store(session_id, prefix, [block_ids[valid:]], start_token=valid * block_tokens)
            stored = await self._timed("Store", store)
            replayed.stored_blocks += stored.stored_tokens // block_tokens
            replayed.refused_blocks += stored.refused_tokens // block_tokens
        await self._timed("EndSession", attachment.end_session(session_id))

    def _note_miss(self, miss: cache_pb2.Miss) -> None:
        self.replayed.cut_hits[cache_pb2.MissReason.Name(miss.reason).removeprefix("MISS_REASON_").lower()] += 1

    async def _timed(self, rpc: str, call: Awaitable[Response]) -> Response:
        start = time.perf_counter()
        response = await call
        self.replayed.rpc_seconds[rpc].append(time.perf_counter() - start)
        return response


def _contents(hash_ids: HashIds, words: int) -> Blocks:
    """Return the contents of a prompt's blocks, `[blocks, words]`. A word is made of the block's id and its offset."""
    ids = np.array(hash_ids, dtype=np.int64)[:, np.newaxis]
    return (ids * words + np.arange(words)).astype(np.uint32)
