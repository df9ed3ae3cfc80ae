"""What the scheduler gave to a request in a step, as the depot is told of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from kvdepot.connector.request_state import RequestState


class Allocation(NamedTuple):
    """Blocks that a request was given, and the tokens that they are for."""

    session_id: str
    block_ids: Sequence[int]
    reused_block_ids: Sequence[int]
    token_ids: Sequence[int]
    resumed: bool


class Reports(Protocol):
    """Where allocations are told; `BlockReports` is one."""

    def note(self, allocation: Allocation) -> None: ...
    def end(self, session_id: str) -> None: ...


def note_allocation(
    reports: Reports, state: RequestState, block_ids: Sequence[int], block_size: int, num_tokens: int, anew: bool
) -> None:
    """Tells of blocks that a request got in a step that computes ``num_tokens``; ``anew``: they are all that it has."""
    request = state.request
    if not (anew or state.is_reported) or request.prompt_embeds is not None:
        return
    resumed = anew and state.is_reported
    num_reused = state.local_tokens // block_size if anew else 0
    start = 0 if anew else state.reported_tokens
    end = min(request.num_computed_tokens + num_tokens, request.num_tokens)
    reports.note(
        Allocation(
            session_id=state.session_id,
            block_ids=block_ids[num_reused:],
            reused_block_ids=block_ids[:num_reused],
            token_ids=request.all_token_ids[start:end],
            resumed=resumed,
        )
    )
    state.is_reported = state.known_to_depot = True
    state.reported_tokens = end
