"""What the connector can't do yet is refused when the engine starts: KV that is not understood would be wrong KV."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvdepot.vllm.groups import cache_group, layer_specs

SERVED = {"FullAttentionSpec", "MLAAttentionSpec", "SlidingWindowSpec", "ChunkedLocalAttentionSpec"}


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
    if not kv_cache_config.kv_cache_groups:
        yield "the model has no KV cache"
    for number, group in enumerate(kv_cache_config.kv_cache_groups):
        if not getattr(group, "enable_kv_transfer", True) or getattr(group, "host_resident", False):
            yield f"group {number} of the KV cache is not meant to be moved"
        if len({cache_group(spec) for spec in layer_specs(group)}) > 1:
            yield f"the layers of group {number} of the KV cache keep different parts of a prefix"
        for spec in layer_specs(group):
            name = type(spec).__name__
            if name not in SERVED:
                yield (
                    f"group {number} of the KV cache is a {name}: "
                    "full attention, sliding windows and chunked local attention are served"
                )
                break
            if getattr(spec, "tokens_per_state", 1) != 1:
                yield f"group {number} of the KV cache keeps {spec.tokens_per_state} tokens in one state"
                break
