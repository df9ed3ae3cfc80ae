"""Ghost caches of LRU hold exactly what plain LRU caches hold."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from service.l1.eviction.policy_name import PolicyName
from service.l1.ghosts.recent import RecentCaches
from service.l1.ghosts.sizes import FACTORS
from service.l1.ghosts.table import Table
from tests.service.l1.ghosts.traffic import CHUNK_TOKENS, SLOT_BYTES, PlainLru, Traffic, key

NUM_ENTRIES = 12
NUM_NAMES = 16


@given(
    uses=st.lists(st.tuples(st.integers(0, NUM_NAMES - 1), st.booleans())),
    capacities=st.lists(st.integers(1, 40), min_size=1, max_size=4),
)
def test_each_cache_holds_what_a_plain_lru_cache_holds(uses: list[tuple[int, bool]], capacities: list[int]) -> None:
    table = Table(NUM_ENTRIES, 0)
    caches = RecentCaches(table, len(capacities))
    caches.capacity_bytes = [float(capacity) for capacity in capacities]
    models = [PlainLru(capacity) for capacity in capacities]

    def remove(name: int) -> None:
        entry = table.find(name)
        if entry is not None:
            caches.remove(entry)
            table.remove(entry)
            for model in models:
                model.held.pop(name, None)

    for name, is_removed in uses:
        if is_removed:
            remove(name)
            continue
        entry = table.find(name)
        if entry is None:
            if table.is_full:  # what the table forgets is in no cache
                remove(next(known for known in range(NUM_NAMES) if table.find(known) == table.oldest))
            entry = table.add(name, 0, 1 + name % 3)
        hits = [bool(table.residence[entry] >> number & 1) for number in range(len(capacities))]
        caches.use(entry)
        assert hits == [model.use(name, 1 + name % 3) for model in models]
        table.check()
        caches.check()


@given(prompts=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 5)), max_size=40))
def test_without_sampling_the_curve_of_lru_is_exact(prompts: list[tuple[int, int]]) -> None:
    traffic = Traffic(8)
    models = {factor: PlainLru(8 * SLOT_BYTES * factor) for factor in FACTORS}
    num_hit = dict.fromkeys(FACTORS, 0)
    for prompt, length in prompts:
        names = [f"{prompt}/{position}" for position in range(length)]
        num_found = next((number for number, name in enumerate(names) if traffic.index.get(key(name)) is None), length)
        for factor, model in models.items():
            # The lookup uses what it finds, and then the store uses all, each time the tail first.
            num_hit[factor] += sum([model.use(name) for name in reversed(names[:num_found])])
            hits = [model.use(name) for name in reversed(names)]
            num_hit[factor] += sum(hits[: length - num_found])
        traffic.request(names)
    traffic.index.ghosts.check()
    for factor in FACTORS:
        assert round(traffic.hit_tokens(PolicyName.LRU, factor)) == num_hit[factor] * CHUNK_TOKENS
