"""Notices every requested reset of the prefix cache of vLLM's scheduler.

vLLM refuses a reset while blocks are in use. A pause or a sleep then raises before it calls the connector's
`reset_cache`, but its caller may have changed the weights already. So this wraps the scheduler's method.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary


class _Listener(NamedTuple):
    """Callbacks: before a reset that includes the connector, even a refused one, and after vLLM emptied its cache."""

    on_reset: Callable[[], None]
    on_emptied: Callable[[], None]


_listeners: WeakKeyDictionary[Any, _Listener] = WeakKeyDictionary()


def listen_for_resets(
    scheduler_class: Any, kv_cache_manager: Any, *, on_reset: Callable[[], None], on_emptied: Callable[[], None]
) -> None:
    """Listen to the scheduler that owns this KV cache manager. The callbacks must not refer to the manager."""
    original = scheduler_class.reset_prefix_cache
    if not hasattr(original, "calls_kvdepot"):
        scheduler_class.reset_prefix_cache = _calling_listeners(original)
    _listeners[kv_cache_manager] = _Listener(on_reset, on_emptied)


def _calling_listeners(original: Callable[..., bool]) -> Callable[..., bool]:
    parameters = inspect.signature(original)

    @functools.wraps(original)
    def reset_prefix_cache(self: Any, *arguments: Any, **named: Any) -> bool:
        listener = _listeners.get(self.kv_cache_manager)
        if listener is None:
            return original(self, *arguments, **named)
        if parameters.bind(self, *arguments, **named).arguments.get("reset_connector"):
            listener.on_reset()
        is_done = original(self, *arguments, **named)
        if is_done:
            listener.on_emptied()
        return is_done

    reset_prefix_cache.calls_kvdepot = True  # type: ignore[attr-defined]
    return reset_prefix_cache
