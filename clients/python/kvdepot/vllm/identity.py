"""Who a worker is to the depot, and what makes the KV of two engines the same."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from kvdepot.vllm.groups import cache_groups

MAX_SESSION_BYTES = 256
MAX_ADAPTER_BYTES = 512
MAX_SALT_BYTES = 256
MAX_MODEL_BYTES = 512
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One worker among those of an engine.

    Consecutive ranks of tensor parallelism may hold equal KV (MLA does): they are replicas. Each set of workers that
    holds all of it once is an instance of its own to the depot, and only that of replica 0 stores.
    """

    instance_id: str
    rank: int
    world_size: int
    replica: int

    @property
    def stores(self) -> bool:
        """Whether this worker stores what it computes."""
        return self.replica == 0


def instance_ids(engine_id: str, num_replicas: int) -> tuple[str, ...]:
    """The instances that an engine is, by replica."""
    if num_replicas == 1:
        return (engine_id,)
    return tuple(f"{engine_id}-replica{replica}" for replica in range(num_replicas))


def place_of(engine_id: str, worker: int, num_workers: int, num_replicas: int) -> Place:
    """The place of a worker, counted over tensor and pipeline parallelism."""
    rank, replica = divmod(worker, num_replicas)
    return Place(
        instance_id=instance_ids(engine_id, num_replicas)[replica],
        rank=rank,
        world_size=num_workers // num_replicas,
        replica=replica,
    )


def model_identity(vllm_config: Any) -> str:
    """The model's name, and a digest of what makes KV differ for equal tokens and equal geometry.

    A file that was replaced under the same path and revision can't be told: name such models apart by the setting
    ``kvdepot.model_name``.
    """
    model = vllm_config.model_config
    load_format = str(getattr(vllm_config.load_config, "load_format", ""))
    speculative = vllm_config.speculative_config
    facts = {
        "model": str(model.model),
        "revision": str(model.revision),
        "dtype": str(model.dtype),
        "quantization": str(model.quantization),
        "cache_dtype": str(vllm_config.cache_config.cache_dtype),
        "hf_config": {
            key: value
            for key, value in model.hf_config.to_dict().items()
            if key not in ("_name_or_path", "transformers_version")
        },
        "random_weights_of_seed": str(model.seed) if "dummy" in load_format else "",
        "draft_model": str(speculative.model) if speculative is not None else "",
        "hash_algorithm": str(vllm_config.cache_config.prefix_caching_hash_algo),
    }
    return _with_digest(str(model.model), facts)


def cache_identity(model_name: str, kv_cache_config: Any, *, has_all_layers: bool) -> str:
    """The model's name; where not all is one group of full attention, with a digest of what the groups are.

    Engines keep different blocks of a prefix if their windows or block sizes differ, and a group's chunks are of its
    layers. What a worker of a pipeline has of these is not the same for all, so it is left out.
    """
    groups = cache_groups(kv_cache_config)
    if len(groups) == 1 and groups[0].is_full:
        return model_name
    facts = [
        [repr(group), list(each.layer_names) if has_all_layers else []]
        for group, each in zip(groups, kv_cache_config.kv_cache_groups, strict=True)
    ]
    return _with_digest(model_name, facts)


def session_of(request: Any, attempt: int = 1) -> str:
    """The session that a request is to the depot: the first of its id, or a later one."""
    return _within(f"{request.request_id}#{attempt}" if attempt > 1 else str(request.request_id), MAX_SESSION_BYTES)


def adapter_of(request: Any) -> str:
    """The LoRA adapter of a request: its name and where its weights are; empty if it has none."""
    lora = request.lora_request
    return _within(f"{lora.lora_name}={lora.lora_path}", MAX_ADAPTER_BYTES) if lora is not None else ""


def salt_of(request: Any, generation: str) -> str:
    """The request's salt; of one's own generation once the engine's cache was reset."""
    salt = request.cache_salt or ""
    return _within(f"{salt}#{generation}" if generation else salt, MAX_SALT_BYTES)


def traceparent_of(request: Any) -> str:
    """The caller's place in its trace (W3C Trace Context), if vLLM was told of it; a client may have sent anything."""
    headers = request.trace_headers or {}
    found = next((str(value) for key, value in headers.items() if key.lower() == "traceparent"), "")
    return found if _TRACEPARENT.fullmatch(found) else ""


def _with_digest(name: str, facts: Any) -> str:
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
    return f"{_within(name, MAX_MODEL_BYTES - len(digest) - 1)}#{digest}"


def _within(text: str, max_bytes: int) -> str:
    """The text, or a digest of it if it is too long, or no text at all: half of a surrogate pair is none."""
    encoded = text.encode("utf-8", "surrogatepass")
    is_text = text.isascii() or encoded.decode("utf-8", "replace") == text
    return text if is_text and len(encoded) <= max_bytes else hashlib.blake2b(encoded, digest_size=32).hexdigest()
