"""When chunks of L1 are written to the tiers behind it."""

from __future__ import annotations

from enum import StrEnum


class WritePolicy(StrEnum):
    """What makes the depot write a chunk to the tiers."""

    SECOND_TOUCH = "second-touch"
    """A lookup matches it, or it is stored again after it was evicted."""
    ALL = "all"
    """It is stored."""
    EVICTED = "evicted"
    """It is among those that L1 evicts next."""
    NONE = "none"
    """Nothing: the tiers are only read."""
