"""Says why the KV of a vLLM engine can't be split by heads, as `kvdepot.head_shards` asks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvdepot.vllm.groups import layer_specs

WITH_HEADS = {"FullAttentionSpec", "SlidingWindowSpec", "ChunkedLocalAttentionSpec"}


def head_faults(vllm_config: Any, kv_cache_config: Any, head_shards: int) -> Iterator[str]:
    """Yield what prevents that the KV is stored in `head_shards` shards of its heads. 0: it is not asked for."""
    if not head_shards:
        return
    asked, size = f"kvdepot.head_shards is {head_shards}", vllm_config.parallel_config.tensor_parallel_size
    if head_shards % size:
        yield f"{asked}, and must be a multiple of {size}, the tensor-parallel size"
    if (fewest := _fewest_heads(vllm_config.model_config)) < size:
        yield f"{asked}, but {size} workers share {fewest} KV heads, so that several hold the same one"
        return
    for number, group in enumerate(kv_cache_config.kv_cache_groups):
        for spec in layer_specs(group):
            if reason := _reason(spec, size, head_shards):
                yield f"{asked}, but group {number} of the KV cache {reason}"
                break


def _reason(spec: Any, tensor_parallel_size: int, head_shards: int) -> str:
    """Return why the layers of a spec can't be split; empty if they can."""
    name = type(spec).__name__
    if name == "MLAAttentionSpec":
        return "has latents, which belong to all heads: engines of all sizes share latents without this setting"
    if name not in WITH_HEADS:
        return f"is a {name}, which has no KV heads"
    if getattr(spec, "num_head_slots", None) is not None:
        return "has a layout of the attention backend's own, in which heads do not lie one by one"
    num_heads = spec.num_kv_heads * tensor_parallel_size
    return f"has {num_heads} KV heads, which can't be split into equal shards" if num_heads % head_shards else ""


def _fewest_heads(model_config: Any) -> int:
    """Return the KV heads of the layers that have the fewest."""
    layers = getattr(getattr(model_config, "model_arch_config", None), "per_layer_overrides", None) or []
    counts = [layer["total_num_kv_heads"] for layer in layers if "total_num_kv_heads" in layer]
    return int(min([model_config.get_total_num_kv_heads(), *counts]))
