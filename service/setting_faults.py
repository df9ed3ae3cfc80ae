"""What is wrong with a setting, in words for the person who set it: units as they are written, and the nearest name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from typing import Any

SIMILARITY = 0.7  # difflib's ratio, from 0 to 1: whoever writes a key means some setting

SECRET = ("l2",)
"""Settings whose values may hold a secret where they are wrong. Their faults say what is wrong without the value."""

_BOUNDS = {
    "greater_than": ("above", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("below", "lt"),
    "less_than_equal": ("at most", "le"),
}


def fault(error: Mapping[str, Any], names: Collection[str], shown: Callable[[str, object], str]) -> str:
    """Return pydantic's error as a line. `shown` writes a value of a setting, `names` are all settings."""
    name = ".".join(str(part) for part in error["loc"][:1])
    if error["type"] == "extra_forbidden":
        nearest = get_close_matches(name.lower().replace("-", "_"), names, n=1, cutoff=SIMILARITY)
        return f"{name}: is no setting" + (f"; is {nearest[0]} meant?" if nearest else "")
    given = error["input"]
    if error["type"] in _BOUNDS and name in names:
        words, bound = _BOUNDS[error["type"]]
        return f"{name}: is not {words} {shown(name, error['ctx'][bound])} (given: {_given(name, given, shown)})"
    message = error["msg"].removeprefix("Value error, ")
    is_given = bool(name) and error["type"] != "missing" and name not in SECRET
    return f"{name}: {message} (given: {given!r})" if is_given else f"{name}: {message}" if name else message


def _given(name: str, value: object, shown: Callable[[str, object], str]) -> str:
    return repr(value) if isinstance(value, str) else shown(name, value)
