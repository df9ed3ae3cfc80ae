"""How many tokens of prompts an engine computes in a second, as its steps show it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MIN_REQUEST_TOKENS = 16
"""A request that gets as many tokens in a step is in prefill. Drafts of speculative decoding are fewer."""
MIN_STEP_TOKENS = 64
MIN_PREFILL_SHARE = 0.75
"""The share of tokens in prefill that makes a step one of prefill."""
MIN_STEPS = 8
MAX_STEPS = 64
QUANTILE = 0.75
"""Small steps have a low rate, and so has a step that a pause made long. Most of the others are near the true rate."""


@dataclass(slots=True)
class _Step:
    """A step of prefill. Its time is the longest of the next `intervals_left` intervals and those before."""

    num_tokens: int
    intervals_left: int
    seconds: float = 0.0


class PrefillRate:
    """The rate of one engine. `configured` is the user's rate, which counts if it is above 0.

    An engine may schedule `steps_ahead` steps while an earlier one runs. So the time from one schedule to the next is
    not always the time of a step. The longest of this interval and the `steps_ahead` next ones counts. In doubt the
    rate is too low, and the depot reads from a tier although the engine would be quicker. `clock` is in seconds.
    """

    def __init__(self, configured: float, steps_ahead: int, clock: Callable[[], float]) -> None:
        self._configured = configured
        self._steps_ahead = steps_ahead
        self._clock = clock
        self._interval_began: float | None = None
        self._running: deque[_Step] = deque()
        self._rates: deque[float] = deque(maxlen=MAX_STEPS)

    @property
    def tokens_per_second(self) -> float | None:
        """The rate. None: it is not known yet."""
        if self._configured:
            return self._configured
        if len(self._rates) < MIN_STEPS:
            return None
        return sorted(self._rates)[int(QUANTILE * len(self._rates))]

    def step(self, num_scheduled_tokens: Mapping[str, int]) -> None:
        """Take a step that the engine has just scheduled, by the tokens of each request."""
        if self._configured:
            return
        now = self._clock()
        self._end_interval(now)
        self._interval_began = now
        counts = num_scheduled_tokens.values()
        num_tokens = sum(count for count in counts if count >= MIN_REQUEST_TOKENS)
        if num_tokens >= MIN_STEP_TOKENS and num_tokens >= MIN_PREFILL_SHARE * sum(counts):
            self._running.append(_Step(num_tokens, 1 + self._steps_ahead))

    def idle(self) -> None:
        """Note that the engine has no request: it schedules no step until the next one comes."""
        if self._interval_began is None:
            return
        self._end_interval(self._clock())
        self._interval_began = None
        while self._running:
            self._count(self._running.popleft())

    def _end_interval(self, now: float) -> None:
        if self._interval_began is None:
            return
        for step in self._running:
            step.seconds = max(step.seconds, now - self._interval_began)
            step.intervals_left -= 1
        while self._running and not self._running[0].intervals_left:
            self._count(self._running.popleft())

    def _count(self, step: _Step) -> None:
        if step.seconds > 0:
            self._rates.append(step.num_tokens / step.seconds)
