"""As much of vLLM's scheduler as resets need, as in vLLM 0.32."""

from typing import Any


class Scheduler:
    def __init__(self, kv_cache_manager: Any) -> None:
        self.kv_cache_manager = kv_cache_manager

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        return bool(self.kv_cache_manager.reset_prefix_cache())
