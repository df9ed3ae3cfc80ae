"""Passes on what happens to vLLM's own cache and to its weights, which it does not tell its connectors."""

from __future__ import annotations

from typing import Any

from kvdepot.connector.scheduler import ConnectorScheduler
from kvdepot.vllm.adapters import Adapters
from kvdepot.vllm.resets import listen_for_resets
from kvdepot.vllm.weight_updates import listen_for_weights


def follow_engine(kv_cache_manager: Any, scheduler: ConnectorScheduler, adapters: Adapters) -> None:
    """Follow the engine that owns this KV cache manager, in the process of its scheduler."""
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.engine.core import EngineCore

    def emptied() -> None:
        scheduler.engine_cache_emptied()
        adapters.engine_cache_emptied()

    listen_for_resets(Scheduler, kv_cache_manager, on_reset=scheduler.reset, on_emptied=emptied)
    listen_for_weights(
        EngineCore,
        kv_cache_manager,
        on_change=lambda reason: scheduler.weights_changed("", reason),
        on_version=lambda version: scheduler.weights_changed(version, f"vLLM's weights are version {version}"),
    )
