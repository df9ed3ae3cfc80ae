"""Explain: what a lookup of a prompt would find, and why it would not find more. It changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from service.depot.chunk_index import CHUNKS_PER_STEP
from service.depot.depot import Depot
from service.depot.instances import Attachment, Instance
from service.depot.match import miss_at, miss_of_all
from service.depot.slices import Pace
from service.depot.states import has_state, no_state
from service.depot.stored_identities import StoredIdentity
from service.depot.tier_search import tokens_in_tiers
from service.depot.values import Miss
from service.l1.chunk import Chunk, NamespaceStats
from service.l1.keys import ChunkKey, Prefix, chunk_keys
from service.l1.past import Refused, Tombstone
from telemetry.kinds import ChunkState

MAX_OTHERS = 8
NAMESPACES_PER_STEP = 64


@dataclass(slots=True, kw_only=True)
class RankExplanation:
    """What one rank has of a prompt: its own longest prefix, and the chunk at which the match ends.

    `state` and what follows are of that chunk; None if nothing is missing. `store_time` is in seconds since the epoch.
    `absent_until[group]` is the end of the last absent beginning in the chunks that matched.
    """

    rank: int
    num_chunks: int = 0
    state: ChunkState | None = None
    store_time: float | None = None
    tombstone: Tombstone | None = None
    refused: Refused | None = None
    absent_until: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherIdentity:
    """Another identity of the tenant under which more of the prompt is stored, by rank 0."""

    stats: NamespaceStats
    num_chunks: int
    other_geometry: bool

    @property
    def num_tokens(self) -> int:
        """The tokens of the prompt that are stored under it."""
        return self.num_chunks * self.stats.chunk_size


@dataclass(slots=True, kw_only=True)
class Explanation:
    """What the depot has of a prompt. `num_unreachable` counts chunks that all ranks have behind the missing one.

    `num_incomparable` counts the model's chunks whose keys are of another kind than the prompt: of block hashes, or of
    hashes of other blocks, instead of token ids, or the other way round. `tokens_in_tiers` counts the tokens behind the
    match in L1 that a lookup would load, by tier.
    """

    instance: Instance
    ranks: list[RankExplanation]
    num_matched: int = 0
    num_unreachable: int = 0
    miss: Miss | None = None
    others: Sequence[OtherIdentity] = ()
    num_incomparable: int = 0
    tokens_in_tiers: dict[str, int] = field(default_factory=dict)
    remembers_since: float | None = None


async def explain_prefix(depot: Depot, instance_id: str, model_name: str, prefix: Prefix) -> Explanation:
    """Explain a prompt, as an instance, or as one of a model, would look it up. One of the two names is empty.

    Raises: InvalidRequest, InstanceNotFound, BlockHashSeedMissing.
    """
    instance = depot.instances.named(instance_id, model_name)
    depot.check_prefix(instance, prefix)
    pace = depot.slices.pace()
    attached = [attachment for _, attachment in sorted(instance.ranks.items())]
    by_rank = {each.rank: RankExplanation(rank=each.rank) for each in attached}
    explanation = Explanation(
        instance=instance,
        ranks=[
            by_rank.get(rank, RankExplanation(rank=rank, state=ChunkState.NOT_ATTACHED))
            for rank in range(instance.world_size)
        ],
        miss=miss_of_all(instance, prefix),
        remembers_since=depot.index.past.since(),
    )
    await _walk(depot, attached, prefix, explanation, pace)
    if depot.tiers and instance.complete and explanation.miss is not None:
        explanation.tokens_in_tiers = await tokens_in_tiers(depot, instance, prefix, explanation.num_matched)
    await _look_elsewhere(depot, attached, prefix, explanation, pace)
    return explanation


async def _walk(
    depot: Depot, attached: Sequence[Attachment], prefix: Prefix, explanation: Explanation, pace: Pace
) -> None:
    """Look at every chunk of the prompt, of all ranks at a time."""
    chunk_size, get = explanation.instance.chunk_size, depot.index.get
    namespaces = [each.identity.namespace(prefix) for each in attached]
    explained = [explanation.ranks[each.rank] for each in attached]
    positions_per_step = max(1, CHUNKS_PER_STEP // len(attached))
    walks = zip(*(chunk_keys(namespace, prefix, chunk_size) for namespace in namespaces), strict=True)
    # No chunk matches while a rank is not attached. The attached ranks are explained all the same, at the first chunk.
    is_over = explanation.miss is not None
    num_usable = 0  # chunks of a match that ends with a state
    behind: tuple[Sequence[ChunkKey], Sequence[Chunk | None]] | None = None  # the first chunk that is not usable
    for position, keys in enumerate(walks):
        if position % positions_per_step == 0 and pace.is_over():
            await pace.next()
        found = [get(key) for key in keys]
        resident = [chunk is not None and chunk.pending_write is None for chunk in found]
        for rank, is_resident in zip(explained, resident, strict=True):
            rank.num_chunks += is_resident and rank.num_chunks == position
        if is_over:
            explanation.num_unreachable += all(resident) and explanation.instance.complete
        elif all(resident):
            explanation.num_matched += 1
            if all(chunk is not None and has_state(each, chunk) for each, chunk in zip(attached, found, strict=True)):
                num_usable, behind = explanation.num_matched, None
            else:
                behind = behind or (keys, found)
            _note_absent(explained, found, position * chunk_size)
        else:
            is_over = True
            here = StoredIdentity.of(attached[0], prefix)
            explanation.miss = miss_at(depot, namespaces, here, keys, found, position * chunk_size)
        if is_over and explained[0].state is None:
            for rank, key, chunk in zip(explained, keys, found, strict=True):
                _note_chunk(depot, rank, key, chunk)
    if behind is not None:
        explanation.num_unreachable += explanation.num_matched - num_usable
        explanation.num_matched = num_usable
        explanation.miss = no_state(num_usable * chunk_size)
        for rank, key, chunk in zip(explained, *behind, strict=True):
            _note_chunk(depot, rank, key, chunk)


def _note_absent(ranks: Sequence[RankExplanation], chunks: Iterable[Chunk | None], start_token: int) -> None:
    for rank, chunk in zip(ranks, chunks, strict=True):
        for group, num_tokens in enumerate(chunk.absent_tokens if chunk is not None else ()):
            if num_tokens:
                rank.absent_until[group] = start_token + num_tokens


def _note_chunk(depot: Depot, rank: RankExplanation, key: ChunkKey, chunk: Chunk | None) -> None:
    """Note what a rank has of the chunk at which the match ends."""
    if chunk is None:
        rank.state = ChunkState.MISSING
    elif chunk.pending_write is not None:
        rank.state = ChunkState.BEING_STORED
    else:
        rank.state = ChunkState.RESIDENT
        rank.store_time = time.time() - (time.monotonic() - chunk.store_time)
    rank.tombstone = depot.index.past.tombstone(key)
    rank.refused = depot.index.past.refused(key)


async def _look_elsewhere(
    depot: Depot, attached: Sequence[Attachment], prefix: Prefix, explanation: Explanation, pace: Pace
) -> None:
    """Find the identities under which rank 0 has more of the prompt, the longest match first.

    The walks of all of them end after as many steps as L1 has chunks and namespaces.
    """
    own_namespaces = {each.identity.namespace(prefix) for each in attached}
    matched_tokens = explanation.num_matched * explanation.instance.chunk_size
    others: list[OtherIdentity] = []
    for number, stats in enumerate(list(depot.index.namespaces())):
        if number % NAMESPACES_PER_STEP == 0 and pace.is_over():
            await pace.next()
        if stats.tenant != depot.tenant or stats.rank != 0 or stats.namespace in own_namespaces:
            continue
        if stats.hash_block_size != prefix.hash_block_size:
            explanation.num_incomparable += stats.num_chunks * (stats.model_name == attached[0].model_name)
            continue
        num_chunks = await _num_resident(depot, chunk_keys(stats.namespace, prefix, stats.chunk_size), pace)
        if num_chunks * stats.chunk_size > matched_tokens:
            other_geometry = stats.geometry != attached[0].identity.geometry
            others.append(OtherIdentity(stats=stats, num_chunks=num_chunks, other_geometry=other_geometry))
    explanation.others = sorted(others, key=lambda other: -other.num_tokens)[:MAX_OTHERS]


async def _num_resident(depot: Depot, keys: Iterable[ChunkKey], pace: Pace) -> int:
    """Return how many of the first keys are resident."""
    num_chunks = 0
    for key in keys:
        chunk = depot.index.get(key)
        if chunk is None or chunk.pending_write is not None:
            break
        num_chunks += 1
        if num_chunks % CHUNKS_PER_STEP == 0 and pace.is_over():
            await pace.next()
    return num_chunks
