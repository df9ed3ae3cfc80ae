"""``python -m benchmarks.storing ADDRESS``: an engine that stores prompts of 8,192 tokens, one after the other."""

from __future__ import annotations

import itertools
import sys

import numpy as np
import uvloop

from benchmarks import servers
from kvdepot import AsyncDepotClient, KvShape, SharedBuffer
from kvdepot.layout import layouts

TOKENS = 8_192
LLAMA_3_8B = KvShape(num_layers=32, num_blocks=1_024, block_size=16, num_heads=8, head_size=128, dtype="bfloat16")


async def store_for_ever(address: str) -> None:
    """Store new prompts without end; L1 evicts the oldest."""
    layout = layouts.NL_X_TWO_NB_BS_NH_HS
    rng = np.random.default_rng(0)
    with SharedBuffer.create(layout.size_bytes(LLAMA_3_8B)) as buffer:
        buffer.array[:] = 1
        async with (
            AsyncDepotClient(address) as client,
            await client.attach(
                instance_id="storing",
                model_name="llama-3-8b",
                groups=[layout.from_shape(LLAMA_3_8B)],
                regions=[buffer.region],
            ) as attachment,
        ):
            await servers.until_populated(client)
            print("ready", flush=True)  # for the parent process
            for number in itertools.count():
                prompt = rng.integers(0, 128_000, TOKENS, dtype=np.uint32)
                blocks = rng.permutation(LLAMA_3_8B.num_blocks)[: TOKENS // LLAMA_3_8B.block_size]
                await attachment.store(str(number), prompt, [blocks])
                await attachment.end_session(str(number))


if __name__ == "__main__":
    uvloop.run(store_for_ever(sys.argv[1]))
