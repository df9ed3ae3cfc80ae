"""What a run of a replay found, as values for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kvdepot.cli.lru_models import island_hits, plain_lru_hits, unlimited_hits
from kvdepot.cli.offline_bound import offline_bound_hits
from kvdepot.cli.prefill_model import PrefillModel
from kvdepot.cli.replay_node import chunk_bytes_of
from kvdepot.cli.replay_options import ReplayRun
from kvdepot.cli.request_trace import Trace
from kvdepot.cli.tiers import name_of, state_of
from kvdepot.cli.trace_player import Replayed
from kvdepot.v1 import admin_pb2

RPCS = ("Lookup", "Retrieve", "Store", "EndSession")
Summary = dict[str, Any]


def summary_of(run: ReplayRun, replayed: Replayed, trace: Trace, routes: Sequence[int]) -> Summary:
    """Return all figures of a replay, and the hit ratios of other caches on the same requests."""
    requests = trace.requests
    num_blocks = max(1, replayed.num_blocks)
    num_rpcs = sum(map(len, replayed.rpc_seconds.values()))
    written_bytes = sum(tier.traffic.written_bytes for tiers in replayed.tiers for tier in tiers)
    prefill = PrefillModel(kv_bytes_per_token=run.kv_bytes_per_token, tokens_per_second=run.prefill_rate)
    num_nodes, l1_chunks = run.nodes, run.l1_chunks
    hit_tokens = replayed.hit_blocks * trace.block_tokens
    l1_hit_blocks = replayed.hit_blocks - replayed.l2_hit_blocks
    return {
        "l1_chunks": l1_chunks,
        "l1_kv_bytes": l1_chunks * trace.block_tokens * run.kv_bytes_per_token,
        "eviction": str(run.eviction),
        "num_nodes": num_nodes,
        "router": str(run.router),
        "concurrency": run.concurrency,
        "num_requests": replayed.num_requests,
        "num_requests_by_node": [routes.count(node) for node in range(num_nodes)],
        "num_blocks": replayed.num_blocks,
        "hit_blocks": replayed.hit_blocks,
        "hit_blocks_by_tier": {"l1": l1_hit_blocks, "l2": replayed.l2_hit_blocks},
        "stored_blocks": replayed.stored_blocks,
        "refused_blocks": replayed.refused_blocks,
        "hit_ratio": replayed.hit_blocks / num_blocks,
        "hit_ratio_by_tier": {"l1": l1_hit_blocks / num_blocks, "l2": replayed.l2_hit_blocks / num_blocks},
        "hit_tokens": hit_tokens,
        "hit_kv_bytes": hit_tokens * run.kv_bytes_per_token,
        "saved_prefill_seconds": prefill.saved_seconds(
            replayed.hit_blocks, replayed.blocks_before_hits, trace.block_tokens
        ),
        "prefill_tokens_per_second": run.prefill_rate,
        "kv_bytes_per_token": run.kv_bytes_per_token,
        "islands_hit_ratio": island_hits(requests, routes, l1_chunks) / num_blocks,
        "plain_lru_hit_ratio": plain_lru_hits(requests, num_nodes * l1_chunks) / num_blocks,
        "plain_lru_hit_ratio_by_blocks": {
            str(blocks): plain_lru_hits(requests, blocks) / num_blocks for blocks in run.compare_lru
        },
        "offline_bound_hit_ratio": offline_bound_hits(requests, num_nodes * l1_chunks, trace.outputs) / num_blocks,
        "unlimited_hit_ratio": unlimited_hits(requests, trace.outputs) / num_blocks,
        "block_tokens": trace.block_tokens,
        "chunk_bytes": chunk_bytes_of(trace.block_tokens),
        "written_bytes": written_bytes,
        "written_bytes_per_stored_chunk": written_bytes / max(1, replayed.stored_blocks),
        "num_cut_hits_by_reason": dict(replayed.cut_hits),
        "tiers": [
            {"node": node, **_tier(tier)} for node, tiers in enumerate(replayed.tiers, start=1) for tier in tiers
        ],
        "duration_seconds": replayed.duration_seconds,
        "rpcs_per_second": num_rpcs / replayed.duration_seconds,
        "rpcs": {
            rpc: {
                "num_calls": len(seconds),
                "p50_seconds": float(np.percentile(seconds, 50)),
                "p99_seconds": float(np.percentile(seconds, 99)),
                "total_seconds": sum(seconds),
            }
            for rpc in RPCS
            if (seconds := replayed.rpc_seconds.get(rpc))
        },
    }


def _tier(tier: admin_pb2.TierStatus) -> Summary:
    traffic = tier.traffic
    return {
        "name": name_of(tier),
        "kind": tier.kind,
        "state": state_of(tier),
        "reads_by_outcome": dict(traffic.num_reads_by_outcome),
        "writes_by_outcome": dict(traffic.num_writes_by_outcome),
        "dropped_writes_by_reason": dict(traffic.num_dropped_writes_by_reason),
        "read_bytes": traffic.read_bytes,
        "written_bytes": traffic.written_bytes,
        "num_killed_io_workers": traffic.num_killed_io_workers,
    }
