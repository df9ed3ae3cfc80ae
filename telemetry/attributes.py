"""The fields of an event as plain values that JSON can hold."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from telemetry.events import BlockAllocation, Event

COMMON_FIELDS = frozenset(field.name for field in dataclasses.fields(Event))
Plain = bool | int | float | str | None | list["Plain"] | dict[str, "Plain"]


def attributes(event: Event) -> dict[str, Plain]:
    """The event's own fields, ``operation_id`` included: bytes as hex, an array as ``num_…``, its length."""
    return {name: value for name, value in _plain_fields(event).items() if name not in COMMON_FIELDS}


def _plain_fields(record: Event | BlockAllocation) -> dict[str, Plain]:
    plain: dict[str, Plain] = {}
    for name in (field.name for field in dataclasses.fields(record)):
        value = getattr(record, name)
        if isinstance(value, np.ndarray):
            plain[f"num_{name}"] = len(value)
        else:
            plain[name] = _plain(value)
    return plain


def _plain(value: Any) -> Plain:
    match value:
        case bytes():
            return value.hex()
        case tuple():
            return [_plain(item) for item in value]
        case BlockAllocation():
            return _plain_fields(value)
        case np.generic():
            return _plain(value.item())
        case None | bool() | int() | float() | str():
            return value
    raise TypeError(f"an event's field holds a {type(value).__name__}")
