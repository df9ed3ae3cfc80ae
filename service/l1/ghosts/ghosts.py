"""Ghost caches: what L1 would hit with other sizes and policies, by a sample of the keys."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from service.l1.chunk import Chunk, NamespaceStats
from service.l1.eviction.policies import LeastFrequentlyUsed
from service.l1.eviction.policy_name import PolicyName
from service.l1.eviction.policy_set import PolicySet
from service.l1.ghosts.choice import Choice
from service.l1.ghosts.curve import HitCurve
from service.l1.ghosts.curves import Capacities, curve_of
from service.l1.ghosts.ranked import RankedCache
from service.l1.ghosts.recent import RecentCaches
from service.l1.ghosts.sampling import MIN_SHIFT, Sampling, bits_of
from service.l1.ghosts.sizes import ALL_BITS, CHOSEN_AMONG, GHOSTS, LRU_BITS, NUM_LRU
from service.l1.ghosts.table import BYTES_PER_ENTRY, Table
from service.l1.ghosts.tally import NUM_PARTS, Outcome, Tally
from service.l1.ghosts.windows import Windows
from service.l1.keys import ChunkKey

MAX_GROUPS = 16
"""Tenants and models with counts of their own. All others are one group, whose names are empty."""

MIN_ENTRIES = 10_240
MAX_ENTRIES = 32_768
PART_OF_L1 = 0.004

_SLOTS_AVERAGED = 64
_FILLED = 0.9  # of the table: a larger cache would lack chunks that the table has forgotten
_OTHERS = ("", "")
_RANKED = tuple(name for name in CHOSEN_AMONG if name is not PolicyName.LRU)

TierCapacities = Callable[[], Sequence[tuple[str, int | None]]]
"""Returns the names and the capacities in bytes of the tiers behind L1, in their order; None: it is not known."""


class Ghosts:
    """Simulations of caches, each of a policy and a size: see `sizes.GHOSTS`. Nothing here changes what L1 has.

    `sampling` says which keys they see. `choice` compares the policies. `tier_capacities` is asked once a minute.
    """

    def __init__(
        self,
        capacity_bytes: int,
        policies: PolicySet,
        *,
        clock: Callable[[], float] = time.monotonic,
        min_shift: int = MIN_SHIFT,
        salt: int = 0,
    ) -> None:
        self.sampling = Sampling(capacity_bytes, min_shift=min_shift, salt=salt)
        self.choice = Choice()
        self.tier_capacities: TierCapacities = lambda: ()
        self._capacity_bytes = capacity_bytes
        self._worth = policies.worth
        self._clock = clock
        self._learned = policies.of(PolicyName.LEARNED)
        self._second_last_use = policies.of(PolicyName.LRU2)
        self._lfu = LeastFrequentlyUsed()  # it ages by the victims of its ghost cache
        num_entries = min(max(int(capacity_bytes * PART_OF_L1) // BYTES_PER_ENTRY, MIN_ENTRIES), MAX_ENTRIES)
        self._table = Table(num_entries, len(_RANKED))
        self._recent = RecentCaches(self._table, NUM_LRU)
        self._ranked = [
            RankedCache(
                self._table,
                1 << number,
                self._lfu if ghost.policy is PolicyName.LFU else policies.of(ghost.policy),
                _RANKED.index(ghost.policy),
            )
            for number, ghost in enumerate(GHOSTS[NUM_LRU:], start=NUM_LRU)
        ]
        self._buckets = [self._table.buckets[_RANKED.index(name)] for name in (PolicyName.LFU, PolicyName.LRU2)]
        self._buckets.append(self._table.buckets[_RANKED.index(PolicyName.LEARNED)])
        self._tallies: dict[tuple[str, str], Tally] = {}
        self._windows: Windows[tuple[str, str]] = Windows(clock())
        self._capacities = Capacities(capacity_bytes)
        self._active_bits = 0
        self._slot_bytes = 0.0  # a moving average
        self._num_uses = 0

    def __repr__(self) -> str:
        return f"<Ghosts {self._table!r}, {self.sampling!r}>"

    @property
    def sampling_rate(self) -> float:
        """The part of the keys that is in the sample."""
        return 1 / self.sampling.weight

    def note_lookup(self, tenant: str, model_name: str, asked_tokens: int, hit_tokens: int) -> None:
        """Note what a lookup asked for and hit, in all tiers."""
        now = self._clock()
        if self._windows.is_over(now):
            self._windows.begin_minute({group: tally.fields for group, tally in self._tallies.items()}, now)
            self._set_capacities()
        self._tally(tenant, model_name).note_lookup(asked_tokens, hit_tokens)

    def note_own(self, stats: NamespaceStats, outcome: Outcome, num_chunks: int) -> None:
        """Note how the depot itself answered the uses of chunks of one namespace, sampled or not."""
        if outcome >= Outcome.HIT:
            self._tally(stats.tenant, stats.model_name).note_own(outcome, num_chunks * _tokens(stats))

    def use(self, chunk: Chunk, outcome: Outcome, clock: int) -> None:
        """Simulate a use of a chunk, if it is in the sample. What the policies know of the chunk includes the use."""
        key, slot_bytes, table = chunk.key, chunk.slot.size_bytes, self._table
        key_hash = hash(key)
        entry = table.find(key_hash)
        if entry is None:
            if not self.sampling.has(key):
                return
            self._note_size(slot_bytes)
            if not self.sampling.has(key):
                return
            if table.is_full:
                self._remove(table.oldest)
            entry = table.add(key_hash, bits_of(key), slot_bytes)
        residence = table.residence[entry]
        if outcome is not Outcome.NOT_ASKED:
            stats, part = chunk.namespace_stats, key_hash % NUM_PARTS
            tally, num_tokens = self._tally(stats.tenant, stats.model_name), _tokens(stats)
            tally.chunk_size, tally.bytes_per_token = stats.chunk_size, slot_bytes / num_tokens
            tally.prefill_tokens_per_second = stats.prefill_tokens_per_second
            different = tally.note_sampled(
                outcome, residence, self._active_bits, part, num_tokens * self.sampling.weight
            )
            self.choice.note(residence, different, part, self._worth.saved_seconds(chunk))
        self._num_uses += 1
        table.uses[entry] = self._num_uses
        of_lfu, of_lru2, of_learned = self._buckets
        of_lfu[entry] = self._lfu.note_of(chunk)
        of_lru2[entry] = self._second_last_use.bucket(chunk)
        of_learned[entry] = self._learned.bucket(chunk)
        self._recent.use(entry)
        missing = self._active_bits & ~residence & ~LRU_BITS
        if missing:
            self._insert(entry, missing, slot_bytes, clock)

    def touch(self, chunk: Chunk) -> None:
        """Note that a request that has used a chunk already still has it, if it is in the sample."""
        entry = self._table.find(hash(chunk.key))
        if entry is not None:
            self._num_uses += 1
            self._table.uses[entry] = self._num_uses
            self._recent.use(entry)

    def forget(self, key: ChunkKey) -> None:
        """Forget a chunk that was removed for another reason than space: no cache would have it."""
        entry = self._table.find(hash(key))
        if entry is not None:
            self._remove(entry)

    def curves(self, window_seconds: float) -> list[HitCurve]:
        """Return a curve for each tenant and model that looked something up in the last seconds.

        The window is of whole minutes or hours, see `Windows.since`.
        """
        now = self._clock()
        totals = {group: tally.fields for group, tally in self._tallies.items()}
        begun, counts = self._windows.since(window_seconds, totals, now)
        return [
            curve_of(
                group,
                self._tallies[group],
                counts[group],
                now - begun,
                self._capacities,
                self._active_bits,
                self.sampling_rate,
            )
            for group in sorted(counts)
        ]

    def check(self) -> None:
        """Assert that each cache counts its bytes, and that no more of them are used than it may."""
        self._table.check()
        self._recent.check()
        for cache in self._ranked:
            cache.check()

    def _tally(self, tenant: str, model_name: str) -> Tally:
        group = tenant, model_name
        tally = self._tallies.get(group)
        if tally is None:
            if len(self._tallies) >= MAX_GROUPS and group != _OTHERS:
                return self._tally(*_OTHERS)
            tally = self._tallies[group] = Tally()
        return tally

    def _insert(self, entry: int, missing: int, slot_bytes: int, clock: int) -> None:
        self._table.residence[entry] |= missing
        for number, cache in enumerate(self._ranked, start=NUM_LRU):
            if missing >> number & 1:
                cache.used_bytes += slot_bytes
                if cache.used_bytes > cache.limit_bytes:
                    self._learned.update(clock)
                    highest = cache.evict(clock)
                    if GHOSTS[number].policy is PolicyName.LFU:
                        self._lfu.note_evicted_rank(highest)

    def _remove(self, entry: int) -> None:
        residence, slot_bytes = self._table.residence[entry], self._table.slot_bytes[entry]
        self._recent.remove(entry)
        for number, cache in enumerate(self._ranked, start=NUM_LRU):
            if residence >> number & 1:
                cache.used_bytes -= slot_bytes
        self._table.remove(entry)

    def _note_size(self, slot_bytes: int) -> None:
        """Note the slot of a new chunk, and sample less if L1 holds more chunks than it seemed to."""
        is_first = not self._slot_bytes
        self._slot_bytes += (slot_bytes - self._slot_bytes) / (1 if is_first else _SLOTS_AVERAGED)
        if self.sampling.fit(self._slot_bytes):
            for entry in self._table.entries():
                if not self.sampling.has_bits(self._table.bits[entry]):
                    self._remove(entry)
            self._set_capacities()
        elif is_first:
            self._set_capacities()

    def _set_capacities(self) -> None:
        """Set the sizes of the caches. A cache that the table is too small for holds nothing."""
        self._capacities = Capacities(self._capacity_bytes, self.tier_capacities())
        most_bytes = self._table.num_entries * self._slot_bytes * _FILLED
        active_bits = 0
        for number, capacity_bytes in enumerate(self._capacities.capacity_bytes):
            sampled_bytes = (capacity_bytes or 0) / self.sampling.weight
            if GHOSTS[number].num_tiers and sampled_bytes > most_bytes:
                sampled_bytes = 0.0
            if sampled_bytes:
                active_bits |= 1 << number
            if number < NUM_LRU:
                self._recent.capacity_bytes[number] = sampled_bytes
            else:
                self._ranked[number - NUM_LRU].resize(sampled_bytes, self._slot_bytes)
        for number, cache in enumerate(self._ranked, start=NUM_LRU):
            if self._active_bits >> number & 1 and not active_bits >> number & 1:
                cache.clear()
        self._active_bits = active_bits & ALL_BITS


def _tokens(stats: NamespaceStats) -> float:
    """Return the tokens of a chunk. Each rank has a chunk of the same tokens."""
    return stats.chunk_size / stats.world_size
