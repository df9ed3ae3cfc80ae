"""A healthy client during the fuzzed calls: it stores, finds and checks its own data, and times each of its calls.

``python -m tests.fuzz.witness ADDRESS`` goes on until its standard input ends. It writes a line of JSON for each fault,
for each call that took long, and at the end for what it did.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Awaitable
from typing import Any, TypeVar

import numpy as np

from kvdepot import AsyncAttachment, AsyncDepotClient, DepotError, KvShape, SharedBuffer
from kvdepot.layout import layouts
from tests.fuzz.things import WITNESS

PAUSE_SECONDS = 0.02
CHECK_EVERY = 5
SLOW_SECONDS = 0.25
TIMEOUT_SECONDS = 120.0
NUM_PROMPTS = 8
NUM_TOKENS = 48
BLOCK_SIZE = 4
# Calls of others may clear the cache and end leases; that is what ClearCache is for.
DISTURBANCES = {"LEASE_REVOKED", "LEASE_EXPIRED", "LEASE_RELEASED"}

T = TypeVar("T")


class WrongBytes(Exception):
    """The retrieved bytes differ from the stored bytes."""


class Witness:
    """One engine with known bytes in its blocks."""

    def __init__(self, client: AsyncDepotClient, attachment: AsyncAttachment, blocks: Any) -> None:
        self._client = client
        self._attachment = attachment
        self._blocks = blocks  # [blocks, bytes of a block], one plane after the other
        self._counts: Counter[str] = Counter()
        self._longest: dict[str, float] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Call until ``stop`` is set."""
        for number in itertools.count():
            if stop.is_set():
                break
            try:
                await self._timed("GetStatus", self._client.get_status(timeout_seconds=TIMEOUT_SECONDS))
                if number % CHECK_EVERY == 0:
                    await self._check(number // CHECK_EVERY % NUM_PROMPTS)
            except DepotError as error:
                if error.reason not in DISTURBANCES:
                    _say(fault=f"{error.code.name} {error.reason}: {error}")
                self._counts[error.reason] += 1
            except WrongBytes as wrong:
                _say(fault=f"wrong bytes: {wrong}")
            await asyncio.sleep(PAUSE_SECONDS)
        _say(counts=self._counts, longest=self._longest)

    async def _timed(self, rpc: str, call: Awaitable[T]) -> T:
        start = time.monotonic()
        try:
            return await call
        finally:
            seconds = time.monotonic() - start
            self._longest[rpc] = max(self._longest.get(rpc, 0.0), seconds)
            self._counts[rpc] += 1
            if seconds > SLOW_SECONDS:
                _say(slow=seconds, rpc=rpc)

    async def _check(self, prompt: int) -> None:
        """Store a prompt unless it is there, get it back into other blocks, and compare each byte."""
        session_id = f"{WITNESS}-{prompt}"
        tokens = list(range(prompt * 1000, prompt * 1000 + NUM_TOKENS))
        content = _content(prompt, self._blocks.shape[1:])
        num_blocks = NUM_TOKENS // BLOCK_SIZE
        here, there = list(range(num_blocks)), list(range(num_blocks, 2 * num_blocks))
        self._blocks[here] = content
        engine = self._attachment
        timeout: dict[str, Any] = {"timeout_seconds": TIMEOUT_SECONDS}
        await self._timed("Store", engine.store(session_id, tokens, [here], **timeout))
        found = await self._timed("Lookup", engine.lookup(session_id, tokens, **timeout))
        if found.HasField("lease"):
            num_blocks = found.matched_tokens // BLOCK_SIZE
            self._blocks[:] = 0xEE
            await self._timed("Retrieve", engine.retrieve(session_id, found.lease, [there[:num_blocks]], **timeout))
            if not np.array_equal(self._blocks[there[:num_blocks]], content[:num_blocks]):
                raise WrongBytes(f"prompt {prompt}, {found.matched_tokens} tokens")
            if (self._blocks[here] != 0xEE).any() or (self._blocks[2 * len(here) :] != 0xEE).any():
                raise WrongBytes(f"prompt {prompt}: blocks that were not named have changed")
            self._counts["compared bytes"] += content[:num_blocks].nbytes
        await self._timed("EndSession", engine.end_session(session_id, **timeout))


def _content(prompt: int, shape: tuple[int, ...]) -> Any:
    return np.random.default_rng(prompt).integers(0, 256, (NUM_TOKENS // BLOCK_SIZE, *shape), np.uint8)


def _say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)  # noqa: T201 - the fuzzer reads it


async def watch(address: str) -> None:
    """Be a healthy client until standard input ends."""
    layout = layouts.NB_NL_TWO_BS_NH_HS
    shape = KvShape(num_layers=2, num_blocks=64, block_size=BLOCK_SIZE, num_heads=2, head_size=16, dtype="uint8")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), stop.set)
    with SharedBuffer.create(layout.size_bytes(shape)) as buffer:
        async with AsyncDepotClient(address) as client:
            attachment = await client.attach(
                instance_id=WITNESS,
                model_name=WITNESS,
                groups=[layout.from_shape(shape)],
                regions=[buffer.region],
                timeout_seconds=TIMEOUT_SECONDS,
            )
            _say(ready=True)
            await Witness(client, attachment, buffer.array.reshape(shape.num_blocks, -1)).run(stop)


if __name__ == "__main__":
    asyncio.run(watch(sys.argv[1]))
