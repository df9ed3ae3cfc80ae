"""The breaker of a tier: after failures nothing waits for the tier, and a probe tries it now and then."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

WINDOW_SECONDS = 10.0
MAX_FAILURES = 3
MAX_KILLS = 2
FIRST_PROBE_SECONDS = 1.0
MAX_PROBE_SECONDS = 60.0
STABLE_SECONDS = 60.0
"""A tier that fails again sooner than this after a probe is not tried again so soon."""


class Breaker:
    """Open or closed. `clock` is in seconds. `detail` is what the last failure said.

    `on_change` is called after each change. Three failures, or two kills of I/O workers, open it if they come within
    ten seconds. Then `seconds_to_probe` says when to try. The wait doubles with each probe that fails.
    """

    def __init__(self, clock: Callable[[], float], on_change: Callable[[], None] = lambda: None) -> None:
        self.is_open = False
        self.detail = ""
        self._clock = clock
        self._on_change = on_change
        self._failures: deque[float] = deque(maxlen=MAX_FAILURES)
        self._kills: deque[float] = deque(maxlen=MAX_KILLS)
        self._probe_seconds = FIRST_PROBE_SECONDS
        self._probe_time = 0.0
        self._close_time = clock()

    def __repr__(self) -> str:
        return f"<Breaker {'open' if self.is_open else 'closed'}, {len(self._failures)} failures>"

    def note_failure(self, detail: str) -> None:
        """Note that a call failed. While it is open, this changes nothing: only probes count."""
        self._note(self._failures, detail)

    def note_kill(self, detail: str) -> None:
        """Note that an I/O worker was killed."""
        self._note(self._kills, detail)

    def open_now(self, detail: str, probe_seconds: float | None = None) -> None:
        """Open it, whatever happened before. The first probe is due after `probe_seconds`, if given."""
        self.detail = detail
        self._open(probe_seconds)

    @property
    def seconds_to_probe(self) -> float | None:
        """The time until the next probe, at least 0. None: it is closed."""
        return max(0.0, self._probe_time - self._clock()) if self.is_open else None

    def note_probe(self, detail: str, *, probe_seconds: float | None = None) -> None:
        """Note the result of a probe: an empty `detail` closes it. `probe_seconds` is when to try again, if given."""
        assert self.is_open, "a closed breaker has no probes"
        if detail:
            self.detail = detail
            self._probe_seconds = min(2 * self._probe_seconds, MAX_PROBE_SECONDS)
            self._probe_time = self._clock() + (probe_seconds or self._probe_seconds)
            return
        self.is_open = False
        self.detail = ""
        self._close_time = self._clock()
        self._on_change()

    def check(self) -> None:
        """Assert the invariants, which hold after every step."""
        assert self.is_open or not (self._is_full(self._failures) or self._is_full(self._kills))
        assert FIRST_PROBE_SECONDS <= self._probe_seconds <= MAX_PROBE_SECONDS

    def _note(self, times: deque[float], detail: str) -> None:
        if self.is_open:
            return
        self.detail = detail
        times.append(self._clock())
        if self._is_full(times):
            is_stable = self._clock() - self._close_time >= STABLE_SECONDS
            self._probe_seconds = FIRST_PROBE_SECONDS if is_stable else self._probe_seconds
            self._open()

    def _is_full(self, times: deque[float]) -> bool:
        return len(times) == times.maxlen and self._clock() - times[0] <= WINDOW_SECONDS

    def _open(self, probe_seconds: float | None = None) -> None:
        self.is_open = True
        self._failures.clear()
        self._kills.clear()
        self._probe_time = self._clock() + (probe_seconds or self._probe_seconds)
        self._on_change()
