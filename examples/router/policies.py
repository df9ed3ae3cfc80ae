"""Which depot gets a request."""

from __future__ import annotations

import random
from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

from examples.router.index import Match


class PolicyName(StrEnum):
    """How a router chooses."""

    PREFIX = "prefix"
    RANDOM = "random"
    ROUND_ROBIN = "round_robin"


class Policy(Protocol):
    """Chooses a depot. `depots` are the numbers of those that answer, at least one, in order."""

    def choose(self, prompt_tokens: int, matches: Sequence[Match], depots: Sequence[int]) -> int:
        """Return the number of a depot. `matches[number]` is what the depot has of the prompt."""


class Random:
    """Each depot is as likely."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = random.Random(seed)

    def choose(self, prompt_tokens: int, matches: Sequence[Match], depots: Sequence[int]) -> int:
        """Return any depot."""
        return self._rng.choice(depots)


class RoundRobin:
    """One after the other."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, prompt_tokens: int, matches: Sequence[Match], depots: Sequence[int]) -> int:
        """Return the next depot."""
        depot = depots[self._next % len(depots)]
        self._next += 1
        return depot


class LongestPrefix:
    """The longest prefix among the depots that have at most `load_bound` times the mean load.

    The bound is that of "Consistent Hashing with Bounded Loads" (Mirrokni, Thorup, Zadimoghaddam, 2016): affinity
    decides until a server has its share. Depots whose value is less than the best one by at most `near` of the prompt
    are as good, and the one with the least load gets the request. Load is the tokens of the prompts that a depot got,
    and it halves with every `half_life_requests`.
    """

    def __init__(
        self, num_depots: int, *, load_bound: float = 1.25, near: float = 0.1, half_life_requests: float = 200.0
    ) -> None:
        self._loads = [0.0] * num_depots
        self._load_bound = load_bound
        self._near = near
        self._decay = 0.5 ** (1 / half_life_requests)

    def choose(self, prompt_tokens: int, matches: Sequence[Match], depots: Sequence[int]) -> int:
        """Return the best depot, and note its load."""
        most_load = self._load_bound * sum(self._loads[depot] for depot in depots) / len(depots)
        allowed = [depot for depot in depots if self._loads[depot] <= most_load]
        enough = max(matches[depot].value for depot in allowed) - self._near * prompt_tokens
        chosen = min(
            (depot for depot in allowed if matches[depot].value >= enough),
            key=lambda depot: (self._loads[depot], -matches[depot].value),
        )
        self._loads = [load * self._decay for load in self._loads]
        self._loads[chosen] += prompt_tokens
        return chosen


def make_policy(name: PolicyName, num_depots: int) -> Policy:
    """Return a policy by its name."""
    match name:
        case PolicyName.PREFIX:
            return LongestPrefix(num_depots)
        case PolicyName.RANDOM:
            return Random()
        case PolicyName.ROUND_ROBIN:
            return RoundRobin()
