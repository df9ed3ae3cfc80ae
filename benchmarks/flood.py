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
VOCABULARY = 128_000
STEP_SECONDS = 0.01
NUM_REPORTS = 200  # made beforehand, so that this process takes little CPU from the one that is measured


def reports(blocks_per_report: int) -> list[bytes]:
    """Return reports of one scheduler step each, over prompts of many lengths; a tenth of them begin alike.

    An engine gives a block to one session at a time: ids are handed out in order. When an id comes again, its
    session also comes again, and starts at token 0 with other tokens.
    """
    rng = np.random.default_rng(0)
    shared = rng.integers(0, VOCABULARY, BLOCK_SIZE * max(RECORD_BLOCKS), dtype=np.uint32)
    num_distinct = NUM_BLOCKS // blocks_per_report
    made: list[bytes] = []
    for number in range(NUM_REPORTS):
        records: list[BlockAllocationRecord] = []
        sizes = itertools.cycle(RECORD_BLOCKS)
        first = number % num_distinct * blocks_per_report
        last = first + blocks_per_report
        while first < last:
            size = min(next(sizes), last - first)
            tokens = rng.integers(0, VOCABULARY, size * BLOCK_SIZE, dtype=np.uint32)
            if rng.random() < 0.1:
                tokens[: len(tokens) // 2] = shared[: len(tokens) // 2]
            blocks = np.arange(first, first + size, dtype=np.uint32)
            first += size
            session_id = f"flood-{number % num_distinct}-{len(records)}"
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
