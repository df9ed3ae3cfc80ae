"""The fields of an event as plain values that JSON can hold."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from telemetry.events import BlockAllocation, Event, TransferStep

COMMON_FIELDS = frozenset(field.name for field in dataclasses.fields(Event))
Plain = bool | int | float | str | None | list["Plain"] | dict[str, "Plain"]


def attributes(event: Event) -> dict[str, Plain]:
    """Return the event's own fields, with `operation_id`: bytes as hex, and of an array its length, as `num_…`."""
    return _plain_fields(event, but=COMMON_FIELDS)


def _plain_fields(
    record: Event | BlockAllocation | TransferStep, *, but: frozenset[str] = frozenset()
) -> dict[str, Plain]:
    plain: dict[str, Plain] = {}
    for field in dataclasses.fields(record):
        if field.name in but:
            continue
        value = getattr(record, field.name)
        if isinstance(value, np.ndarray):
            plain[f"num_{field.name}"] = len(value)
        else:
            plain[field.name] = _plain(value)
    return plain


def _plain(value: Any) -> Plain:
    if value is None or isinstance(value, (int, float)):  # bool is an int
        return value
    match value:
        case str():
            return str(value)  # an enum's member as its value
        case bytes():
            return value.hex()
        case tuple():
            return [_plain(item) for item in value]
        case BlockAllocation() | TransferStep():
            return _plain_fields(value)
        case np.generic():
            return _plain(value.item())
    raise TypeError(f"an event's field holds a {type(value).__name__}")
