"""kvdepot's side: an engine that moves the same blocks and makes the same lookups, over TCP as the peer's does."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from benchmarks.peer import shapes
from benchmarks.servers import until_populated
from benchmarks.timing import seconds_of
from kvdepot import AsyncDepotClient, KvShape, SharedBuffer
from kvdepot.aio.attachment import AsyncAttachment
from kvdepot.layout import layouts

Ids = NDArray[np.int64]
Tokens = NDArray[np.uint32]

LAYOUT = layouts.NL_X_TWO_NB_BS_NH_HS
LARGE = KvShape(
    num_layers=shapes.NUM_LAYERS,
    num_blocks=shapes.NUM_BLOCKS,
    block_size=shapes.BLOCK_SIZE,
    num_heads=shapes.NUM_HEADS,
    head_size=shapes.HEAD_SIZE,
    dtype="bfloat16",
)
SMALL = KvShape(num_layers=1, num_blocks=1, block_size=16, num_heads=1, head_size=8, dtype="bfloat16")


class WrongBytes(Exception):
    """The retrieved bytes differ from the stored bytes."""


@dataclass(slots=True)
class DepotEngine:
    """An engine with a buffer, and an engine of a tiny model for lookups."""

    buffer: SharedBuffer
    large: AsyncAttachment
    small: AsyncAttachment
    names: itertools.count[int]
    _misses: Iterator[int] = field(default_factory=lambda: iter(range(shapes.MOST_MISSES)))

    @classmethod
    @asynccontextmanager
    async def attached(cls, address: str) -> AsyncIterator[DepotEngine]:
        """Attach both engines, and wait until L1 is populated."""
        with SharedBuffer.create(LAYOUT.size_bytes(LARGE)) as buffer:
            buffer.array[:] = 1
            groups, regions = [LAYOUT.from_shape(LARGE)], [buffer.region]
            async with (
                AsyncDepotClient(address) as client,
                await client.attach(instance_id="large", model_name="large", groups=groups, regions=regions) as large,
                await client.attach(
                    instance_id="small", model_name="small", groups=[LAYOUT.without_memory(SMALL)]
                ) as small,
            ):
                await until_populated(client)
                yield cls(buffer, large, small, itertools.count())

    async def move(self, tokens: Ids, blocks: Ids) -> tuple[float, float]:
        """Measure the seconds of a store and of a retrieve of one prompt."""
        session = str(next(self.names))
        begin = time.perf_counter()
        answer = await self.large.store(session, tokens, [blocks])
        store_seconds = time.perf_counter() - begin
        if answer.stored_tokens != len(tokens):
            raise WrongBytes(f"of {len(tokens)} tokens, {answer.stored_tokens} were stored")
        found = await self.large.lookup(session, tokens)
        if found.matched_tokens != len(tokens):
            raise WrongBytes(f"of {len(tokens)} tokens that were stored, {found.matched_tokens} were found")
        retrieve_seconds = await seconds_of(self.large.retrieve(session, found.lease, [blocks]))
        await self.large.end_session(session)
        return store_seconds, retrieve_seconds

    async def check(self, tokens: Ids, blocks: Ids, other_blocks: Ids) -> bool:
        """Return whether a prompt's bytes come back in other blocks."""
        session = str(next(self.names))
        planes = self.buffer.array.reshape(-1, shapes.NUM_BLOCKS, shapes.BLOCK_BYTES)
        random = np.random.default_rng()
        stored = random.integers(0, 256, (len(planes), len(blocks), shapes.BLOCK_BYTES), dtype=np.uint8)
        planes[:, blocks] = stored
        answer = await self.large.store(session, tokens, [blocks])
        if answer.stored_tokens != len(tokens):
            return False
        planes[:, blocks] = 0
        found = await self.large.lookup(session, tokens)
        await self.large.retrieve(session, found.lease, [other_blocks])
        await self.large.end_session(session)
        return np.array_equal(planes[:, other_blocks], stored)

    async def store_prompt(self) -> None:
        """Store the prompt that lookups find. Later stores can evict it."""
        num_bytes = self.small.chunk_bytes * shapes.LONG // shapes.CHUNK_SIZE
        await self.small.store_inline("stored", prompt(shapes.STORED, shapes.LONG), bytes(num_bytes))
        await self.small.end_session("stored")

    async def transact(self, first_token: int, num_tokens: int, clients: int, seconds: float) -> float:
        """Return the lookup transactions a second of some clients, each with one at a time.

        The session's end gives the lease back; LMCache's leaves the locks, so that its transaction has one more call.
        """
        expected = num_tokens if first_token == shapes.STORED else 0
        return await self._transact(itertools.repeat(prompt(first_token, num_tokens)), expected, clients, seconds)

    async def miss(self, num_tokens: int, clients: int, seconds: float) -> float:
        """Do the same with prompts that were never looked up before, so that no answer of a tier is known already."""
        absent = prompt(shapes.ABSENT, num_tokens + shapes.MOST_MISSES)
        prompts = (absent[first : first + num_tokens] for first in self._misses)
        return await self._transact(prompts, 0, clients, seconds)

    async def _transact(self, prompts: Iterator[Tokens], expected: int, clients: int, seconds: float) -> float:
        begin = time.perf_counter()

        async def client() -> int:
            num_done = 0
            while not num_done or time.perf_counter() < begin + seconds:
                session = str(next(self.names))
                found = await self.small.lookup(session, next(prompts))
                if found.matched_tokens != expected:
                    raise WrongBytes(f"{found.matched_tokens} tokens were found, not {expected}")
                await self.small.end_session(session)
                num_done += 1
            return num_done

        num_done = sum(await asyncio.gather(*(client() for _ in range(clients))))
        return num_done / (time.perf_counter() - begin)


def prompt(first_token: int, num_tokens: int) -> Tokens:
    """Return the same prompt as the driver's."""
    return np.arange(first_token, first_token + num_tokens, dtype=np.uint32)
