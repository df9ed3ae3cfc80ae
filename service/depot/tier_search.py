"""The search of a match's continuation in the tiers: what is asked for, what is worth reading, and what is loaded."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice

from service.depot.depot import Depot
from service.depot.instances import Attachment, Instance
from service.depot.loading import Wanted
from service.depot.match import Match, miss_at
from service.depot.stored_identities import StoredIdentity
from service.depot.tier import Answer, Doubt, Tier
from service.depot.values import Miss
from service.depot.worth_reading import Position, worth_reading
from service.l1.chunk import Chunk
from service.l1.keys import ChunkKey, Prefix, chunk_keys
from service.tiers.record import Owner
from telemetry.kinds import MissReason
from telemetry.kinds import Tier as TierKind

MAX_KEYS = 2_048
"""Keys that one lookup asks for, of all ranks together: half a million tokens of one rank with the usual chunks.

To compute so many, and to reserve slots for them, holds the event loop for some 30 ms.
"""

_NOT_IN_L1 = frozenset({MissReason.NEVER_STORED, MissReason.EVICTED, MissReason.RANK_MISSING, MissReason.CORRUPT})


Admit = Callable[[Match, Sequence[int]], int]
"""Returns how many of the next positions may be loaded, by the bytes that each of them takes. Its errors are raised."""


async def extend(
    depot: Depot,
    instance_id: str,
    prefix: Prefix,
    match: Match,
    *,
    longest_wait_seconds: float = math.inf,
    prefill_rate: float | None = None,
    admit: Admit | None = None,
) -> bool:
    """Ask the tiers for the chunks behind a match, and make the match longer by those that begin to load.

    It waits for each tier as long as that has for its answer, and no longer than `longest_wait_seconds`. The new chunks
    are pinned as the others are. `match.miss` says why it is not longer still. Return False if chunks of the match, or
    ranks of the instance, went away meanwhile. Then nothing was done.

    Only what is read sooner than the engine computes it at `prefill_rate` is loaded. With `admit` no request waits for
    the chunks, so `admit` alone decides.

    Raises: InstanceNotFound.
    """
    if match.miss is None or not _may_be_in_tiers(match.miss):
        return True
    if any(_is_nowhere(depot, key) for key in match.end_keys):
        return True
    instance = depot.instances.require(instance_id)
    ranks = dict(instance.ranks)
    num_removed = depot.index.num_removed_pinned
    before = [[chunk.key for chunk in chunks] for chunks in match.chunks_by_rank]
    search = _Search(depot, [ranks[rank] for rank in sorted(ranks)], prefix, before)
    await search.ask(longest_wait_seconds)
    if depot.index.num_removed_pinned != num_removed or depot.instances.require(instance_id).ranks != ranks:
        return False
    search.take(match, prefill_rate, admit)
    return True


async def tokens_in_tiers(depot: Depot, instance: Instance, prefix: Prefix, num_chunks: int) -> dict[str, int]:
    """Return how many tokens behind the first `num_chunks` chunks each tier would add to a match. Nothing is loaded.

    All ranks of the instance are attached.
    """
    attachments = [instance.ranks[rank] for rank in sorted(instance.ranks)]
    chunk_size = instance.chunk_size
    namespaces = [each.identity.namespace(prefix) for each in attachments]
    before = [list(islice(chunk_keys(namespace, prefix, chunk_size), num_chunks)) for namespace in namespaces]
    search = _Search(depot, attachments, prefix, before)
    await search.ask(math.inf)
    return {name: count * chunk_size for name, count in search.chunks_by_tier().items()}


def _may_be_in_tiers(miss: Miss) -> bool:
    """Return whether a tier may have what L1 lacks. A cleared chunk was cleared in the tiers, too."""
    return miss.reason in _NOT_IN_L1 or (miss.reason is MissReason.UNKNOWN_IDENTITY)


def _is_nowhere(depot: Depot, key: ChunkKey) -> bool:
    """Return whether L1 and all tiers certainly lack a chunk."""
    are_local = all(tier.is_local for tier in depot.tiers)  # beside a remote one, each is asked once: below
    return are_local and depot.index.get(key) is None and all(tier.lacks(key) for tier in depot.tiers)


class _Search:
    """One search. `before[rank]` has the keys of the match, `keys[rank][i]` is that of the chunk `i` behind it."""

    def __init__(
        self,
        depot: Depot,
        attachments: Sequence[Attachment],
        prefix: Prefix,
        before: Sequence[Sequence[ChunkKey]],
    ) -> None:
        self._depot = depot
        self._attachments = attachments
        self._prefix = prefix
        self._chunk_size = chunk_size = attachments[0].chunk_size
        self._namespaces = [each.identity.namespace(prefix) for each in attachments]
        most = MAX_KEYS // len(attachments)
        self._keys = [
            list(islice(chunk_keys(namespace, prefix, chunk_size, keys), most))
            for namespace, keys in zip(self._namespaces, before, strict=True)
        ]
        self._tiers_of: dict[ChunkKey, list[Tier]] = {}
        self._doubts: list[tuple[Tier, Doubt]] = []

    async def ask(self, longest_wait_seconds: float) -> None:
        """Ask the tiers for the keys that L1 lacks: the local ones first, then all others at the same time."""
        owner = Owner(self._depot.tenant, self._attachments[0].model_name, self._prefix.cache_salt)
        index = self._depot.index
        keys = [key for position in zip(*self._keys, strict=True) for key in position if index.get(key) is None]
        tiers = self._depot.tiers
        for tier in (tier for tier in tiers if tier.is_local):
            self._note(tier, keys, await tier.find(keys, owner, tier.answer_seconds))
            keys = [key for key in keys if key not in self._tiers_of]
        remote = [tier for tier in tiers if not tier.is_local]
        if keys and remote:
            answers = await asyncio.gather(
                *(tier.find(keys, owner, min(tier.answer_seconds, longest_wait_seconds)) for tier in remote)
            )
            for tier, answer in zip(remote, answers, strict=True):
                self._note(tier, keys, answer)

    def _note(self, tier: Tier, keys: Sequence[ChunkKey], answer: Answer) -> None:
        if answer.doubt is not None:
            self._doubts.append((tier, answer.doubt))
        for key, is_found in zip(keys, answer.found, strict=True):
            if is_found:
                self._tiers_of.setdefault(key, []).append(tier)

    def chunks_by_tier(self) -> dict[str, int]:
        """Return how many of the next chunks each tier would read, for one rank or more."""
        names = [{tier.name for tier in position.readers if tier is not None} for position in self._continued()]
        return dict(Counter(name for of_position in names for name in of_position))

    def take(self, match: Match, prefill_rate: float | None, admit: Admit | None) -> None:
        """Decide in one step: make the match longer, and begin to load.

        Errors of `admit` are raised. Nothing was done then.
        """
        self._match = match
        self._prefill_rate = prefill_rate or min(
            (each.prefill_tokens_per_second for each in self._attachments if each.prefill_tokens_per_second),
            default=None,
        )
        positions = self._continued()
        if not positions:
            self._note_doubt()
            return
        worth = self._worth_reading(positions) if admit is None else self._admitted(positions, admit)
        loads: list[tuple[Chunk, Wanted]] = []
        for number, position in enumerate(positions[:worth]):
            if not self._take_position(number, position, loads):
                self._miss(MissReason.NO_SLOT, "a tier has the chunk, and no slot of L1 can be freed for it")
                break
        else:
            if worth == len(positions):
                self._note_end(worth)
        match.loads = [(chunk, wanted.tiers[0]) for chunk, wanted in loads]
        self._depot.loading.begin(loads)

    def _continued(self) -> list[Position]:
        """Return the positions behind the match that every rank has, in L1, on its way, or in a tier."""
        index = self._depot.index
        positions: list[Position] = []
        for keys in zip(*self._keys, strict=True):
            chunks = [index.get(key) for key in keys]
            tiers = [
                self._tiers_of.get(key, []) if chunk is None else [] for key, chunk in zip(keys, chunks, strict=True)
            ]
            if any(
                not of_chunk if chunk is None else chunk.pending_write is not None and not chunk.is_loading
                for chunk, of_chunk in zip(chunks, tiers, strict=True)
            ):
                break
            positions.append(Position(chunks, tiers))
        return positions

    def _worth_reading(self, positions: Sequence[Position]) -> int:
        """Return how many of the positions are read sooner than the engine computes them."""
        if self._prefill_rate is None:
            return len(positions)
        worth, why = worth_reading(positions, self._attachments, self._chunk_size, self._prefill_rate)
        if worth < len(positions):
            self._miss(MissReason.TIER_SLOWER_THAN_PREFILL, why, num_more=worth)
        return worth

    def _admitted(self, positions: Sequence[Position], admit: Admit) -> int:
        """Return how many of the positions may be loaded ahead of a request."""
        num_bytes = [
            sum(
                attachment.slot_bytes
                for attachment, tier in zip(self._attachments, position.readers, strict=True)
                if tier is not None
            )
            for position in positions
        ]
        num_admitted = admit(self._match, num_bytes)
        if num_admitted < len(positions):
            self._miss(
                MissReason.NO_SLOT, "what is loaded ahead of requests has reached its bound", num_more=num_admitted
            )
        return num_admitted

    def _take_position(self, number: int, position: Position, loads: list[tuple[Chunk, Wanted]]) -> bool:
        """Pin or reserve the chunks of all ranks at one position. Return False, and take none, without slots."""
        wanted = {
            rank: Wanted(
                key=self._keys[rank][number],
                tiers=of_chunk,
                namespace_stats=self._depot.namespace_stats(self._attachments[rank], self._prefix),
                slot_bytes=self._attachments[rank].slot_bytes,
                num_groups=len(self._attachments[rank].groups),
            )
            for rank, of_chunk in enumerate(position.tiers)
            if of_chunk
        }
        there = [chunk for chunk in position.chunks if chunk is not None]
        self._depot.index.pin(there)  # first, so that they are not evicted for the others
        reserved, evicted = self._depot.loading.reserve(list(wanted.values()))
        self._depot.publish_evicted(evicted)
        if reserved is None:
            self._depot.index.unpin(there)
            return False
        self._depot.index.pin(reserved)
        by_rank = dict(zip(wanted, reserved, strict=True))
        loads += [(chunk, wanted[rank]) for rank, chunk in by_rank.items()]
        if by_rank or any(chunk.is_loading for chunk in there):
            self._match.from_l2.add(self._match.num_chunks)
        for rank, chunks in enumerate(self._match.chunks_by_rank):
            there_chunk = position.chunks[rank]
            chunk = there_chunk if there_chunk is not None else by_rank[rank]
            self._depot.index.connect(chunks[-1] if chunks else None, chunk, len(chunks))
            chunks.append(chunk)
        return True

    def _end_of_prompt(self) -> bool:
        return self._match.num_chunks == self._prefix.num_tokens // self._chunk_size

    def _note_end(self, number: int) -> None:
        """Say why the match ends before the position `number` behind the old one: what L1 knows, or a tier's doubt."""
        if self._end_of_prompt():
            self._match.miss = None
            return
        if number == len(self._keys[0]):  # of MAX_KEYS; the next lookup goes on from there
            self._miss(MissReason.TIER_LATE, f"one lookup asks tiers for {MAX_KEYS} chunks at most")
            return
        keys = [of_rank[number] for of_rank in self._keys]
        found = [self._depot.index.get(key) for key in keys]
        at_token = self._match.num_chunks * self._chunk_size
        here = StoredIdentity.of(self._attachments[0], self._prefix)
        self._match.miss = miss_at(self._depot, self._namespaces, here, keys, found, at_token)
        if not any(chunk is not None and chunk.pending_write is not None for chunk in found):
            self._note_doubt()

    def _note_doubt(self) -> None:
        """Say that a tier might have had the chunk at which the match ends."""
        for tier, doubt in self._doubts:
            if doubt is Doubt.LATE:
                self._miss(MissReason.TIER_LATE, f"{tier.name} did not answer in time")
            elif doubt is Doubt.FAILED:
                self._miss(MissReason.TIER_FAILED, f"{tier.name} failed to answer")
            else:
                self._miss(MissReason.TIER_FAILED, f"{tier.name} can't be used at the moment")
            return

    def _miss(self, reason: MissReason, detail: str, *, num_more: int = 0) -> None:
        at_token = (self._match.num_chunks + num_more) * self._chunk_size
        self._match.miss = Miss(reason=reason, at_token=at_token, detail=detail, tier=TierKind.L2)
