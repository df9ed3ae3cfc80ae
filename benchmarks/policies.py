"""``python -m benchmarks.policies TRACE… --chunks N…``: the hits of each eviction policy, from the index alone.

A trace is a file in Mooncake's format, or the name of one of `benchmarks.traces`. The index of a depot gets the
requests without RPCs, engines or bytes. So a trace takes seconds, and its hits are about those of `kvdepot replay`.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.traces import TRACES, prompts_of
from kvdepot.cli.lru_models import HashIds, unlimited_hits
from kvdepot.cli.offline_bound import offline_bound_hits
from kvdepot.cli.request_trace import BLOCK_TOKENS, read_trace
from service.l1.chunk import Chunk, PendingWrite
from service.l1.eviction.policy_name import PolicyName
from service.l1.index import Index
from service.l1.keys import ChunkKey, Namespace
from service.l1.pool import Pool

SLOT_BYTES = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """What a policy did with a trace."""

    num_blocks: int
    hit_blocks: int
    seconds: float

    @property
    def hit_ratio(self) -> float:
        """The leading blocks that were resident, of all blocks."""
        return self.hit_blocks / max(1, self.num_blocks)


class Player:
    """An index of so many chunks that does what a depot does with requests: look up, store, use."""

    def __init__(self, policy: PolicyName, num_chunks: int) -> None:
        self.index = Index(Pool(num_chunks * SLOT_BYTES), eviction=policy)
        self._stats = self.index.namespace_stats(
            Namespace(bytes(32)), model_name="m", cache_salt="", rank=0, chunk_size=BLOCK_TOKENS
        )
        self._pending_write = PendingWrite(asyncio.new_event_loop().create_future())

    def request(self, keys: Sequence[ChunkKey]) -> int:
        """Return how many leading chunks were resident. Then as many are as fit."""
        index = self.index
        chunks: list[Chunk] = []
        for key in keys:
            found = index.get(key)
            if found is None:
                break
            chunks.append(found)
        num_hits = len(chunks)
        request = index.new_request()
        index.pin(chunks)
        for position, chunk in enumerate(chunks):
            index.connect(chunks[position - 1] if position else None, chunk, position)
        index.count_use(chunks, request)
        for position, key in enumerate(keys[num_hits:], start=num_hits):
            stored = index.get(key)
            if stored is None:
                stored, _ = index.reserve(key, self._stats, SLOT_BYTES, self._pending_write)
                if stored is None:
                    break
                index.commit(stored)
            else:
                index.pin([stored])
            index.connect(chunks[-1] if chunks else None, stored, position)
            chunks.append(stored)
        index.count_use(chunks, request)
        index.unpin(chunks)
        return num_hits


def play(policy: PolicyName, num_chunks: int, requests: Sequence[HashIds]) -> Played:
    """Play a trace to an index with this policy. One key stands for a block and all blocks before it."""
    player = Player(policy, num_chunks)
    keys = {block: _key(block) for request in requests for block in request}
    prompts = [[keys[block] for block in request] for request in requests]
    begin = time.perf_counter()
    hit_blocks = sum(map(player.request, prompts))
    seconds = time.perf_counter() - begin
    return Played(num_blocks=sum(map(len, requests)), hit_blocks=hit_blocks, seconds=seconds)


def requests_of(trace: str) -> list[HashIds]:
    """Return the requests of an invented trace, or of a file."""
    return prompts_of(trace) if trace in TRACES else read_trace(Path(trace)).requests


def table(trace: str, sizes: Sequence[int], policies: Sequence[PolicyName], pool: Executor) -> str:
    """Return the hit ratio of each policy at each size as a table in Markdown, and µs of CPU for each block."""
    runs = {(policy, size): pool.submit(_play_trace, policy, size, trace) for policy in policies for size in sizes}
    requests = requests_of(trace)
    num_blocks = sum(map(len, requests))
    lines = [
        f"{Path(trace).name}: {len(requests):,} requests of {num_blocks:,} blocks",
        "",
        f"| policy | {' | '.join(f'{size:,} chunks' for size in sizes)} | µs a block |",
        f"|---|{'---|' * (len(sizes) + 1)}",
    ]
    for policy in policies:
        played = [runs[policy, size].result() for size in sizes]
        best = [max(runs[other, size].result().hit_blocks for other in policies) for size in sizes]
        ratios = [
            f"**{each.hit_ratio:.4f}**" if each.hit_blocks == most else f"{each.hit_ratio:.4f}"
            for each, most in zip(played, best, strict=True)
        ]
        microseconds = sum(each.seconds for each in played) / sum(each.num_blocks for each in played) * 1e6
        lines.append(f"| `{policy}` | {' | '.join(ratios)} | {microseconds:.1f} |")
    bounds = [offline_bound_hits(requests, size) / num_blocks for size in sizes]
    lines.append(f"| offline bound | {' | '.join(f'{bound:.4f}' for bound in bounds)} | |")
    lines.append(f"| unlimited cache |{f' {unlimited_hits(requests) / num_blocks:.4f} |' * len(sizes)} |")
    return "\n".join([*lines, ""])


def _play_trace(policy: PolicyName, num_chunks: int, trace: str) -> Played:
    return play(policy, num_chunks, requests_of(trace))


def _key(block: int) -> ChunkKey:
    return ChunkKey(hashlib.blake2b(block.to_bytes(8, "little"), digest_size=32).digest())


def main() -> None:
    """Compare policies on traces, and print a table for each trace."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policies", description=__doc__)
    parser.add_argument("traces", nargs="+", metavar="TRACE", help=f"a file, or {', '.join(TRACES)}")
    parser.add_argument("--chunks", type=int, nargs="+", required=True, help="sizes of L1")
    parser.add_argument("--policies", type=PolicyName, nargs="+", default=list(PolicyName), metavar="POLICY")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    options = parser.parse_args()
    with ProcessPoolExecutor(options.jobs) as pool:
        for trace in options.traces:
            print(table(trace, options.chunks, options.policies, pool), flush=True)


if __name__ == "__main__":
    main()
