"""The end of a match where groups hold states: at the last chunk whose state every rank has."""

from __future__ import annotations

from collections.abc import Sequence

from service.depot.chunk_index import unpinning
from service.depot.depot import Depot
from service.depot.instances import Attachment, Instance
from service.depot.match import Match
from service.depot.values import Miss
from service.l1.chunk import Chunk
from telemetry.kinds import MissReason, Tier


def has_state(attachment: Attachment, chunk: Chunk) -> bool:
    """Return whether a match may end with a chunk of a rank. It may not while the chunk comes from a tier."""
    if not attachment.state_groups:
        return True
    return not chunk.is_loading and not any(
        chunk.absent_tokens and chunk.absent_tokens[group] >= attachment.chunk_size for group in attachment.state_groups
    )


def num_usable(attachments: Sequence[Attachment], chunks_by_rank: Sequence[Sequence[Chunk]]) -> int:
    """Return how many of the first chunks a match may have, so that its last one has a state at every rank."""
    for number in range(len(chunks_by_rank[0]), 0, -1):
        at_end = (chunks[number - 1] for chunks in chunks_by_rank)
        if all(map(has_state, attachments, at_end)):
            return number
    return 0


def end_with_state(depot: Depot, instance: Instance, match: Match) -> None:
    """Make a match shorter, so that it ends with a state. `match.miss` says why.

    Chunks behind its new end that are on their way from tiers go on: a later lookup finds out whether they have states.
    """
    if not instance.has_states or not match.num_chunks:
        return
    attachments = [instance.ranks[rank] for rank in sorted(instance.ranks)]
    num_chunks = num_usable(attachments, match.chunks_by_rank)
    if num_chunks == match.num_chunks:
        return
    left_out = match.cut(num_chunks)
    loading = [chunk for chunks in left_out for chunk in chunks if chunk.is_loading]
    match.miss = no_state(match.num_tokens, is_loading=bool(loading))
    if loading:
        own = {chunk for chunk, _ in match.loads}
        depot.prefetches.begin(instance.model_name, left_out, (chunk for chunk in loading if chunk in own))
    else:
        depot.slices.run(unpinning(depot.index, left_out))


def no_state(at_token: int, *, is_loading: bool = False) -> Miss:
    """Return the miss of a match that ends before chunks that are there, at `at_token`, for lack of a state."""
    if is_loading:
        detail = "chunks behind it are on their way from a tier; whether they have states is known when they are here"
        return Miss(reason=MissReason.TIER_LATE, at_token=at_token, detail=detail, tier=Tier.L2)
    detail = "the chunk is stored, and neither it nor one behind it has the states with which a match can end"
    return Miss(reason=MissReason.NO_STATE, at_token=at_token, detail=detail)
