"""``python -m benchmarks.storing_blocks ADDRESS RATE``: an engine that stores RATE new blocks of 16 tokens a second."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time

import numpy as np
import uvloop

from benchmarks.probing import GROUPS, TINY
from kvdepot import AsyncDepotClient

TOKENS = 4_096
BLOCKS = TOKENS // TINY.block_size


async def store_for_ever(address: str, blocks_per_second: float) -> None:
    """Store new prompts without end. One that comes late is not made up for. L1 evicts the oldest."""
    rng = np.random.default_rng(0)
    async with (
        AsyncDepotClient(address) as client,
        await client.attach(instance_id="storing", model_name="tiny", groups=GROUPS) as attachment,
    ):
        content = bytes(attachment.chunk_bytes * TOKENS // attachment.chunk_size)
        print("ready", flush=True)  # for the parent process
        for number in itertools.count():
            begin = time.monotonic()
            prompt = rng.integers(0, 128_000, TOKENS, dtype=np.uint32)
            await attachment.store_inline(f"s{number % 100}", prompt, content)
            await asyncio.sleep(max(0.0, BLOCKS / blocks_per_second - (time.monotonic() - begin)))


if __name__ == "__main__":
    uvloop.run(store_for_ever(sys.argv[1], float(sys.argv[2])))
