"""A tier behind L1 of which a test says what it shows. It holds nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from service.tiers.snapshot import TierSnapshot, TierState
from telemetry.events import Event, IoWorkerEnded, TierAsked, TierRead, TierWritten
from tests.fakes.tier import FakeTier


class ShownTier(FakeTier):
    """A tier with a snapshot of the test's, to which the chunks of its own questions are added."""

    def __init__(self, shown: TierSnapshot) -> None:
        super().__init__(memoryview(b""), name=shown.name, is_local=shown.is_local)
        self.shown = shown

    def snapshot(self) -> TierSnapshot:
        return replace(self.shown, num_asked=self.shown.num_asked + sum(map(len, self.asked)))


DISK = TierSnapshot(
    name="disk",
    kind="disk",
    is_local=True,
    state=TierState.AVAILABLE,
    used_bytes=91 << 30,
    capacity_bytes=200 << 30,
    num_chunks=45_678,
    num_evicted=17,
    reads={"arrived": 900, "absent": 2, "damaged": 3, "late": 1},
    writes={"ok": 46_000, "full": 4},
    dropped={"queue full": 100, "budget": 20},
    read_bytes=900 << 21,
    written_bytes=46_000 << 21,
    num_asked=2_000,
    num_found=906,
    read_bytes_per_second=2.31e9,
    write_bytes_per_second=890e6,
    queued_reads=5,
    queued_writes=6,
    queued_write_bytes=12 << 20,
    num_io_workers=4,
    num_io_workers_killed=2,
)
"""A disk that works, with a few troubles behind it."""
VALKEY = TierSnapshot(
    name="shared",
    kind="valkey",
    is_local=False,
    state=TierState.FAILING,
    detail="10.0.0.7:6379: connection refused",
    reads={"failed": 3},
    num_asked=10,
    num_io_workers=3,
    seconds_to_probe=7.96,
)
"""A server on the network that does not answer."""


def disk_and_valkey(*_: object) -> list[ShownTier]:
    """Return both, whatever the settings are."""
    return [ShownTier(DISK), ShownTier(VALKEY)]


def tier_events() -> list[Event]:
    """Return what a tier publishes of a question, of reads and writes, and of an I/O worker that was killed."""
    about: dict[str, Any] = {"tier": "disk", "model_name": "m", "key": b"k", "num_bytes": 1 << 21}
    took: dict[str, Any] = {"wait_seconds": 0.004, "duration_seconds": 0.03}
    return [
        TierAsked(tier="disk", num_chunks=4, num_found=2, duration_seconds=0.0004, outcome="ok"),
        TierRead(**about, **took, outcome="arrived"),
        TierRead(**about, **took, outcome="unwanted"),
        TierWritten(**about, **took, outcome="ok"),
        TierWritten(**about, **took, outcome="full"),
        IoWorkerEnded(tier="disk", role="read", reason="deadline", verb="read", num_parts=3),
    ]
