"""vLLM's KV cache groups, read from its configuration."""

from __future__ import annotations

from typing import Any

from kvdepot.connector.cache_groups import CacheGroup


def cache_groups(kv_cache_config: Any) -> tuple[CacheGroup, ...]:
    """Return the groups of an engine that `check_engine` accepted."""
    return tuple(cache_group(layer_specs(group)[0]) for group in kv_cache_config.kv_cache_groups)


def layer_specs(group: Any) -> list[Any]:
    """Return the specs of a group's layers. Most groups have one for all layers."""
    by_layer = getattr(group.kv_cache_spec, "kv_cache_specs", None)
    return [group.kv_cache_spec] if by_layer is None else list(by_layer.values())


def cache_group(spec: Any) -> CacheGroup:
    """Return the group of layers with this spec."""
    block_size = spec.block_size
    match type(spec).__name__:
        case "SlidingWindowSpec":  # vLLM counts the next token as part of the window
            window = spec.sliding_window - 1 + getattr(spec, "extra_retained_tokens", 0)
            return CacheGroup(block_size=block_size, window=window)
        case "ChunkedLocalAttentionSpec":
            return CacheGroup(block_size=block_size, local_chunk=spec.attention_chunk_size)
        case "MambaSpec":
            return CacheGroup(block_size=block_size, holds_state=True)
        case _:
            return CacheGroup(block_size=block_size)
