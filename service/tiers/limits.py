"""The limits of one tier, which options of its address change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MAX_PARTS = 8
MAX_BATCH_BYTES = 32 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TierLimits:
    """How many I/O workers a tier has, and how much it writes. `write_bytes_per_day` 0 is no limit."""

    read_workers: int = 2
    write_workers: int = 1
    ask_workers: int = 2
    queue_bytes: int = 256 << 20
    write_bytes_per_day: int = 0

    @classmethod
    def of(cls, options: Mapping[str, object]) -> TierLimits:
        """Return the limits that an address's options ask for. The options were validated."""
        names = {
            "read_workers": "read_workers",
            "write_workers": "write_workers",
            "queue": "queue_bytes",
            "write_budget": "write_bytes_per_day",
        }
        return cls(**{field: int(str(options[name])) for name, field in names.items() if options.get(name)})
