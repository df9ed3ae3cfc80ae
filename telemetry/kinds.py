"""The kinds that events, metrics, the depot and its RPCs share. Each is defined only here."""

from __future__ import annotations

from enum import StrEnum


class OperationKind(StrEnum):
    """What a call does with the cache."""

    LOOKUP = "lookup"
    STORE = "store"
    RETRIEVE = "retrieve"


class Outcome(StrEnum):
    """How an operation or a transfer ended."""

    OK = "ok"
    PARTIAL = "partial"
    MISS = "miss"
    REFUSED = "refused"
    CANCELLED = "cancelled"
    FAILED = "failed"


class Tier(StrEnum):
    """Where chunks are."""

    L1 = "l1"
    L2 = "l2"


class MissReason(StrEnum):
    """Why a match is not longer."""

    SHORTER_THAN_CHUNK = "shorter than chunk"
    NEVER_STORED = "never stored"
    EVICTED = "evicted"
    BEING_STORED = "being stored"
    RANK_MISSING = "rank missing"
    CLEARED = "cleared"
    UNKNOWN_IDENTITY = "unknown identity"
    CORRUPT = "corrupt"
    TIER_LATE = "tier late"
    TIER_FAILED = "tier failed"
    TIER_SLOWER_THAN_PREFILL = "tier slower than prefill"
    NO_SLOT = "no slot"
    NO_STATE = "no state"


class RefusalReason(StrEnum):
    """Why a chunk was not stored."""

    NO_SLOT = "no slot"
    STORE_TIMEOUT = "store timeout"
    NO_BYTES = "no bytes"


class Hop(StrEnum):
    """Where the bytes of a chunk in L1 are compared with its checksum."""

    RETRIEVE = "retrieve"
    INLINE = "inline"
    SCRUB = "scrub"
    TIER_WRITE = "tier write"


class ChunkState(StrEnum):
    """What a rank has of a chunk."""

    RESIDENT = "resident"
    BEING_STORED = "being stored"
    MISSING = "missing"
    NOT_ATTACHED = "not attached"


class LeaseEnd(StrEnum):
    """Why a lease ended."""

    RELEASED = "released"
    EXPIRED = "expired"
    REVOKED = "revoked"
    SESSION_ENDED = "session ended"
    INSTANCE_DETACHED = "instance detached"


class PinEnd(StrEnum):
    """Why a pin ended."""

    UNPINNED = "unpinned"
    EXPIRED = "expired"
    CLEARED = "cleared"
    LOST = "lost"
    """Its last chunk was corrupt, or did not come from its tier."""


class PrefetchOutcome(StrEnum):
    """What became of a chunk that a prefetch loaded."""

    USED = "used"
    """A lookup matched it within a minute."""
    UNUSED = "unused"
    FAILED = "failed"
    """It did not come from its tier."""


class SessionEnd(StrEnum):
    """Why a session ended."""

    REQUESTED = "requested"
    IDLE = "idle"
    INSTANCE_DETACHED = "instance detached"


class DetachReason(StrEnum):
    """Why an attachment ended."""

    CLOSED = "closed"
    LOST = "lost"
    """The engine left sessions, leases or transfers, and sent no DetachInstance."""
    FAILED = "failed"
    """Its device failed."""
    DRAINED = "drained"
    """The depot shut down."""
