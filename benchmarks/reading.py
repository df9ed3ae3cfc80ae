"""``python -m benchmarks.reading ADDRESS``: an engine that reads prompts all the time, and computes what is not found.

With `L1_SIZE`, L1 has space for half of the prompts, so that a tier has to read them.
"""

from __future__ import annotations

import asyncio
import itertools
import sys

import numpy as np
import uvloop

from benchmarks import servers
from kvdepot import AsyncDepotClient, DepotError, KvShape, SharedBuffer
from kvdepot.layout import layouts

TOKENS = 1_024
NUM_PROMPTS = 8
L1_SIZE = "512MiB"
"""Of a depot with a tier. A prompt has 128 MiB."""
LARGE_L1_SIZE = "1536MiB"
"""Of a depot that has all prompts in L1."""
PREFILL_TOKENS_PER_SECOND = 20_000
"""Of the engine, which sleeps as long as it would compute."""
LLAMA_3_8B = KvShape(num_layers=32, num_blocks=64, block_size=16, num_heads=8, head_size=128, dtype="bfloat16")


async def read_for_ever(address: str) -> None:
    """Store prompts, then look them up and retrieve them in turn without end."""
    layout = layouts.NL_X_TWO_NB_BS_NH_HS
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 128_000, TOKENS, dtype=np.uint32) for _ in range(NUM_PROMPTS)]
    blocks = np.arange(LLAMA_3_8B.num_blocks)
    with SharedBuffer.create(layout.size_bytes(LLAMA_3_8B)) as buffer:
        buffer.array[:] = 1
        async with (
            AsyncDepotClient(address) as client,
            await client.attach(
                instance_id="reading",
                model_name="llama-3-8b",
                groups=[layout.from_shape(LLAMA_3_8B)],
                regions=[buffer.region],
            ) as attachment,
        ):
            await servers.until_populated(client)
            has_tier = len((await client.get_status()).tiers) > 1
            if has_tier:
                await servers.until_available(client)
            num_chunks = TOKENS // attachment.chunk_size
            for number, prompt in enumerate(prompts):
                await attachment.store(f"store {number}", prompt, [blocks])
                await attachment.end_session(f"store {number}")
                if has_tier:
                    await servers.until_written(client, (number + 1) * num_chunks)
            print("ready", flush=True)  # for the parent process
            for number in itertools.count():
                session = str(number)
                found = await attachment.lookup(session, prompts[number % NUM_PROMPTS])
                await asyncio.sleep((TOKENS - found.matched_tokens) / PREFILL_TOKENS_PER_SECOND)
                if found.HasField("lease"):
                    num_blocks = found.matched_tokens // LLAMA_3_8B.block_size
                    try:
                        await attachment.retrieve(session, found.lease, [blocks[:num_blocks]])
                    except DepotError as error:  # the tier's server was stopped
                        print(error, file=sys.stderr, flush=True)
                await attachment.end_session(session)


if __name__ == "__main__":
    uvloop.run(read_for_ever(sys.argv[1]))
