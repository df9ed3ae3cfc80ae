"""The layers of vLLM that hold states: Mamba, gated delta nets, linear attention, short convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from kvdepot.vllm.groups import cache_group, layer_specs

_REFUSED_SETTINGS = {
    "use_replayssm": "a block of its cache is no whole state",
    "use_kda_recoverssm": "a block of its cache is no whole state",
}


def state_specs(kv_cache_config: Any) -> list[tuple[int, Any]]:
    """Return the specs of all layers that hold states, each with the number of its group."""
    return [
        (number, spec)
        for number, group in enumerate(kv_cache_config.kv_cache_groups)
        for spec in layer_specs(group)
        if cache_group(spec).holds_state
    ]


def state_faults(vllm_config: Any, kv_cache_config: Any) -> Iterator[str]:
    """Yield why an engine's states can't be served, if it has any.

    A block must certainly have the state after exactly the tokens before its end, once a step has computed these.
    """
    specs = state_specs(kv_cache_config)
    if not specs:
        return
    hash_block_size = getattr(kv_cache_config, "hash_block_size", None)
    seen: set[int] = set()
    for number, spec in specs:
        if number in seen:
            continue
        seen.add(number)
        if spec.mamba_cache_mode != "align":
            yield (
                f"group {number} of the KV cache holds states, and mamba_cache_mode is {spec.mamba_cache_mode!r}: only "
                "with 'align' does the connector know which block has the state after which token "
                "(--enable-prefix-caching --mamba-cache-mode align)"
            )
        if hash_block_size not in (None, spec.block_size):
            yield (
                f"group {number} of the KV cache holds states of {spec.block_size} tokens, and a block hash covers "
                f"{hash_block_size}: then vLLM changes states within a block after it has cached them"
            )
    speculates = getattr(vllm_config, "speculative_config", None) is not None
    if speculates or any(getattr(spec, "num_speculative_blocks", 0) for _, spec in specs):
        yield "the model holds states, and those of speculative decoding have rejected tokens in them"
    if getattr(kv_cache_config, "kv_tp_replicas", 1) != 1:
        yield "the model holds states, and several tensor-parallel workers hold equal KV: not all of them would store"
    for name, reason in _REFUSED_SETTINGS.items():
        if getattr(vllm_config.cache_config, name, False):
            yield f"the model holds states, and {name} is set: {reason}"
