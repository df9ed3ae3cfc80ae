"""What a tier answers to a lookup."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple


class Doubt(StrEnum):
    """Why a tier did not say what it has."""

    LATE = "late"
    FAILED = "failed"
    UNAVAILABLE = "unavailable"
    """It was not asked: its breaker is open, or it is not open yet."""


class Answer(NamedTuple):
    """What a tier has. `found` has an element for each key. With a doubt, the tier may have more than these."""

    found: Sequence[bool]
    doubt: Doubt | None = None
