"""Store and retrieve of scattered blocks through the real RPCs, beside one large memcpy with as many threads."""

from __future__ import annotations

import asyncio
import ctypes
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from rich.table import Table

from benchmarks.timing import seconds_of
from kvdepot import AsyncDepotClient, KvShape, SharedBuffer, layouts

THREADS = 2
ROUNDS = 7
LLAMA_3_8B = KvShape(num_layers=32, num_blocks=1_024, block_size=16, num_heads=8, head_size=128, dtype="bfloat16")
TOKENS = (256, 2_048, 8_192)


async def measure(address: str, table: Table) -> None:
    """Rounds of store, retrieve, memcpy, store, …; medians."""
    rng = np.random.default_rng(0)
    layout = layouts.NL_X_TWO_NB_BS_NH_HS
    with SharedBuffer.create(layout.size_bytes(LLAMA_3_8B)) as buffer:
        buffer.array[:] = 1
        copy = np.ones_like(buffer.array)
        async with (
            AsyncDepotClient(address) as client,
            await client.attach(
                instance_id="bench",
                model_name="llama-3-8b",
                groups=[layout.from_shape(LLAMA_3_8B)],
                regions=[buffer.region],
            ) as attachment,
        ):
            await _until_populated(client)
            for num_tokens in TOKENS:
                num_bytes = num_tokens * attachment.chunk_bytes // attachment.chunk_size
                stores, retrieves, copies = [], [], []
                for number in range(ROUNDS):
                    session = f"{num_tokens}-{number}"
                    prompt = rng.integers(0, 2**31, num_tokens, dtype=np.uint32)
                    blocks = [rng.permutation(LLAMA_3_8B.num_blocks)[: num_tokens // LLAMA_3_8B.block_size]]
                    stores.append(await seconds_of(attachment.store(session, prompt, blocks)))
                    lease = (await attachment.lookup(session, prompt)).lease
                    retrieves.append(await seconds_of(attachment.retrieve(session, lease, blocks)))
                    await attachment.end_session(session)
                    copies.append(_memcpy_seconds(copy, buffer.array, num_bytes))
                limit = num_bytes / statistics.median(copies) / 1e9
                for name, seconds in (("store", stores), ("retrieve", retrieves)):
                    rate = num_bytes / statistics.median(seconds) / 1e9
                    table.add_row(
                        f"{name}, {num_tokens:,} tokens, {num_bytes >> 20} MiB",
                        f"{rate:.2f} GB/s",
                        f"{limit:.2f} GB/s, memcpy",
                        f"{rate / limit:.2f}",
                    )


async def _until_populated(client: AsyncDepotClient) -> None:
    """Wait until L1 is in memory: its first touch is a figure of its own."""
    while (l1 := (await client.get_status()).tiers[0]).populated_bytes < l1.capacity_bytes:  # noqa: ASYNC110
        await asyncio.sleep(0.1)


def _memcpy_seconds(target: npt.NDArray[np.uint8], source: npt.NDArray[np.uint8], num_bytes: int) -> float:
    share = num_bytes // THREADS

    def copy(number: int) -> None:
        ctypes.memmove(target.ctypes.data + number * share, source.ctypes.data + number * share, share)

    with ThreadPoolExecutor(THREADS) as pool:
        begin = time.perf_counter()
        list(pool.map(copy, range(THREADS)))
        return time.perf_counter() - begin
