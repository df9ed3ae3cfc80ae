"""What a user's request says about its own loads and stores, in parameters that the engine passes on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kvdepot.connector.config import PREFIX

logger = logging.getLogger(__name__)

MAX_WARNED_KEYS = 64
MAX_KEY_LENGTH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """The parameters of one request; `RequestTraits` describes the fields."""

    will_continue: bool | None = None
    max_load_tokens: int | None = None
    max_store_tokens: int | None = None


class RequestParameters:
    """Reads the parameters of requests. Users write them, so that a wrong one is ignored, with a warning for its key.

    `kvdepot.will_continue`, `kvdepot.load` and `kvdepot.store` are true or false. `kvdepot.max_load_tokens` and
    `kvdepot.max_store_tokens` are whole numbers from 0 on.
    """

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def limits(self, parameters: Any) -> RequestLimits:
        """Return what a request's parameters say. What is no mapping says nothing."""
        if not isinstance(parameters, Mapping):
            return RequestLimits()
        ours = {key: value for key, value in parameters.items() if isinstance(key, str) and key.startswith(PREFIX)}
        if not ours:
            return RequestLimits()
        loads, stores = self._take(ours, "load", bool), self._take(ours, "store", bool)
        max_load, max_store = self._take(ours, "max_load_tokens", int), self._take(ours, "max_store_tokens", int)
        will_continue = self._take(ours, "will_continue", bool)
        for key in ours:
            self._warn(key, "is no parameter")
        return RequestLimits(
            will_continue=will_continue,
            max_load_tokens=0 if loads is False else max_load,
            max_store_tokens=0 if stores is False else max_store,
        )

    def _take(self, ours: dict[str, Any], name: str, kind: type[bool] | type[int]) -> Any:
        """Remove a parameter; return its value, or None if it is absent or wrong."""
        key = PREFIX + name
        value: Any = ours.pop(key, None)
        is_right = type(value) is kind and value >= 0
        if value is not None and not is_right:
            expected = "true or false" if kind is bool else "a whole number from 0 on"
            self._warn(key, f"{expected} is expected, not {value!r:.80}")
        return value if is_right else None

    def _warn(self, key: str, fault: str) -> None:
        """Warn once for each key, and of a few keys only: a user may send any."""
        name = key[:MAX_KEY_LENGTH]
        if name not in self._warned and len(self._warned) < MAX_WARNED_KEYS:
            self._warned.add(name)
            logger.warning("a request's %s is ignored: %s", name, fault)
