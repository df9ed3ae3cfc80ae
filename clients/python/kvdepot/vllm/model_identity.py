"""The name of an engine's model: engines with the same name and weights compute the same KV for equal tokens.

It has a digest of vLLM's whole configuration of the model. Only settings that certainly do not change KV are left out.
So engines with different values of an unknown setting share no KV. `model_revision` names the weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any

from kvdepot.connector.identity import MAX_MODEL_BYTES, bounded_text
from kvdepot.connector.model_weights import hub_name
from kvdepot.vllm.groups import cache_groups
from kvdepot.vllm.neutral_settings import (
    CACHE_WITHOUT_EFFECT,
    LORA_WITHOUT_EFFECT,
    MODEL_IN_OTHER_FACTS,
    MODEL_WITHOUT_EFFECT,
    MULTIMODAL_WITHOUT_EFFECT,
    ROPES_OF_ANY_LENGTH,
)
from kvdepot.vllm.states import state_specs

MAX_DEPTH = 16

_IGNORED_KEYS = {"_name_or_path", "transformers_version", "_commit_hash"}
_DRAFTS_WITHOUT_LAYERS = {None, "ngram", "ngram_gpu", "suffix"}
_OF_STATES = ("mamba_type", "shapes", "dtypes")
_UNQUANTIZED = {"auto", "float16", "bfloat16"}


def model_identity(vllm_config: Any, *, vllm_version: str, configured_name: str, environment: Mapping[str, str]) -> str:
    """Return the model's name with a digest of all that makes KV differ for equal tokens, geometry and weights.

    A `configured_name` replaces the model's name or path, and nothing else.
    """
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    pipeline = getattr(parallel, "pipeline_parallel_size", 1)
    cache = vllm_config.cache_config
    facts = {
        "vllm": vllm_version,
        "model": _model(model),
        "loaded_by": _load(vllm_config.load_config, model),
        "draft": _draft(vllm_config),
        "cache": _settings(cache, CACHE_WITHOUT_EFFECT),
        "attention": _attention(vllm_config),
        "pipeline": [pipeline, environment.get("VLLM_PP_LAYER_PARTITION", "")] if pipeline > 1 else [],
    }
    return with_digest(configured_name or hub_name(source_of(model)), facts)


def cache_identity(model_name: str, kv_cache_config: Any, *, has_all_layers: bool, state_settings: Any = None) -> str:
    """Return the model's name, with a digest of its groups unless there is one group of full attention.

    Engines keep different blocks of a prefix if their windows or block sizes differ. A group's chunks hold its layers;
    these are left out for a pipeline, whose workers have different layers. States also differ by their shapes, their
    dtypes and the `state_settings`.
    """
    groups = cache_groups(kv_cache_config)
    if len(groups) == 1 and groups[0].is_full:
        return model_name
    facts = [
        [repr(group), list(each.layer_names) if has_all_layers else []]
        for group, each in zip(groups, kv_cache_config.kv_cache_groups, strict=True)
    ]
    if states := state_specs(kv_cache_config):
        kinds = [[number, *(_canonical(getattr(spec, name)) for name in _OF_STATES)] for number, spec in states]
        facts.append([kinds, state_settings])
    return with_digest(model_name, facts)


def state_settings(vllm_config: Any, environment: Mapping[str, str]) -> list[Any]:
    """Return the settings that may change what a state is, or the order of its bytes."""
    device = getattr(getattr(vllm_config, "device_config", None), "device_type", "")
    settings = [_canonical(getattr(vllm_config, name, None)) for name in ("mamba_config", "additional_config")]
    return [str(device), environment.get("VLLM_SSM_CONV_STATE_LAYOUT", ""), *settings]


def lora_settings(vllm_config: Any) -> str:
    """Return the settings of how an engine applies any adapter, as text."""
    return json.dumps(_settings(getattr(vllm_config, "lora_config", None), LORA_WITHOUT_EFFECT), sort_keys=True)


def with_digest(name: str, facts: Any) -> str:
    """Return the name with a digest of the facts, in at most `MAX_MODEL_BYTES`."""
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=8).hexdigest()
    return f"{bounded_text(name, MAX_MODEL_BYTES - len(digest) - 1)}#{digest}"


def _model(model: Any) -> dict[str, Any]:
    """Return the model's final configuration, after overrides, and vLLM's own settings of it."""
    facts = _settings(model, MODEL_IN_OTHER_FACTS | MODEL_WITHOUT_EFFECT)
    facts["hf_config"] = config = _canonical(model.hf_config)
    text_config = getattr(model, "hf_text_config", None)
    facts["hf_text_config"] = _canonical(text_config) if text_config is not model.hf_config else None
    facts["multimodal"] = _settings(getattr(model, "multimodal_config", None), MULTIMODAL_WITHOUT_EFFECT)
    if not _rope_types([config, facts["hf_text_config"]]) <= ROPES_OF_ANY_LENGTH:
        # vLLM fits this length to the memory after it has made the model, with the longest length.
        is_fitted = getattr(model, "original_max_model_len", None) == -1
        facts["max_model_len"] = "fitted" if is_fitted else model.max_model_len
    return facts


def _rope_types(value: Any) -> set[str]:
    """Return all kinds of rotary embeddings within a configuration."""
    return {rope_type for config in _mappings(value) for rope_type in _own_rope_types(config)}


def _own_rope_types(config: Mapping[str, Any]) -> Iterator[str]:
    if "rope_type" in config:
        yield str(config["rope_type"])
    for scaling in (config.get("rope_scaling"), config.get("rope_parameters")):
        if isinstance(scaling, Mapping) and "type" in scaling:  # the name of older checkpoints
            yield str(scaling["type"])
    if config.get("use_fope"):
        yield "fope"


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _mappings(each)


def source_of(model: Any) -> str:
    """Return where the weights are. For an object store `model.model` is a folder of the configuration alone."""
    return str(getattr(model, "model_weights", "") or model.model)


def draft_config(vllm_config: Any) -> Any:
    """Return the settings of the draft model if its layers are part of the KV cache. None: there are no such layers."""
    speculative = vllm_config.speculative_config
    return None if speculative is None or speculative.method in _DRAFTS_WITHOUT_LAYERS else speculative


def _load(load: Any, model: Any) -> list[Any]:
    load_format = str(getattr(load, "load_format", ""))
    extra = _canonical(getattr(load, "model_loader_extra_config", None))
    return [load_format, extra, str(model.seed) if "dummy" in load_format else ""]


def _draft(vllm_config: Any) -> list[Any]:
    """Return the facts of the draft model if its layers are part of the KV cache."""
    speculative = draft_config(vllm_config)
    if speculative is None:
        return []
    draft = getattr(speculative, "draft_model_config", None)
    if draft is None:
        return [speculative.method, str(speculative.model)]
    revision = str(getattr(speculative, "revision", None))
    return [speculative.method, hub_name(source_of(draft)), _model(draft), revision]


def _attention(vllm_config: Any) -> list[Any]:
    """Return the facts of attention. Backends pack quantized K and V in their own ways, and all others in the same."""
    attention = getattr(vllm_config, "attention_config", None)
    is_quantized = str(vllm_config.cache_config.cache_dtype) not in _UNQUANTIZED
    names = ["use_non_causal", "indexer_kv_dtype", *(["backend", "backend_per_kind"] if is_quantized else [])]
    return [[name, _canonical(getattr(attention, name, None))] for name in names]


def _settings(config: Any, left_out: frozenset[str]) -> dict[str, Any]:
    """Return the settings of a part of vLLM's configuration, without those that are left out."""
    if config is None:
        return {}
    names = [field.name for field in fields(config)] if is_dataclass(config) else list(vars(config))
    return {name: _canonical(getattr(config, name, None)) for name in names if name not in left_out}


def _canonical(value: Any, depth: int = MAX_DEPTH) -> Any:
    """Return a value in JSON's types, the same in every process."""
    if value is None or (isinstance(value, bool | int | float | str) and not isinstance(value, Enum)):
        return value
    if isinstance(value, Mapping):
        kept = {str(key): each for key, each in value.items() if str(key) not in _IGNORED_KEYS}
        return {key: _canonical(each, depth - 1) for key, each in kept.items()} if depth else {}
    if isinstance(value, list | tuple):
        return [_canonical(each, depth - 1) for each in value] if depth else []
    if isinstance(value, set | frozenset):
        return sorted((_canonical(each, depth - 1) for each in value), key=repr) if depth else []
    if isinstance(value, Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if hasattr(value, "__qualname__"):  # a class or a function
        return f"{value.__module__}.{value.__qualname__}"
    if callable(to_dict := getattr(value, "to_dict", None)):
        return _canonical(to_dict(), depth)
    if hasattr(value, "__dict__"):
        return [type(value).__qualname__, _canonical(vars(value), depth)]
    return str(value)
