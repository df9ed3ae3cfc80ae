"""Answers that came when their lookup had given up: the next lookup of the same chunks uses them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

THERE_SECONDS = 30.0
"""How long it counts that a tier has a chunk. If it is gone by then, the read finds out."""
ABSENT_SECONDS = 2.0
"""How long it counts that a tier lacks a chunk. Another depot may write it at any moment."""
MAX_NAMES = 65_536


class LateAnswers:
    """The answers for the newest `MAX_NAMES` names. `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._answers: dict[bytes, tuple[bool, float]] = {}  # with their time, the oldest first

    def __len__(self) -> int:
        return len(self._answers)

    def note(self, names: Sequence[bytes], found: Sequence[int]) -> None:
        """Note which of the names the tier has."""
        now = self._clock()
        for name, is_there in zip(names, found, strict=True):
            self._answers.pop(name, None)
            self._answers[name] = bool(is_there), now
        while len(self._answers) > MAX_NAMES:
            del self._answers[next(iter(self._answers))]

    def get(self, name: bytes) -> bool | None:
        """Return whether the tier has a chunk. None: that is not known, or no longer."""
        is_there, time = self._answers.get(name, (False, float("-inf")))
        seconds = THERE_SECONDS if is_there else ABSENT_SECONDS
        return is_there if self._clock() - time < seconds else None
