"""The facts of vLLM's engine that the connector needs, from vLLM's configuration."""

from __future__ import annotations

from typing import Any

from kvdepot.connector.engine_facts import EngineFacts
from kvdepot.connector.identity import CacheIdentity
from kvdepot.vllm.groups import cache_groups


def engine_facts(vllm_config: Any, kv_cache_config: Any, identity: CacheIdentity) -> EngineFacts:
    """Return the facts of an engine that `check_engine` accepted."""
    transfer, parallel = vllm_config.kv_transfer_config, vllm_config.parallel_config
    return EngineFacts(
        engine_id=transfer.engine_id,
        identity=identity,
        groups=cache_groups(kv_cache_config),
        num_blocks=kv_cache_config.num_blocks,
        hash_block_size=hash_block_size(kv_cache_config),
        num_workers=parallel.world_size,
        tensor_parallel_size=parallel.tensor_parallel_size,
        num_replicas=getattr(kv_cache_config, "kv_tp_replicas", 1),
        steps_ahead=parallel.pipeline_parallel_size,  # also with asynchronous scheduling
        loads=transfer.is_kv_consumer,
        stores=transfer.is_kv_producer,
        publishes_blocks=_publishes_events(vllm_config),
    )


def hash_block_size(kv_cache_config: Any) -> int:
    """Return how many tokens each of vLLM's block hashes covers."""
    return int(kv_cache_config.hash_block_size or cache_groups(kv_cache_config)[0].block_size)


def _publishes_events(vllm_config: Any) -> bool:
    """Return whether vLLM's scheduler publishes KV events (`--kv-events-config`)."""
    events = getattr(vllm_config, "kv_events_config", None)
    return events is not None and bool(events.enable_kv_cache_events)
