"""The order in which chunks are evicted: a policy ranks those that can leave, and a tail leaves before its head."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Container, Iterator
from itertools import chain
from typing import cast

from service.l1.chunk import Chunk
from service.l1.eviction.policy_name import PolicyName
from service.l1.eviction.policy_set import PolicySet
from service.l1.eviction.ranking import Ranking, Standing

MIN_USES_PER_SORT = 256
LEAVES_PER_SORTED_USE = 16
"""Ranks that change with the age of chunks are computed anew after 256 uses of chunks, or after a sixteenth of the
number of leaves, whatever is more. So the work for each use does not grow with L1."""

_Rankings = dict[int, dict[str, Ranking]]  # by size of slot and tenant


class EvictionOrder:
    """The *leaves*: resident chunks without pins that no chunk in L1 continues. What a tier reads is no victim.

    A chunk with a child is in no ranking. It comes into one when its last child has left. So whatever the policy thinks
    of them, the tail of a prefix leaves before its head.

    `clock` counts uses of chunks. `of` names the tenants whose chunks may leave; None: all.

    After a change of the policy, chunks move to its rankings bit by bit. Those that have not moved yet leave first, by
    the policy before.
    """

    def __init__(self, policies: PolicySet, name: PolicyName) -> None:
        self.clock = 0
        self._policies = policies
        self._policy = policies.of(name)
        self._rankings: _Rankings = {}
        self._rankings_before: _Rankings = {}  # of the policy before
        self._num_leaves = 0
        self._next_sort = 0

    def __repr__(self) -> str:
        return f"<EvictionOrder, {self._num_leaves} leaves>"

    def begin_use(self, num_chunks: int) -> None:
        """Begin a use of so many chunks, which are used later than all before."""
        self.clock += num_chunks

    def count_use(self, chunk: Chunk) -> None:
        """Count a use of a chunk in what the policies know about it. It has pins."""
        self._policies.note_use(chunk, self.clock)

    def add(self, chunk: Chunk) -> None:
        """Note that a chunk without pins was used at this time. It can be evicted if it is a leaf."""
        chunk.last_use = self.clock
        if not chunk.num_children:
            self._num_leaves += 1
            self._ranking(chunk).append(chunk, self._policy.bucket(chunk), self._policy, self.clock)

    def remove(self, chunk: Chunk) -> None:
        """Take out a chunk that gets pins, or leaves."""
        if chunk.is_linked:
            self._num_leaves -= 1
            chunk.unlink()

    def rank_anew(self, chunk: Chunk) -> None:
        """Note that a chunk may have another rank, without a use."""
        if chunk.is_linked:
            chunk.unlink()
            self._ranking(chunk).insert(chunk, self._policy.bucket(chunk), self._policy, self.clock)

    def change_policy(self, name: PolicyName) -> None:
        """Rank chunks by another policy from now on; those that are ranked already, by `move`. None may be moving."""
        assert not self.is_moving
        self._policy = self._policies.of(name)
        self._rankings, self._rankings_before = {}, self._rankings
        self._next_sort = 0

    @property
    def is_moving(self) -> bool:
        """Whether chunks are ranked by the policy before."""
        return bool(self._rankings_before)

    def move(self, num_chunks: int) -> None:
        """Move so many chunks to the rankings of the policy: first those that would leave last."""
        for size, by_tenant in list(self._rankings_before.items()):
            for tenant, ranking in list(by_tenant.items()):
                while (chunk := ranking.last()) is not None:
                    if num_chunks == 0:
                        return
                    num_chunks -= 1
                    self.rank_anew(cast(Chunk, chunk))
                del by_tenant[tenant]
            del self._rankings_before[size]

    def note_evicted(self, chunk: Chunk) -> None:
        """Note that a chunk is the victim."""
        self._policy.note_evicted(chunk)

    def connect(self, parent: Chunk, child: Chunk) -> None:
        """Note that a chunk continues another one, which is no leaf then. Positions grow, so there is no circle."""
        if child.position == parent.position + 1 and (child.parent is None or child.parent.removed):
            child.parent = parent
            parent.num_children += 1
            self.remove(parent)

    def note_child_left(self, child: Chunk) -> None:
        """Note that a chunk has left. The one that it continues may be a leaf now."""
        parent, child.parent = child.parent, None
        if parent is not None and not parent.removed:
            parent.num_children -= 1
            if parent.num_children == 0 and parent.is_unprotected:
                self._num_leaves += 1
                self._ranking(parent).insert(parent, self._policy.bucket(parent), self._policy, self.clock)

    def standing(self, chunk: Chunk) -> tuple[Standing, int]:
        """Return the standing that a chunk has, or would have as a leaf, and its last use. The lowest leaves first."""
        number = self._policy.bucket(chunk)
        return (self._policy.rank(number, self.clock), number), chunk.last_use

    def next_victim(self, slot_bytes: int, of: Container[str] | None = None) -> Chunk | None:
        """Return the chunk of this size that is evicted next.

        It has children if tiers read all leaves: then these leave with it.
        """
        self._sort_if_due()
        return self._next_victim_of_size(slot_bytes, of)

    def next_victim_of_other_size(self, slot_bytes: int, of: Container[str] | None = None) -> Chunk | None:
        """Return the chunk of any other size that is evicted next."""
        if not self._rankings_before and self._rankings.keys() <= {slot_bytes}:
            return None
        self._sort_if_due()
        sizes = {**self._rankings_before, **self._rankings} if self.is_moving else self._rankings
        victims = (self._next_victim_of_size(size, of) for size in sizes if size != slot_bytes)
        return min((victim for victim in victims if victim is not None), key=self.standing, default=None)

    def with_descendants(self, chunks: Collection[Chunk]) -> list[Chunk]:
        """Return chunks that leave, and all that continue them. Where there are such, this looks at all leaves."""
        if not any(chunk.num_children for chunk in chunks):
            return list(chunks)
        leaving = dict.fromkeys(chunks, True)
        seen: set[Chunk] = set()
        for ranking in self._all():
            for _, leaf in ranking:
                path: list[Chunk] = []
                chunk: Chunk | None = leaf
                while chunk is not None and chunk not in seen:
                    path.append(chunk)
                    chunk = chunk.parent
                seen.update(path)
                for below in reversed(path):
                    if below in leaving or chunk in leaving:
                        leaving[below] = True
                    chunk = below
        return sorted(leaving, key=_position, reverse=True)

    def next_victims(self, slot_bytes: int, num_chunks: int) -> Iterator[Chunk]:
        """Yield the first chunks of this size that will be evicted. The order must not change meanwhile."""
        self._sort_if_due()
        leaves = chain.from_iterable(
            heapq.merge(*rankings.get(slot_bytes, {}).values(), key=_standing)
            for rankings in (self._rankings_before, self._rankings)
        )
        unread = ((standing, leaf) for standing, leaf in leaves if not leaf.num_readers)
        waiting: list[tuple[Standing, int, Chunk]] = []  # parents that are leaves by then
        children_left: dict[Chunk, int] = {}
        leaf = next(unread, None)
        for number in range(num_chunks):
            if waiting and (leaf is None or waiting[0][0] <= leaf[0]):
                victim = heapq.heappop(waiting)[2]
            elif leaf is not None:
                victim = leaf[1]
                leaf = next(unread, None)
            else:
                return
            yield victim
            parent = victim.parent
            if parent is not None and not parent.removed:
                children_left[parent] = left = children_left.get(parent, parent.num_children) - 1
                if left == 0 and parent.evictable and parent.slot.size_bytes == slot_bytes:
                    heapq.heappush(waiting, (self.standing(parent)[0], -number, parent))

    def __iter__(self) -> Iterator[Chunk]:
        """Yield each leaf."""
        for ranking in self._all():
            for _, leaf in ranking:
                yield leaf

    def check(self) -> None:
        """Assert that the leaves are counted."""
        assert self._num_leaves == sum(1 for _ in self)

    def _all(self) -> Iterator[Ranking]:
        both = chain(self._rankings_before.values(), self._rankings.values())
        return chain.from_iterable(by_tenant.values() for by_tenant in both)

    def _ranking(self, chunk: Chunk) -> Ranking:
        by_tenant = self._rankings.get(chunk.slot.size_bytes)
        if by_tenant is None:
            by_tenant = self._rankings[chunk.slot.size_bytes] = {}
        tenant = chunk.namespace_stats.tenant
        ranking = by_tenant.get(tenant)
        if ranking is None:
            ranking = by_tenant[tenant] = Ranking()
        return ranking

    def _next_victim_of_size(self, slot_bytes: int, of: Container[str] | None) -> Chunk | None:
        for rankings in (self._rankings_before, self._rankings):
            by_tenant = rankings.get(slot_bytes)
            victim = self._next_victim(by_tenant, of) if by_tenant else None
            if victim is not None:
                return victim
        return None

    def _next_victim(self, rankings: dict[str, Ranking], of: Container[str] | None) -> Chunk | None:
        lowest: tuple[Standing, Chunk] | None = None
        for tenant, ranking in rankings.items():
            if of is None or tenant in of:
                first = ranking.first()
                if first is not None and first[1].num_readers:
                    unread = ((standing, leaf) for standing, leaf in ranking if not leaf.num_readers)
                    first = next(unread, None) or _first_head(ranking)
                if first is not None and (lowest is None or _standing_and_use(first) < _standing_and_use(lowest)):
                    lowest = first
        return lowest[1] if lowest is not None else None

    def _sort_if_due(self) -> None:
        if self.clock < self._next_sort:
            return
        self._next_sort = self.clock + max(MIN_USES_PER_SORT, self._num_leaves // LEAVES_PER_SORTED_USE)
        self._policy.update(self.clock)
        for size in list(self._rankings):
            by_tenant = self._rankings[size]
            for tenant in list(by_tenant):
                if self._policy.ranks_change:
                    by_tenant[tenant].sort(self._policy, self.clock)
                if not by_tenant[tenant]:
                    del by_tenant[tenant]
            if not by_tenant:
                del self._rankings[size]


def _first_head(ranking: Ranking) -> tuple[Standing, Chunk] | None:
    """Return the first chunk that only leaves continue which tiers read."""
    for standing, leaf in ranking:
        head = leaf.parent
        while head is not None and head.num_readers:
            head = head.parent
        if head is not None and head.evictable:
            return standing, head
    return None


def _standing(ranked: tuple[Standing, Chunk]) -> Standing:
    return ranked[0]


def _standing_and_use(ranked: tuple[Standing, Chunk]) -> tuple[Standing, int]:
    return ranked[0], ranked[1].last_use


def _position(chunk: Chunk) -> int:
    return chunk.position
