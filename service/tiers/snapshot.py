"""What a tier shows of itself: to the status, the metrics and the commands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class TierState(StrEnum):
    """Whether a tier can be used."""

    OPENING = "opening"
    AVAILABLE = "available"
    FAILING = "failing"
    """The breaker is open: lookups do not ask it, and a probe tries it now and then."""
    UNUSABLE = "unusable"
    """It can't be opened as it is set up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSnapshot:
    """A tier at one moment. Counts are since the start, and of chunks.

    `detail` says why it is not available. `used_bytes`, `capacity_bytes` and `num_chunks` are None where only the
    store knows. `reads` and `writes` count ends by name, see `LoadEnd` and `TierWritten.outcome`. `dropped` counts
    writes that were not tried, by reason. The rates are those that were measured, in bytes a second.
    """

    name: str
    kind: str
    is_local: bool
    state: TierState
    detail: str = ""
    used_bytes: int | None = None
    capacity_bytes: int | None = None
    num_chunks: int | None = None
    num_evicted: int = 0
    reads: Mapping[str, int] = field(default_factory=dict)
    writes: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    read_bytes: int = 0
    written_bytes: int = 0
    num_asked: int = 0
    num_found: int = 0
    read_bytes_per_second: float | None = None
    write_bytes_per_second: float | None = None
    queued_reads: int = 0
    queued_writes: int = 0
    queued_write_bytes: int = 0
    running_writes: int = 0
    num_io_workers: int = 0
    num_io_workers_killed: int = 0
    seconds_to_probe: float | None = None
