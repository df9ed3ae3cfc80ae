"""What happens in the tiers behind L1."""

from __future__ import annotations

from telemetry.events.event import Event, fact


@fact
class TierAsked(Event):
    """A Lookup asked a tier for chunks. `outcome`: ok, late or failed. A local tier is not asked, it is known."""

    tier: str
    num_chunks: int
    num_found: int
    duration_seconds: float
    outcome: str


@fact
class TierRead(Event):
    """A tier read one chunk into L1, or did not. `outcome`: arrived, absent, damaged, late, failed, unwanted.

    `wait_seconds` is how long the chunk waited for an I/O worker.
    """

    tier: str
    model_name: str
    key: bytes
    num_bytes: int
    wait_seconds: float
    duration_seconds: float
    outcome: str


@fact
class TierWritten(Event):
    """A tier wrote one chunk, or did not. `outcome`: ok, full, late, failed, corrupt (its bytes in L1 were wrong)."""

    tier: str
    model_name: str
    key: bytes
    num_bytes: int
    wait_seconds: float
    duration_seconds: float
    outcome: str


@fact
class TierWriteDropped(Event):
    """A chunk is not written to a tier. `reason`: queue full, budget, evicted, tier unavailable, shutdown."""

    tier: str
    model_name: str
    reason: str
    num_chunks: int
    num_bytes: int


@fact
class TierStateChanged(Event):
    """A tier can be used again, or can't. `state`: opening, available, failing, unusable."""

    tier: str
    state: str
    detail: str


@fact
class IoWorkerEnded(Event):
    """An I/O worker of a tier ended. `reason`: deadline, crash, protocol. `verb`: what it was doing."""

    tier: str
    role: str
    reason: str
    verb: str
    num_parts: int
