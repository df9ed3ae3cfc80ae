"""Notices what changes the weights of vLLM's engine: calls to its workers, weight versions, and deep sleep.

vLLM tells a connector of none of them, so this wraps methods of its engine core. The core runs in the scheduler's
process and makes no step meanwhile.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

# What names of workers' methods have in common: vLLM's own ones, and those of trainers' worker extensions.
_OF_WEIGHTS = ("weight", "param", "load_model", "update_model", "apply_model", "load_checkpoint", "state_dict")
_READS = (
    *("get_", "init_", "compute_", "check_", "shutdown_", "destroy_", "save_", "dump_", "list_", "num_", "count_"),
    *("is_", "has_", "supports_", "report_", "log_", "print_", "validate_", "verify_"),
)
_DISCARDS_WEIGHTS = 2  # the level of sleep from which on the weights are not kept


class _Listener(NamedTuple):
    """Callbacks: before the weights may change, with the reason, and after they have got a version."""

    on_change: Callable[[str], None]
    on_version: Callable[[str], None]


_listeners: WeakKeyDictionary[Any, _Listener] = WeakKeyDictionary()

Call = Callable[..., Any]
Notice = Callable[[_Listener, dict[str, Any]], None]


def listen_for_weights(
    core_class: Any, kv_cache_manager: Any, *, on_change: Callable[[str], None], on_version: Callable[[str], None]
) -> None:
    """Listen to one engine core. Its scheduler owns this KV cache manager.

    The callbacks must not refer to the manager: it is the weak key under which they are kept.
    """
    for name, before, after in (
        ("collective_rpc", _worker_call, None),
        ("sleep", _sleep, None),
        ("set_weight_version", None, _version),
    ):
        original = getattr(core_class, name, None)
        if original is not None and not hasattr(original, "calls_kvdepot"):
            setattr(core_class, name, _calling_listeners(original, before, after))
    _listeners[kv_cache_manager] = _Listener(on_change, on_version)


def changes_weights(method: Any) -> bool:
    """Return whether a method of vLLM's workers, named or given, may change the weights. Its name is all there is."""
    name = (method if isinstance(method, str) else getattr(method, "__name__", "")).lower().lstrip("_")
    return any(part in name for part in _OF_WEIGHTS) and not name.startswith(_READS)


def _worker_call(listener: _Listener, arguments: dict[str, Any]) -> None:
    method = arguments.get("method")
    if changes_weights(method):
        name = method if isinstance(method, str) else method.__name__  # type: ignore[union-attr]
        listener.on_change(f"vLLM's workers are told to {name}")


def _sleep(listener: _Listener, arguments: dict[str, Any]) -> None:
    level = arguments.get("level", 1)
    if isinstance(level, int) and level >= _DISCARDS_WEIGHTS:
        listener.on_change(f"vLLM sleeps at level {level}, which discards the weights")


def _version(listener: _Listener, arguments: dict[str, Any]) -> None:
    listener.on_version(str(arguments.get("weight_version", "")))


def _calling_listeners(original: Call, before: Notice | None, after: Notice | None) -> Call:
    parameters = inspect.signature(original)

    @functools.wraps(original)
    def call(self: Any, *arguments: Any, **named: Any) -> Any:
        listener = _listener_of(self)
        given = parameters.bind(self, *arguments, **named).arguments if listener is not None else {}
        if listener is not None and before is not None:
            before(listener, given)
        result = original(self, *arguments, **named)
        if listener is not None and after is not None:
            after(listener, given)
        return result

    call.calls_kvdepot = True  # type: ignore[attr-defined]
    return call


def _listener_of(core: Any) -> _Listener | None:
    """Return the listener of an engine core. While it starts, it has no scheduler, and calls its workers."""
    manager = getattr(getattr(core, "scheduler", None), "kv_cache_manager", None)
    return _listeners.get(manager) if manager is not None else None
