"""A router: it knows what the depots told, and sends each request to one of them."""

from __future__ import annotations

from dataclasses import dataclass

from examples.router.index import DepotIndex, Match, Prompt
from examples.router.policies import Policy
from examples.router.reader import Change, Condition


@dataclass(frozen=True, slots=True)
class Route:
    """The depot of a request, and what the router expects it to have of the prompt."""

    depot: int
    expected: Match


class Router:
    """Routes the requests of one model to depots, numbered from 0."""

    def __init__(self, num_depots: int, policy: Policy, model: str) -> None:
        self._indexes = [DepotIndex() for _ in range(num_depots)]
        self._answering: set[int] = set()
        self._policy = policy
        self._model = model

    def __repr__(self) -> str:
        return f"<Router to {len(self._answering)}/{len(self._indexes)} depots>"

    @property
    def num_answering(self) -> int:
        """How many depots can get requests."""
        return len(self._answering)

    def apply(self, change: Change) -> None:
        """Take in what a depot told."""
        index = self._indexes[change.depot]
        if change.condition in (Condition.BEGINS_ANEW, Condition.IS_GONE):
            index.clear()
        if change.condition is Condition.ANSWERS:
            self._answering.add(change.depot)
        elif change.condition is Condition.IS_GONE:
            self._answering.discard(change.depot)
        if change.model == self._model:
            for event in change.events:
                index.apply(event)

    def matches(self, prompt: Prompt) -> list[Match]:
        """Return what each depot has of a prompt."""
        return [index.match(prompt) for index in self._indexes]

    def route(self, prompt: Prompt) -> Route:
        """Choose a depot for a prompt. If none answers, all are as good: an engine also computes without its depot."""
        matches = self.matches(prompt)
        depots = sorted(self._answering) or range(len(self._indexes))
        depot = self._policy.choose(len(prompt), matches, depots)
        return Route(depot, matches[depot])
