"""How far a prefix can be restored, against a model that looks at every prefix."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from kvdepot.sglang.hit_policies import Requirement, prefix_hits

NUM_PAGES = 8
KEYS = [bytes([page]) for page in range(NUM_PAGES)]
PAGES = st.sets(st.integers(0, NUM_PAGES - 1))


class Present:
    """A pool that has some pages."""

    def __init__(self, pages: set[int]) -> None:
        self.pages = pages

    def exists(self, keys: Sequence[bytes]) -> int:
        """Return how many of the first pages are there."""
        return next((number for number, key in enumerate(keys) if key[0] not in self.pages), len(keys))

    def window_ends(self, keys: Sequence[bytes], window: int) -> list[int]:
        """Return the longest prefix whose last pages are there."""
        ends = (end for end in range(len(keys), 0, -1) if self.has_window(end, window))
        return [end] if (end := next(ends, 0)) else []

    def has_window(self, end: int, window: int) -> bool:
        """Return whether the last pages of a prefix are there."""
        return all(page in self.pages for page in range(max(0, end - window), end))


@given(PAGES, PAGES, PAGES, st.integers(1, 4))
def test_the_longest_prefix_with_all_that_the_pools_need_is_found(
    kv: set[int], every: set[int], windows: set[int], window: int
) -> None:
    has_kv, has_every, has_windows = Present(kv), Present(every), Present(windows)
    required = [Requirement("windows", has_windows, window), Requirement("every", has_every, 0)]
    hits = prefix_hits(KEYS, "kv", has_kv, required)
    possible = [
        end
        for end in range(1, NUM_PAGES + 1)
        if has_kv.has_window(end, end) and has_every.has_window(end, end) and has_windows.has_window(end, window)
    ]
    assert hits.pages == max(possible, default=0)
    assert set(hits.restorable) <= set(possible)
    assert hits.pages in (0, *hits.restorable)
    assert hits.by_pool.get("kv", 0) == has_kv.exists(KEYS)


@given(PAGES)
def test_without_side_pools_every_shorter_prefix_can_be_restored(kv: set[int]) -> None:
    hits = prefix_hits(KEYS, "kv", Present(kv), [])
    assert hits.restorable == list(range(1, hits.pages + 1))
