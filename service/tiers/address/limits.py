"""The limits of one tier, which options of its address change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MAX_PARTS = 32
MAX_BATCH_BYTES = 64 << 20
"""Of what an I/O worker reads or writes at a time. Between two batches a disk is idle for a moment."""
_FIELDS = {
    "read_workers": "read_workers",
    "write_workers": "write_workers",
    "queue": "queue_bytes",
    "write_budget": "write_bytes_per_day",
    "answer": "answer_seconds",
}
"""The fields of options."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierLimits:
    """How many I/O workers a tier has, and how much it writes. `write_bytes_per_day` 0 is no limit.

    A lookup waits `answer_seconds` for a remote tier to say what it has.
    """

    read_workers: int = 2
    write_workers: int = 2
    ask_workers: int = 2
    queue_bytes: int = 256 << 20
    write_bytes_per_day: int = 0
    answer_seconds: float = 0.02

    @classmethod
    def of(cls, options: Mapping[str, object]) -> TierLimits:
        """Return the limits that an address's options ask for. The options were validated."""
        given = {field: options[name] for name, field in _FIELDS.items() if name in options}
        return cls(**given)  # type: ignore[arg-type]  # the options have their types
