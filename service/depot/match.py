"""The match of a prompt: the longest prefix of chunks that every rank has in L1, or on their way into it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from service.depot.chunk_index import CHUNKS_PER_STEP, ChunkIndex, unpinning
from service.depot.depot import Depot
from service.depot.instances import Instance
from service.depot.leases import Lease
from service.depot.naming import naming
from service.depot.sessions import Session
from service.depot.stored_identities import StoredIdentity, unknown_identity
from service.depot.tier import Tier
from service.depot.values import Miss
from service.l1.chunk import Chunk, PendingWrite
from service.l1.keys import ChunkKey, Namespace, Prefix, chunk_keys
from service.l1.past import RemovalReason
from telemetry.kinds import MissReason

_MISS_REASONS = {
    RemovalReason.EVICTED: MissReason.EVICTED,
    RemovalReason.CLEARED: MissReason.CLEARED,
    RemovalReason.CORRUPT: MissReason.CORRUPT,
    RemovalReason.REPLACED: MissReason.EVICTED,  # the store that was to replace it failed
}


@dataclass(slots=True)
class Match:
    """`chunks_by_rank[rank][chunk]` of the matched prefix, each pinned once, and the reason why it is not longer.

    `end_keys` are the keys of the next chunk by rank, if a rank lacks it, and `pending_writes` are storing it.
    `idle_since` has the release times of the chunks that had no other pin. The chunks at the positions of `from_l2` are
    on their way from tiers, for one rank at least. `loads` are the chunks that began to load for this match, each with
    its tier. `chunk_size` is that of the instance, in tokens.
    """

    chunks_by_rank: list[list[Chunk]]
    chunk_size: int
    miss: Miss | None = None
    end_keys: Sequence[ChunkKey] = ()
    pending_writes: list[PendingWrite] = field(default_factory=list)
    idle_since: list[float] = field(default_factory=list)
    from_l2: set[int] = field(default_factory=set)
    loads: list[tuple[Chunk, Tier]] = field(default_factory=list)

    @property
    def num_chunks(self) -> int:
        """The number of chunks of the matched prefix, for one rank."""
        return len(self.chunks_by_rank[0])

    @property
    def num_tokens(self) -> int:
        """The tokens of the matched prefix."""
        return self.num_chunks * self.chunk_size

    def lease(self, depot: Depot, session: Session) -> Lease:
        """Lease the chunks to a session; the lease takes over their pins."""
        return depot.lifetimes.grant(session, self.take(), self.idle_since, frozenset(self.from_l2))

    def take(self) -> list[list[Chunk]]:
        """Return the chunks by rank to a caller that takes over their pins."""
        chunks_by_rank, self.chunks_by_rank = self.chunks_by_rank, [[]]
        return chunks_by_rank

    def cut(self, num_chunks: int) -> list[list[Chunk]]:
        """Make the match `num_chunks` long. Return the other chunks by rank to a caller that takes over their pins."""
        left_out = [chunks[num_chunks:] for chunks in self.chunks_by_rank]
        self.chunks_by_rank = [chunks[:num_chunks] for chunks in self.chunks_by_rank]
        self.from_l2 = {position for position in self.from_l2 if position < num_chunks}
        self.idle_since = [
            chunk.release_time
            for chunks in self.chunks_by_rank
            for chunk in chunks
            if chunk.num_pins == 1 and chunk.pending_write is None
        ]
        return left_out

    def name(self, depot: Depot, instance: Instance, prefix: Prefix) -> None:
        """Name the chunks that have no name yet. This may end after the call."""
        if depot.namer is None or not self.num_chunks:
            return
        keys_by_rank = {
            rank: [chunk.key for chunk in chunks]
            for rank, chunks in zip(sorted(instance.ranks), self.chunks_by_rank, strict=True)
        }
        positions = range(self.num_chunks)
        depot.slices.run(naming(depot.namer, instance.ranks[0], depot.tenant, prefix, keys_by_rank, positions))

    def unpin(self, depot: Depot) -> None:
        """Unpin the chunks that no caller has taken over."""
        chunks_by_rank = self.take()
        if chunks_by_rank[0]:
            depot.slices.run(unpinning(depot.index, chunks_by_rank))


async def match_prefix(depot: Depot, instance_id: str, prefix: Prefix) -> Match:
    """Match the prefix against the index, as it is at one moment before this returns.

    A prompt of ordinary length is matched in one step, a longer one in slices. The chunks that a slice matched are
    pinned, so that they are not evicted. If one of them is removed all the same, or a rank comes or goes, the walk
    begins anew.

    Raises: InstanceNotFound, InvalidRequest, BlockHashSeedMissing.
    """
    pace = depot.slices.pace()
    while True:
        instance = depot.instances.require(instance_id)
        depot.check_prefix(instance, prefix)  # again: the instance may be another one after a wait
        ranks = dict(instance.ranks)
        num_removed = depot.index.num_removed_pinned
        walk = _Walk(depot, instance, prefix)
        try:
            while not walk.is_done:
                if pace.is_over():
                    await pace.next()
                walk.step()
        except BaseException:
            walk.match.unpin(depot)
            raise
        if depot.index.num_removed_pinned == num_removed and instance.ranks == ranks:
            return walk.match
        walk.match.unpin(depot)


class _Walk:
    """A walk from token 0 to the first chunk that a rank lacks. Each step pins up to `CHUNKS_PER_STEP` chunks."""

    def __init__(self, depot: Depot, instance: Instance, prefix: Prefix) -> None:
        self._depot = depot
        chunk_size = instance.chunk_size
        self.match = Match([[]], chunk_size)
        self.is_done = True
        self.match.miss = miss_of_all(instance, prefix)
        if self.match.miss is not None:
            return
        self.is_done = False
        self._num_wanted = prefix.num_tokens // chunk_size
        self._first_rank, self._prefix = instance.ranks[0], prefix
        self._namespaces = [instance.ranks[rank].identity.namespace(prefix) for rank in sorted(instance.ranks)]
        self._keys = [chunk_keys(namespace, prefix, chunk_size) for namespace in self._namespaces]
        self._chunks_per_step = max(1, CHUNKS_PER_STEP // len(self._keys))
        self.match.chunks_by_rank = [[] for _ in self._keys]
        self._may_load = bool(depot.tiers)

    def step(self) -> None:
        """Match the next chunks."""
        index = self._depot.index
        num_keys = min(self._chunks_per_step, self._num_wanted - self.match.num_chunks)
        num_chunks = num_keys  # that every rank has, of those walked so far
        parts: list[_RankPart] = []
        for keys in self._keys:
            part = _resident(index, islice(keys, num_keys), num_chunks)
            num_chunks = min(num_chunks, len(part.chunks))
            parts.append(part)
        for chunks, part in zip(self.match.chunks_by_rank, parts, strict=True):
            matched = part.chunks[:num_chunks]
            if self._may_load:
                self.match.from_l2.update(
                    number for number, chunk in enumerate(matched, start=len(chunks)) if chunk.is_loading
                )
            self.match.idle_since += [
                chunk.release_time for chunk in matched if chunk.num_pins == 0 and chunk.pending_write is None
            ]
            index.pin(matched)
            before = chunks[-1] if chunks else None
            for position, chunk in enumerate(matched, start=len(chunks)):
                if chunk.parent is not before or chunk.position < 0:
                    index.connect(before, chunk, position)
                before = chunk
            chunks += matched
        if num_chunks < num_keys:
            keys_at, found_at = zip(*(part.at(num_chunks) for part in parts), strict=True)
            self.match.pending_writes = [
                chunk.pending_write for chunk in found_at if chunk is not None and chunk.pending_write is not None
            ]
            here = StoredIdentity.of(self._first_rank, self._prefix)
            at_token = self.match.num_tokens
            self.match.miss = miss_at(self._depot, self._namespaces, here, keys_at, found_at, at_token)
            self.match.end_keys = keys_at
        self.is_done = num_chunks < num_keys or self.match.num_chunks == self._num_wanted


def miss_of_all(instance: Instance, prefix: Prefix) -> Miss | None:
    """Return why no chunk can match, whatever is stored. None: some can."""
    if not instance.complete:
        missing = sorted(set(range(instance.world_size)) - set(instance.ranks))
        return Miss(reason=MissReason.RANK_MISSING, at_token=0, detail=f"ranks {missing} are not attached")
    if prefix.num_tokens < instance.chunk_size:
        detail = f"{prefix.num_tokens} tokens are less than one chunk of {instance.chunk_size}"
        return Miss(reason=MissReason.SHORTER_THAN_CHUNK, at_token=0, detail=detail)
    return None


@dataclass(frozen=True, slots=True)
class _RankPart:
    """A rank's chunks of a part of the prefix, and the key and the chunk, if any, that ended them."""

    chunks: list[Chunk]
    end_key: ChunkKey | None = None
    end_chunk: Chunk | None = None

    def at(self, position: int) -> tuple[ChunkKey, Chunk | None]:
        """Return the key and the chunk at a position of the part."""
        if position < len(self.chunks):
            return self.chunks[position].key, self.chunks[position]
        assert self.end_key is not None
        return self.end_key, self.end_chunk


