"""``python -m benchmarks.flood ADDRESS RATE``: a scheduler that reports RATE block allocations a second."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time

import grpc
import numpy as np
import uvloop

from kvdepot import allocation_record
from kvdepot.v1.observability_pb2 import BlockAllocationRecord, ReportBlockAllocationRequest

METHOD = "/kvdepot.v1.ObservabilityService/ReportBlockAllocation"
BLOCK_SIZE = 16
NUM_BLOCKS = 50_000
RECORD_BLOCKS = (16, 32, 64, 128, 264, 512)
STEP_SECONDS = 0.01
NUM_REPORTS = 200  # made beforehand, so that this process costs little beside the one that is measured


def reports(blocks_per_report: int) -> list[bytes]:
    """Reports of one scheduler step each, over prompts of many lengths; a tenth of them begin alike."""
    rng = np.random.default_rng(0)
    shared = rng.integers(0, 2**31, BLOCK_SIZE * max(RECORD_BLOCKS), dtype=np.uint32)
    sizes = itertools.cycle(RECORD_BLOCKS)
    made: list[bytes] = []
    for number in range(NUM_REPORTS):
        records: list[BlockAllocationRecord] = []
        left = blocks_per_report
        while left > 0:
            size = min(next(sizes), left)
            left -= size
            tokens = rng.integers(0, 2**31, size * BLOCK_SIZE, dtype=np.uint32)
            if rng.random() < 0.1:
                tokens[: len(tokens) // 2] = shared[: len(tokens) // 2]
            blocks = rng.choice(NUM_BLOCKS, size, replace=False).astype(np.uint32)
            # Sessions come again when the reports begin anew; each time they start at token 0.
            session_id = f"flood-{number}-{len(records)}"
            records.append(allocation_record(session_id, block_ids=blocks, token_ids=tokens, resumed=True))
        report = ReportBlockAllocationRequest(
            instance_id="flood", model_name="flooded", block_size=BLOCK_SIZE, records=records
        )
        made.append(report.SerializeToString())
    return made


async def flood(address: str, blocks_per_second: float) -> None:
    """Report for ever, a step at a time; a step that comes late is not made up for."""
    made = reports(round(blocks_per_second * STEP_SECONDS))
    async with grpc.aio.insecure_channel(address) as channel:
        report: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
        await channel.channel_ready()
        print("ready", flush=True)
        for request in itertools.cycle(made):
            begin = time.monotonic()
            await report(request)
            await asyncio.sleep(max(0.0, STEP_SECONDS - (time.monotonic() - begin)))


if __name__ == "__main__":
    uvloop.run(flood(sys.argv[1], float(sys.argv[2])))
