"""Reports of the blocks that the scheduler gives to requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from kvdepot.connector.request_state import RequestState


class BlockAllocation(NamedTuple):
    """The blocks that a request got, and their tokens."""

    session_id: str
    block_ids: Sequence[int]
    reused_block_ids: Sequence[int]
    token_ids: Sequence[int]
    resumed: bool


class BlockReporter(Protocol):
    """A receiver of block allocations. `BlockReportQueue` implements it."""

    def report(self, allocation: BlockAllocation) -> None: ...
    def end_session(self, session_id: str) -> None: ...


def report_allocation(
    reporter: BlockReporter,
    state: RequestState,
    block_ids: Sequence[int],
    block_size: int,
    num_tokens: int,
    starts_anew: bool,
) -> None:
    """Report the blocks that a request got in a step that computes `num_tokens`.

    If the request `starts_anew`, `block_ids` are all of its blocks; else they extend its table.
    """
    request = state.request
    if not (starts_anew or state.is_reported) or not state.traits.has_token_ids:
        return
    num_reused = state.local_tokens // block_size if starts_anew else 0
    start = 0 if starts_anew else state.reported_tokens
    end = min(request.num_computed_tokens + num_tokens, request.num_tokens)
    reporter.report(
        BlockAllocation(
            session_id=state.session_id,
            block_ids=block_ids[num_reused:],
            reused_block_ids=block_ids[:num_reused],
            token_ids=request.all_token_ids[start:end],
            resumed=starts_anew and state.is_reported,
        )
    )
    state.is_reported = state.known_to_depot = True
    state.reported_tokens = end