def _resident(index: ChunkIndex, keys: Iterable[ChunkKey], num_wanted: int) -> _RankPart:
    """Return the chunks of the first keys that are resident or loading, one more than `num_wanted` at most.

    The reason of a miss may need the additional one.
    """
    chunks: list[Chunk] = []
    get = index.get
    for key in keys:
        chunk = get(key)
        if chunk is None or (chunk.pending_write is not None and not chunk.is_loading):
            return _RankPart(chunks, key, chunk)
        chunks.append(chunk)
        if len(chunks) > num_wanted:
            break
    return _RankPart(chunks)


def miss_at(
    depot: Depot,
    namespaces: Sequence[Namespace],
    here: StoredIdentity,
    keys: Sequence[ChunkKey],
    found: Sequence[Chunk | None],
    at_token: int,
) -> Miss:
    """Return the reason why a chunk ends the match. `keys[rank]` is its key, `found[rank]` the chunk in the index."""
    lacking = [rank for rank, chunk in enumerate(found) if chunk is None]
    if any(chunk is not None and chunk.pending_write is not None for chunk in found):
        return Miss(reason=MissReason.BEING_STORED, at_token=at_token, detail="another call is storing the chunk")
    for rank in lacking:
        tombstone = depot.index.past.tombstone(keys[rank])
        if tombstone is not None:
            detail = f"rank {rank}'s chunk was {tombstone.reason} {time.time() - tombstone.time:.3f} seconds ago"
            return Miss(reason=_MISS_REASONS[tombstone.reason], at_token=at_token, detail=detail, tombstone=tombstone)
    if len(lacking) < len(found):
        return Miss(
            reason=MissReason.RANK_MISSING, at_token=at_token, detail=f"ranks {lacking} did not store the chunk"
        )
    if at_token == 0 and not any(map(depot.index.has_seen, namespaces)):
        detail = unknown_identity(depot.stored_identities.nearest(here, depot.index.has_chunks))
        return Miss(reason=MissReason.UNKNOWN_IDENTITY, at_token=0, detail=detail)
    return Miss(reason=MissReason.NEVER_STORED, at_token=at_token, detail="the chunk was never stored")
