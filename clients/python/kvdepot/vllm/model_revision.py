"""The revision of the weights that an engine computes with, those of a draft model included.

With another revision nothing is found that older weights have computed. On any doubt the revision is one that no other
process has, so that the engine finds only what it stored itself.
"""

from __future__ import annotations

import logging
from typing import Any

from kvdepot.connector.bounded_read import BoundedRead
from kvdepot.connector.identity import MAX_REVISION_BYTES, bounded_text
from kvdepot.connector.model_weights import EngineProcess, UnknownWeights, weights_revision
from kvdepot.vllm.model_identity import draft_config, source_of

logger = logging.getLogger(__name__)

READ_SECONDS = 60.0  # a mount that hangs delays the engine's start by this, and no more


def model_revision(vllm_config: Any, *, engine: EngineProcess, configured: str) -> str:
    """Return the revision, or the one that the user has `configured`. It is the same in all workers of the engine."""
    if configured:
        return bounded_text(configured, MAX_REVISION_BYTES)
    try:
        found = BoundedRead[str](READ_SECONDS).call(lambda: _revision(vllm_config, engine))
    except Exception as error:  # whatever vLLM's configuration is, the engine starts
        logger.warning(
            "the revision of the weights of %s is not known, so this engine shares KV with no other one, and finds "
            "nothing of its own after a restart: %s; kvdepot.model_revision can name the revision",
            source_of(vllm_config.model_config),
            error if isinstance(error, (OSError, UnknownWeights)) else repr(error),
        )
        found = f"unknown-{engine.unique_id}"
    return bounded_text(found, MAX_REVISION_BYTES)


def _revision(vllm_config: Any, engine: EngineProcess) -> str:
    found = [_of_model(vllm_config.model_config, vllm_config.load_config, engine)]
    draft = draft_config(vllm_config)
    if draft is not None:
        load = getattr(vllm_config.speculative_config, "draft_load_config", None) or vllm_config.load_config
        model = getattr(draft, "draft_model_config", None)
        if model is None:
            raise UnknownWeights(f"vLLM says nothing of its draft model {draft.model}")
        found.append(_of_model(model, load, engine))
    return "+".join(found)


def _of_model(model: Any, load: Any, engine: EngineProcess) -> str:
    if "dummy" in str(getattr(load, "load_format", "")):
        return f"dummy seed={model.seed}"
    return weights_revision(source_of(model), model, getattr(load, "download_dir", None), engine)
