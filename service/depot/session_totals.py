"""The totals of a session: what its calls moved and missed, counted call by call."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from service.depot.operation import Operation
from service.depot.values import Miss
from telemetry.kinds import MissReason, OperationKind, Outcome

_ANSWERED = frozenset({Outcome.OK, Outcome.PARTIAL, Outcome.MISS})


@dataclass(slots=True, eq=False)
class SessionTotals:
    """Sums over all calls of a session that ended, also over those that the session does not keep.

    `num_hits` counts lookups that matched a chunk or more. `misses` counts lookups by the reason why their match is not
    longer. `last_miss` is the miss of the last such lookup, and `last_miss_time` when that was answered, in seconds
    since the epoch.
    """

    num_lookups: int = 0
    num_hits: int = 0
    prompt_tokens: int = 0
    matched_tokens: int = 0
    refused_tokens: int = 0
    stored_bytes: int = 0
    retrieved_bytes: int = 0
    misses: dict[MissReason, int] = field(default_factory=dict)
    last_miss: Miss | None = None
    last_miss_time: float = 0.0
    _stored_tokens: dict[int, int] = field(default_factory=dict)  # by rank
    _retrieved_tokens: dict[int, int] = field(default_factory=dict)

    @property
    def stored_tokens(self) -> int:
        """The tokens that were stored: the fewest of any rank that stored."""
        return min(self._stored_tokens.values(), default=0)

    @property
    def retrieved_tokens(self) -> int:
        """The tokens that the engine need not compute: the fewest of any rank that retrieved."""
        return min(self._retrieved_tokens.values(), default=0)

    def note_miss(self, miss: Miss) -> None:
        """Remember the miss of a lookup that is being answered."""
        self.last_miss, self.last_miss_time = miss, time.time()

    def add(self, operation: Operation) -> None:
        """Count a call that ended."""
        if operation.kind is OperationKind.LOOKUP:
            if operation.outcome in _ANSWERED:
                self._add_lookup(operation)
        elif operation.kind is OperationKind.STORE:
            self.stored_bytes += operation.num_bytes
            self.refused_tokens += operation.refused_tokens
            _add_tokens(self._stored_tokens, operation)
        else:
            self.retrieved_bytes += operation.num_bytes
            _add_tokens(self._retrieved_tokens, operation)

    def _add_lookup(self, operation: Operation) -> None:
        self.num_lookups += 1
        self.num_hits += operation.num_tokens > 0
        self.prompt_tokens += operation.prompt_tokens
        self.matched_tokens += operation.num_tokens
        reason = operation.miss_reason
        if reason is not None:
            self.misses[reason] = self.misses.get(reason, 0) + 1


def _add_tokens(by_rank: dict[int, int], operation: Operation) -> None:
    by_rank[operation.rank] = by_rank.get(operation.rank, 0) + operation.num_tokens
