"""What the connector can't do yet is refused when the engine starts: KV that is not understood would be wrong KV."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

FULL_ATTENTION = {"FullAttentionSpec", "MLAAttentionSpec"}
HINT = " (with --disable-hybrid-kv-cache-manager, layers of sliding windows are kept like those of full attention)"


class Unsupported(ValueError):
    """The engine is configured in a way that this connector does not serve."""


def check_engine(vllm_config: Any, kv_cache_config: Any) -> None:
    """Raise Unsupported, with all that stands in the way, unless every block holds the KV of its own tokens only."""
    faults = [*_parallelism(vllm_config), *_failures(vllm_config), *_groups(kv_cache_config)]
    if getattr(vllm_config.cache_config, "calculate_kv_scales", False):
        faults.append("calculate_kv_scales makes KV that only this engine can read")
    if faults:
        raise Unsupported("the kvdepot connector can't serve this engine: " + "; ".join(faults))


def _parallelism(vllm_config: Any) -> Iterator[str]:
    parallel = vllm_config.parallel_config
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) != 1:
            yield f"{name} is {getattr(parallel, name)}: a block would hold a part of its tokens only"


def _failures(vllm_config: Any) -> Iterator[str]:
    transfer = vllm_config.kv_transfer_config
    if transfer.is_kv_consumer and transfer.kv_load_failure_policy != "recompute":
        yield (
            f'kv_load_failure_policy is "{transfer.kv_load_failure_policy}", so that a depot that goes away would fail '
            'requests: set it to "recompute" (within a MultiConnector: in this connector\'s own entry too)'
        )


def _groups(kv_cache_config: Any) -> Iterator[str]:
    num_groups = len(kv_cache_config.kv_cache_groups)
    if num_groups == 0:
        yield "the model has no KV cache"
    if num_groups > 1:
        yield f"its KV cache has {num_groups} groups, which lie in the same memory{HINT}"
    for number, group in enumerate(kv_cache_config.kv_cache_groups):
        if not getattr(group, "enable_kv_transfer", True) or getattr(group, "host_resident", False):
            yield f"group {number} of the KV cache is not meant to be moved"
        for spec in layer_specs(group):
            name = type(spec).__name__
            if name not in FULL_ATTENTION:
                yield f"group {number} of the KV cache is a {name}, not full attention{HINT}"
                break
            if getattr(spec, "tokens_per_state", 1) != 1:
                yield f"group {number} of the KV cache keeps {spec.tokens_per_state} tokens in one state"
                break


def layer_specs(group: Any) -> list[Any]:
    """The specs of a group's layers; most groups have one for all."""
    by_layer = getattr(group.kv_cache_spec, "kv_cache_specs", None)
    return [group.kv_cache_spec] if by_layer is None else list(by_layer.values())
