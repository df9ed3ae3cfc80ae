"""From the start of the process to SERVING: with new memory, and with a file of chunks that an earlier depot left."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import grpc
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks import servers
from benchmarks.figures import Figure, Goal
from kvdepot import AsyncDepotClient, KvShape, SharedBuffer
from kvdepot.layout import layouts

ROUNDS = 5
GIB = 1 << 30
SIZES = {"1GiB": GIB, "16GiB": 16 * GIB}
SMALL_MODEL = KvShape(num_layers=24, num_blocks=512, block_size=16, num_heads=2, head_size=64, dtype="bfloat16")
"""A model of half a billion weights: its chunk of 256 tokens has 3 MiB, so that L1 has many."""
CHUNK_BYTES, CHUNK_TOKENS, PROMPT_TOKENS = 3 << 20, 256, 8_192


async def measure() -> list[Figure]:
    """Measure seconds for a small and a large L1. New memory is populated in the background."""
    figures: list[Figure] = []
    for size in SIZES:
        seconds = [await _seconds("--l1-size", size) for _ in range(ROUNDS)]
        figures.append(Figure(what=f"start to SERVING, L1 of {size}", unit="s", values=seconds, goal=Goal(at_most=2.0)))
    for size, num_bytes in SIZES.items():
        with tempfile.TemporaryDirectory(prefix="kvdepot-", dir="/dev/shm") as folder:
            flags = ("--l1-size", size, "--l1-file", str(Path(folder) / "l1"))
            num_chunks = await _fill(num_bytes, *flags)
            seconds = [await _seconds(*flags, num_chunks=num_chunks) for _ in range(ROUNDS)]
        what = f"start to SERVING, {size} of {num_chunks:,} chunks adopted"
        figures.append(Figure(what=what, unit="s", values=seconds, goal=Goal(at_most=2.0)))
    return figures


async def _seconds(*flags: str, num_chunks: int = 0) -> float:
    """Start a depot, which has so many chunks, and end it. Return the seconds until it served."""
    begin = time.perf_counter()
    with servers.depot(*flags) as depot:
        async with grpc.aio.insecure_channel(depot.unix) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        seconds = time.perf_counter() - begin
        async with AsyncDepotClient(depot.unix) as client:
            assert (await client.get_status()).num_adopted_chunks == num_chunks
    return seconds


async def _fill(num_bytes: int, *flags: str) -> int:
    """Fill the L1 of a depot with chunks, and end it. Return their number."""
    layout = layouts.NL_X_TWO_NB_BS_NH_HS
    num_chunks = num_bytes // CHUNK_BYTES
    with servers.depot(*flags) as depot, SharedBuffer.create(layout.size_bytes(SMALL_MODEL)) as buffer:
        buffer.array[:] = 1
        async with (
            AsyncDepotClient(depot.unix) as client,
            await client.attach(
                instance_id="bench",
                model_name="bench",
                groups=[layout.from_shape(SMALL_MODEL)],
                regions=[buffer.region],
            ) as attachment,
        ):
            blocks = np.arange(SMALL_MODEL.num_blocks)
            for number in range(-(-num_chunks * CHUNK_TOKENS // PROMPT_TOKENS)):
                num_tokens = min(PROMPT_TOKENS, num_chunks * CHUNK_TOKENS - number * PROMPT_TOKENS)
                prompt = np.random.default_rng(number).integers(0, 2**31, num_tokens, dtype=np.uint32)
                await attachment.store(str(number), prompt, [blocks[: num_tokens // SMALL_MODEL.block_size]])
    return num_chunks
