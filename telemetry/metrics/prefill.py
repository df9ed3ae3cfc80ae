"""How quickly an instance prefills: as its engine reports it, or as the depot sees it in its sessions."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from dataclasses import dataclass, field

MIN_TOKENS = 64  # of a prefill that counts: the time of a shorter one is mostly that of its calls
MIN_SECONDS = 1e-4
NUM_REMEMBERED = 64  # prefills of an instance
NUM_NEEDED = 5
MAX_INSTANCES = 4_096
MAX_WAITING = 4_096  # sessions between a lookup and their store
QUANTILE = 0.75
"""The time between a lookup and a store has the engine's queue in it, so the quicker prefills are nearer to the truth.
The quickest ones are not: an engine may have had tokens in its own cache."""


@dataclass(slots=True)
class _Prefill:
    """What a session has to compute since a moment."""

    instance_label: str
    first_token: int
    num_tokens: int
    since: float


@dataclass(slots=True)
class _Instance:
    reported: float | None = None
    measured: float | None = None
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=NUM_REMEMBERED))


class PrefillRates:
    """The rates of instances, in tokens per second. Moments are monotonic seconds.

    A rate that the engine reported comes first. The measured one is the upper quartile of the last `NUM_REMEMBERED`
    prefills: tokens that a lookup missed and the session then stored, divided by the time between both. It is unknown
    until there are `NUM_NEEDED`.
    """

    def __init__(self) -> None:
        self._instances: dict[str, _Instance] = {}
        self._waiting: OrderedDict[tuple[str, str], _Prefill] = OrderedDict()

    def __repr__(self) -> str:
        return f"<PrefillRates of {len(self._instances)} instances, {len(self._waiting)}/{MAX_WAITING} sessions wait>"

    def rate(self, instance_label: str) -> tuple[float, str] | None:
        """Return the rate, and "reported" or "measured". None: it is not known."""
        instance = self._instances.get(instance_label)
        if instance is None:
            return None
        if instance.reported is not None:
            return instance.reported, "reported"
        return (instance.measured, "measured") if instance.measured is not None else None

    def attached(self, instance_label: str, reported: float | None) -> None:
        """Note an instance, which a rank of it begins or joins, with the rate that the engine reports."""
        if instance_label not in self._instances and len(self._instances) >= MAX_INSTANCES:
            del self._instances[next(iter(self._instances))]  # its end was dropped
        instance = self._instances.setdefault(instance_label, _Instance())
        if reported is not None:
            instance.reported = reported

    def gone(self, instance_label: str) -> None:
        """Forget an instance."""
        self._instances.pop(instance_label, None)

    def looked_up(self, instance_label: str, session_id: str, first_token: int, num_tokens: int, now: float) -> None:
        """Note that a session has to compute a prompt of `num_tokens` tokens from `first_token` on."""
        if instance_label not in self._instances or num_tokens - first_token < MIN_TOKENS:
            self._waiting.pop((instance_label, session_id), None)
            return
        if len(self._waiting) >= MAX_WAITING:
            self._waiting.popitem(last=False)
        self._waiting[instance_label, session_id] = _Prefill(instance_label, first_token, num_tokens, now)

    def retrieved(self, instance_label: str, session_id: str, now: float) -> None:
        """Note that a session got what matched: it computes the rest from now on."""
        prefill = self._waiting.get((instance_label, session_id))
        if prefill is not None:
            prefill.since = now

    def stored(self, instance_label: str, session_id: str, end_token: int, now: float) -> None:
        """Note that a session begins to store its tokens up to `end_token`: it has computed them."""
        prefill = self._waiting.get((instance_label, session_id))
        if prefill is None or end_token <= prefill.first_token:
            return
        del self._waiting[instance_label, session_id]
        num_tokens = min(end_token, prefill.num_tokens) - prefill.first_token
        seconds = now - prefill.since
        instance = self._instances.get(instance_label)
        if instance is not None and num_tokens >= MIN_TOKENS and seconds >= MIN_SECONDS:
            instance.rates.append(num_tokens / seconds)
            if len(instance.rates) >= NUM_NEEDED:
                ordered = sorted(instance.rates)
                instance.measured = ordered[math.ceil(QUANTILE * len(ordered)) - 1]

    def ended(self, instance_label: str, session_id: str) -> None:
        """Forget a session."""
        self._waiting.pop((instance_label, session_id), None)
