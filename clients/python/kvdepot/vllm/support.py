"""Refuses an engine at its start if the connector can't share its KV correctly."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from kvdepot.connector.identity import MAX_HASH_SEED_BYTES, bounded_text
from kvdepot.vllm.groups import cache_group, layer_specs
from kvdepot.vllm.head_shards import head_faults
from kvdepot.vllm.states import state_faults

logger = logging.getLogger(__name__)

REPRODUCIBLE_HASHES = {"sha256", "sha256_cbor"}
SERVED = {"FullAttentionSpec", "MLAAttentionSpec", "SlidingWindowSpec", "ChunkedLocalAttentionSpec", "MambaSpec"}
_NOT_SERVED = {
    "CrossAttentionSpec": "cross attention keeps KV of the encoder's input, which no prefix of the prompt names",
    "EncoderOnlyAttentionSpec": "encoder-only attention keeps no KV for later requests",
    "SlidingWindowMLASpec": "latent attention with a window keeps states in a layout that the connector does not know",
    "SinkFullAttentionSpec": "attention sinks take blocks of the cache, and belong to no token",
    "RSWASpec": "reference sliding windows free blocks amid a request, so that its chunks would lack parts",
    "CircularBufferSpec": "a ring of the last tokens belongs to one request, and no prefix has it",
    "HiddenStateCacheSpec": "hidden states that vLLM extracts are no KV that a later request could use",
    "HiSparseHotSpec": "HiSparse keeps a part of the KV in a pool of its own in host memory",
    "HiSparseResidentSpec": "HiSparse keeps a part of the KV in a pool of its own in host memory",
}
"""The kinds of layers of vLLM 0.32 that are not served, by the names of their specs, and the reasons."""
_PARALLEL = {
    "decode_context_parallel_size": "each worker has the KV of a part of the tokens of a block only",
    "prefill_context_parallel_size": "each worker computes the KV of a part of the tokens of a prompt only",
}


class Unsupported(ValueError):
    """The connector does not support the engine's configuration."""


def check_engine(vllm_config: Any, kv_cache_config: Any, head_shards: int = 0) -> None:
    """Check that every block holds the KV of its own tokens only, or a state that is known to be right.

    With `head_shards`, the heads must be divisible by it. The error has all faults.

    Raises: Unsupported.
    """
    faults = [*_parallelism(vllm_config), *_failure_policy(vllm_config), *_groups(kv_cache_config)]
    faults += state_faults(vllm_config, kv_cache_config)
    faults += head_faults(vllm_config, kv_cache_config, head_shards)
    if getattr(vllm_config.cache_config, "calculate_kv_scales", False):
        faults.append("calculate_kv_scales makes KV that only this engine can read")
    if faults:
        raise Unsupported("the kvdepot connector can't serve this engine: " + "; ".join(faults))


def block_hash_seed(vllm_config: Any, environment: Mapping[str, str], hash_block_size: int) -> str:
    """Return the algorithm, the tokens per block and the seed of vLLM's block hashes, which are chained.

    Empty: the seed is random in each process.
    """
    algorithm = str(vllm_config.cache_config.prefix_caching_hash_algo)
    hashes = f"vllm {algorithm} of {hash_block_size} tokens"
    if (seed := environment.get("PYTHONHASHSEED")) is not None:
        return bounded_text(f"{hashes} seed={seed}", MAX_HASH_SEED_BYTES)
    return f"{hashes} default seed" if algorithm in REPRODUCIBLE_HASHES else ""


def warn_of_hashes(vllm_config: Any, environment: Mapping[str, str]) -> None:
    """Warn of block hashes that no other process computes. The engine finds only what it stored itself."""
    if not block_hash_seed(vllm_config, environment, 0):
        logger.warning(
            "this engine shares no KV with others, and none with itself after a restart: --prefix-caching-hash-algo %s "
            "hashes differently in each process; use sha256, or set PYTHONHASHSEED to the same value for all engines",
            vllm_config.cache_config.prefix_caching_hash_algo,
        )


def _parallelism(vllm_config: Any) -> Iterator[str]:
    parallel = vllm_config.parallel_config
    for name, reason in _PARALLEL.items():
        if getattr(parallel, name, 1) != 1:
            yield f"{name} is {getattr(parallel, name)}: {reason}"


def _failure_policy(vllm_config: Any) -> Iterator[str]:
    transfer = vllm_config.kv_transfer_config
    if transfer.is_kv_consumer and transfer.kv_load_failure_policy != "recompute":
        yield (
            f'kv_load_failure_policy is "{transfer.kv_load_failure_policy}", so that a depot that goes away would fail '
            'requests: set it to "recompute" (within a MultiConnector: also in this connector\'s own entry)'
        )


def _groups(kv_cache_config: Any) -> Iterator[str]:
    if not kv_cache_config.kv_cache_groups:
        yield "the model has no KV cache"
    for number, group in enumerate(kv_cache_config.kv_cache_groups):
        if not getattr(group, "enable_kv_transfer", True) or getattr(group, "host_resident", False):
            yield f"group {number} of the KV cache is not meant to be moved: vLLM makes it anew or keeps it on the host"
        if len({cache_group(spec) for spec in layer_specs(group)}) > 1:
            yield f"the layers of group {number} of the KV cache keep different parts of a prefix"
        for spec in layer_specs(group):
            name = type(spec).__name__
            if name not in SERVED:
                reason = _NOT_SERVED.get(name, "the connector does not know this kind of layers")
                yield f"group {number} of the KV cache is a {name}: {reason}"
                break
            if name != "MambaSpec" and getattr(spec, "tokens_per_state", 1) != 1:
                yield (
                    f"group {number} of the KV cache keeps {spec.tokens_per_state} tokens in one state, in a layout "
                    "that the connector does not know"
                )
                break
