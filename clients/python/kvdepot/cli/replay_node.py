"""One node of a replay: a depot, an engine that is attached to it, and the tiers behind it, which are waited for."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable

from kvdepot import AsyncAttachment, AsyncDepotClient
from kvdepot.cli.request_trace import BLOCK_TOKENS
from kvdepot.cli.tiers import name_of, state_of, why_not_used
from kvdepot.v1 import admin_pb2, cache_pb2

PAGE_BYTES = 4096
CHUNK_BYTES = 2 * BLOCK_TOKENS * 4
"""Bytes of a chunk of 512 tokens of the replay's model, which has K and V of one head of one 4-byte element.

This is a page of memory, so that an L1 of N times this size holds exactly N chunks.
"""

OPEN_SECONDS = 60.0
DRAIN_SECONDS = 60.0
_FIRST_POLL_SECONDS = 0.0005
_LONGEST_POLL_SECONDS = 0.05


def words_per_token(block_tokens: int) -> int:
    """Return how many 4-byte elements K, and V, of a token have, so that a chunk has whole pages of memory."""
    half_page_words = PAGE_BYTES // 8
    return half_page_words // math.gcd(block_tokens, half_page_words)


def chunk_bytes_of(block_tokens: int) -> int:
    """Return the bytes of a chunk of so many tokens."""
    return 2 * block_tokens * words_per_token(block_tokens) * 4


class ReplayFailed(Exception):
    """A depot has another size than expected, returned wrong bytes, or has a tier that can't be used."""


class Node:
    """A depot as the player uses it. `number` counts from 1."""

    def __init__(self, number: int, client: AsyncDepotClient, attachment: AsyncAttachment) -> None:
        self.number = number
        self.attachment = attachment
        self._client = client
        self._has_tiers = False

    def __repr__(self) -> str:
        return f"<Node {self.number}, {self.attachment!r}>"

    async def check(self, l1_chunks: int, block_tokens: int = BLOCK_TOKENS) -> None:
        """Check that the depot holds so many chunks of so many tokens, and wait until its tiers are open.

        Raises: ReplayFailed, DepotError.
        """
        attachment = self.attachment
        chunk_bytes = chunk_bytes_of(block_tokens)
        if (attachment.chunk_size, attachment.chunk_bytes) != (block_tokens, chunk_bytes):
            raise ReplayFailed(
                f"the depot's chunks are {attachment.chunk_size} tokens of {attachment.chunk_bytes} bytes"
            )
        status = await self._client.get_status()
        capacity_bytes = status.tiers[0].capacity_bytes
        if capacity_bytes != l1_chunks * chunk_bytes:
            raise ReplayFailed(f"the depot's L1 holds {capacity_bytes / chunk_bytes:g} chunks, not {l1_chunks}")
        self._has_tiers = len(status.tiers) > 1
        waiting = await self._until(_is_open_or_broken, OPEN_SECONDS)
        for tier in waiting or await self.tiers():
            if tier.state != admin_pb2.TIER_STATE_AVAILABLE:
                raise ReplayFailed(f"the tier {name_of(tier)} of node {self.number} {why_not_used(tier)}")

    async def written(self) -> None:
        """Wait until the tiers have what they were given. What a replay finds does not depend on their speed then.

        Raises: ReplayFailed, DepotError.
        """
        for tier in await self._until(_has_written, DRAIN_SECONDS):
            traffic = tier.traffic
            raise ReplayFailed(
                f"the tier {name_of(tier)} of node {self.number} ({state_of(tier)}) still has "
                f"{traffic.num_queued_writes + traffic.num_running_writes} chunks to write after {DRAIN_SECONDS:g} s"
            )

    async def tiers(self) -> list[admin_pb2.TierStatus]:
        """Return the tiers behind L1."""
        status = await self._client.get_status()
        return [tier for tier in status.tiers if tier.tier == cache_pb2.TIER_L2]

    async def _until(
        self, is_so: Callable[[admin_pb2.TierStatus], bool], timeout_seconds: float
    ) -> list[admin_pb2.TierStatus]:
        """Wait until something is so for all tiers. Return those for which it is not, after the timeout."""
        if not self._has_tiers:
            return []
        deadline = time.monotonic() + timeout_seconds
        poll_seconds = _FIRST_POLL_SECONDS
        while others := [tier for tier in await self.tiers() if not is_so(tier)]:
            if time.monotonic() > deadline:
                break
            await asyncio.sleep(poll_seconds)
            poll_seconds = min(2 * poll_seconds, _LONGEST_POLL_SECONDS)
        return others


def _is_open_or_broken(tier: admin_pb2.TierStatus) -> bool:
    """Return whether a tier is open, or can't be opened as it is set up."""
    return tier.state in (admin_pb2.TIER_STATE_AVAILABLE, admin_pb2.TIER_STATE_UNUSABLE)


def _has_written(tier: admin_pb2.TierStatus) -> bool:
    return not tier.traffic.num_queued_writes and not tier.traffic.num_running_writes
