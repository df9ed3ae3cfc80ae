"""The settings of the connector's scheduler, from vLLM's configuration."""

from __future__ import annotations

from typing import Any

from kvdepot.connector.config import ConnectorConfig
from kvdepot.connector.scheduler_settings import SchedulerSettings
from kvdepot.vllm.groups import cache_groups


def scheduler_settings(config: ConnectorConfig, vllm_config: Any, kv_cache_config: Any) -> SchedulerSettings:
    """Return the settings of an engine that `check_engine` accepted."""
    transfer, parallel = vllm_config.kv_transfer_config, vllm_config.parallel_config
    groups = cache_groups(kv_cache_config)
    return SchedulerSettings(
        hash_block_size=hash_block_size(kv_cache_config),
        groups=groups,
        num_blocks=kv_cache_config.num_blocks,
        num_workers=parallel.world_size,
        loads=transfer.is_kv_consumer,
        stores=transfer.is_kv_producer,
        lookup_timeout_seconds=config.lookup_timeout_seconds,
        lease_hold_seconds=config.lease_hold_seconds,
        longest_transfer_seconds=max(config.retrieve_timeout_seconds, config.store_timeout_seconds),
        prefill_tokens_per_second=config.prefill_tokens_per_second,
        training_run=config.training_run,
        reset_means_new_weights=config.reset_means_new_weights,
        steps_ahead=parallel.pipeline_parallel_size,  # also with asynchronous scheduling
        store_prompts_only=config.store_prompts_only,
        # An engine that loads nothing has no use of requests whose blocks are in the depot.
        publishes_blocks=config.publish_blocks and transfer.is_kv_consumer and _publishes_events(vllm_config),
    )


def hash_block_size(kv_cache_config: Any) -> int:
    """Return how many tokens each of vLLM's block hashes covers."""
    return int(kv_cache_config.hash_block_size or cache_groups(kv_cache_config)[0].block_size)


def _publishes_events(vllm_config: Any) -> bool:
    """Return whether vLLM's scheduler publishes KV events (`--kv-events-config`)."""
    events = getattr(vllm_config, "kv_events_config", None)
    return events is not None and bool(events.enable_kv_cache_events)
