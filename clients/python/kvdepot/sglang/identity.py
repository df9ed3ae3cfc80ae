"""What an engine attaches as: engines with the same identity compute the same KV for equal pages.

SGLang's hash of a page covers its tokens, all tokens before it, and the salt and the extra key of the request. The id
of an adapter is in the extra key. Images are in it as the numbers that SGLang puts in the place of their tokens.
"""

from __future__ import annotations

import hashlib
import json
import logging
from types import SimpleNamespace
from typing import Any

from kvdepot.connector.bounded_read import BoundedRead
from kvdepot.connector.config import ConnectorConfig
from kvdepot.connector.identity import MAX_REVISION_BYTES, CacheIdentity, bounded_text
from kvdepot.connector.model_weights import EngineProcess, UnknownWeights, hub_name, weights_revision

logger = logging.getLogger(__name__)

BLOCK_HASH_SEED = "sglang sha256"
"""Equal in all engines: SGLang's hashes begin with no secret and no random number."""

READ_SECONDS = 60.0
_MAX_MODEL_BYTES = 400
# Arguments of SGLang that change KV, or may do so.
_ARGUMENTS = (
    *("dtype", "kv_cache_dtype", "quantization", "quantization_param_path", "modelopt_quant", "quantize_and_serve"),
    *("rl_quant_profile", "load_format", "model_loader_extra_config", "custom_weight_loader", "model_impl"),
    *("json_model_override_args", "context_length", "is_embedding", "qsa_indexer_dtype", "mamba_ssm_dtype"),
    *("enable_mamba_cache_stochastic_rounding", "mamba_cache_philox_rounds", "enable_deepseek_v4_fp4_indexer"),
    *("enable_lora", "lora_target_modules", "speculative_algorithm", "speculative_draft_load_format"),
    *("speculative_draft_kv_cache_dtype", "speculative_draft_model_quantization", "speculative_draft_window_size"),
    *("speculative_draft_sink_size", "enable_multimodal", "mm_process_config", "disable_fast_image_processor"),
    *("image_processor_backend", "enable_precise_embedding_interpolation"),
)
_NO_CACHE_DTYPE = (None, "auto", "bf16", "bfloat16", "float16")


def cache_identity(
    config: ConnectorConfig, storage: Any, arguments: Any, *, sglang_version: str, engine: EngineProcess
) -> CacheIdentity:
    """Return the identity of an engine. `arguments` are SGLang's, or None if they are not known."""
    path = str(getattr(arguments, "model_path", "") or storage.model_name or "unknown")
    return CacheIdentity(
        model_name=_model_name(config.model_name or hub_name(path), storage, arguments, sglang_version),
        model_revision=_revision(config.model_revision, arguments, engine),
        block_hash_seed=BLOCK_HASH_SEED,
    )


def of_pool(identity: CacheIdentity, shard: str, format_tag: str | None) -> CacheIdentity:
    """Return the identity of one pool. Its own format of bytes, and a shard that no rank tells, are part of it."""
    parts = [part for part in (identity.model_name, format_tag, shard) if part]
    return CacheIdentity(
        model_name=" ".join(parts), model_revision=identity.model_revision, block_hash_seed=identity.block_hash_seed
    )


def _model_name(name: str, storage: Any, arguments: Any, sglang_version: str) -> str:
    facts = {each: getattr(arguments, each, None) for each in _ARGUMENTS}
    facts |= {"sglang": sglang_version, "latent": storage.is_mla_model}
    if (
        getattr(arguments, "kv_cache_dtype", None) not in _NO_CACHE_DTYPE
    ):  # backends scale such a cache in their own ways
        facts["attention"] = [
            getattr(arguments, each, None) for each in ("attention_backend", "prefill_attention_backend")
        ]
    text = json.dumps(facts, sort_keys=True, default=str)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return f"{bounded_text(name, _MAX_MODEL_BYTES)} sglang-{digest}"


def _revision(configured: str, arguments: Any, engine: EngineProcess) -> str:
    """Return the revision of all weights. On any doubt no other engine has it."""
    if configured:
        return bounded_text(configured, MAX_REVISION_BYTES)
    try:
        if arguments is None:
            raise UnknownWeights("SGLang's arguments are not known")
        found = BoundedRead[str](READ_SECONDS).call(lambda: "+".join(_weights(arguments, engine)))
    except Exception as error:  # whatever SGLang's arguments are, the engine starts
        logger.warning(
            "the revision of the weights is not known, so this engine shares KV with no other one, and finds nothing "
            "of its own after a restart: %s; kvdepot.model_revision can name the revision",
            error if isinstance(error, (OSError, UnknownWeights)) else repr(error),
        )
        found = f"unknown-{engine.unique_id}"
    return bounded_text(found, MAX_REVISION_BYTES)


def _weights(arguments: Any, engine: EngineProcess) -> list[str]:
    """Return the revisions of the model, of a draft model and of the adapters that are loaded at the start.

    SGLang names these adapters by name and path alone, so that an adapter which was trained again has its old id.

    Raises: UnknownWeights, OSError.
    """
    if "dummy" in str(getattr(arguments, "load_format", "")):
        return [f"dummy seed={getattr(arguments, 'random_seed', None)}"]
    download_dir = getattr(arguments, "download_dir", None)
    sources = [(str(arguments.model_path), getattr(arguments, "revision", None))]
    if draft := getattr(arguments, "speculative_draft_model_path", None):
        sources.append((str(draft), getattr(arguments, "speculative_draft_model_revision", None)))
    sources += [(_adapter_path(each), None) for each in getattr(arguments, "lora_paths", None) or ()]
    return [
        weights_revision(path, SimpleNamespace(revision=revision, hf_config=None), download_dir, engine)
        for path, revision in sources
    ]


def _adapter_path(adapter: Any) -> str:
    path = adapter.get("lora_path") if isinstance(adapter, dict) else getattr(adapter, "lora_path", adapter)
    return str(path).rpartition("=")[2]
