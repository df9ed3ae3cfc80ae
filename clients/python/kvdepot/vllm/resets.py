"""Follows the resets that vLLM's scheduler is asked for.

vLLM refuses a reset while blocks are in use. A pause or a sleep then raises before it calls the connector's
`reset_cache`, but whoever asked may have changed the weights already. So the connector listens at vLLM's scheduler.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakKeyDictionary


class Follower(Protocol):
    """Reacts to resets of a prefix cache. `SchedulerSide` implements it."""

    def reset(self) -> None: ...
    def emptied(self) -> None: ...


_followers: WeakKeyDictionary[Any, Follower] = WeakKeyDictionary()


def follow(scheduler_class: Any, kv_cache_manager: Any, follower: Follower) -> None:
    """Call the follower at each reset of the scheduler that owns this KV cache manager."""
    original = scheduler_class.reset_prefix_cache
    if not hasattr(original, "tells_kvdepot"):
        scheduler_class.reset_prefix_cache = _telling(original)
    _followers[kv_cache_manager] = follower


def _telling(original: Callable[..., bool]) -> Callable[..., bool]:
    parameters = inspect.signature(original)

    @functools.wraps(original)
    def reset_prefix_cache(self: Any, *arguments: Any, **named: Any) -> bool:
        follower = _followers.get(self.kv_cache_manager)
        if follower is None:
            return original(self, *arguments, **named)
        if parameters.bind(self, *arguments, **named).arguments.get("reset_connector"):
            follower.reset()  # also if vLLM refuses
        is_done = original(self, *arguments, **named)
        if is_done:
            follower.emptied()
        return is_done

    reset_prefix_cache.tells_kvdepot = True  # type: ignore[attr-defined]
    return reset_prefix_cache
