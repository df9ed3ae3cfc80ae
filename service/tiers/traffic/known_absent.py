"""Names that a tier was found not to have, so that no lookup asks for them again so soon."""

from __future__ import annotations

from collections.abc import Callable

ABSENT_SECONDS = 30.0
MAX_NAMES = 65_536


class KnownAbsent:
    """Names for `ABSENT_SECONDS` each, the newest `MAX_NAMES` of them. `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._times: dict[bytes, float] = {}  # the oldest first

    def __contains__(self, name: bytes) -> bool:
        time = self._times.get(name)
        return time is not None and self._clock() - time < ABSENT_SECONDS

    def __len__(self) -> int:
        return len(self._times)

    def add(self, name: bytes) -> None:
        """Note a name that the tier does not have."""
        self._times.pop(name, None)
        self._times[name] = self._clock()
        if len(self._times) > MAX_NAMES:
            del self._times[next(iter(self._times))]

    def discard(self, name: bytes) -> None:
        """Forget a name, because the tier has it now."""
        self._times.pop(name, None)
