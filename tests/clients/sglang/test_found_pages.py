"""Queries whose pages stay leased, until SGLang fetches them."""

from __future__ import annotations

from kvdepot.sglang.found_pages import MAX_FOUND, FoundPages, RecentQueries
from kvdepot.v1.cache_pb2 import Lease


def found(name: str, *keys: bytes) -> FoundPages:
    return FoundPages(session_id=name, lease=Lease(lease_id=name), keys=keys)


def test_a_fetch_finds_its_place_in_the_newest_query() -> None:
    queries = RecentQueries()
    old, new = found("old", b"a", b"b"), found("new", b"a", b"b", b"c", b"d")
    queries.add(old)
    queries.add(new)
    assert queries.find([b"b", b"c"]) == (new, 1, 2)
    assert queries.find([b"c", b"d", b"e"]) == (new, 2, 2)
    assert queries.find([b"c", b"x", b"d"]) == (new, 2, 1)
    assert queries.find([b"e"]) is None


def test_a_query_in_use_is_neither_found_nor_forgotten() -> None:
    queries = RecentQueries()
    one = found("one", b"a")
    queries.add(one)
    one.in_use = True
    assert queries.find([b"a"]) is None
    assert queries.remove("one") is None
    one.in_use = False
    assert queries.remove("one") is one
    assert queries.remove("one") is None


def test_the_number_of_leases_is_bounded() -> None:
    queries = RecentQueries()
    all_of_them = [found(f"{number}", bytes([number])) for number in range(MAX_FOUND + 1)]
    all_of_them[0].in_use = True
    assert [queries.add(each) for each in all_of_them] == [None] * MAX_FOUND + [all_of_them[1]]
    assert queries.find(all_of_them[1].keys) is None
    assert queries.find(all_of_them[2].keys) == (all_of_them[2], 0, 1)
