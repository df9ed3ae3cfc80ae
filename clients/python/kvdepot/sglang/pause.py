"""A pause after calls that the depot did not answer, so that a depot that hangs does not delay every call."""

from __future__ import annotations

import time
from collections.abc import Callable

FIRST_SECONDS = 0.5
MAX_SECONDS = 5.0


class Pause:
    """Doubles with each failure, up to `MAX_SECONDS`. An answer ends it."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._seconds = 0.0
        self._until = 0.0

    @property
    def is_on(self) -> bool:
        """Whether calls are to be left out now."""
        return self._monotonic() < self._until

    def note_failure(self) -> None:
        """Begin a pause, longer than the one before."""
        self._seconds = min(MAX_SECONDS, 2 * self._seconds or FIRST_SECONDS)
        self._until = self._monotonic() + self._seconds

    def note_answer(self) -> None:
        """End the pause."""
        self._seconds = self._until = 0.0
