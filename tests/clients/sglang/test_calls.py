"""Calls about pages, with an attachment that answers as a test says: what is asked, given up, and reported as done."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from kvdepot.connector.config import ConnectorConfig
from kvdepot.errors import DepotError
from kvdepot.sglang.page_lookups import MAX_WAVE, PageLookups
from kvdepot.sglang.page_transfers import PageTransfers
from kvdepot.sglang.pool_calls import PoolCalls
from kvdepot.v1.cache_pb2 import Lease, LookupResponse, Refusal, RetrieveResponse, StoreResponse
from tests.fakes.waiting import eventually

PAGE = 4
KEYS = [bytes([page]) * 4 for page in range(8)]
NO_ANSWER = DepotError(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "it hangs")
LEASE_GONE = DepotError(grpc.StatusCode.NOT_FOUND, "LEASE_EXPIRED", "too late")


class Depot:
    """An attachment of a depot that has some pages, and its connection.

    `room` is how many pages it stores at once. `errors` are raised by the next calls of an RPC.
    """

    chunk_size = PAGE
    lost = False

    def __init__(self, pages: Sequence[bytes] = ()) -> None:
        self.pages = set(pages)
        self.room = 100
        self.errors: dict[str, list[DepotError]] = {}
        self.asked: list[str] = []
        self.loaded: list[tuple[int, list[int]]] = []
        self.ended: list[str] = []
        self.uncertain: list[int] = []
        self.attachment = self

    def mark_uncertain(self, transfer_id: int) -> None:
        self.uncertain.append(transfer_id)

    def _enter(self, rpc: str) -> None:
        self.asked.append(rpc)
        if self.errors.get(rpc):
            raise self.errors[rpc].pop(0)

    async def lookup(self, session_id: str, prefix: Any, *, computed_tokens: int, **_: Any) -> LookupResponse:
        self._enter("lookup")
        missing = [number for number, key in enumerate(prefix.block_hashes) if key not in self.pages]
        found = missing[0] if missing else len(prefix.block_hashes)
        leased = found * PAGE > computed_tokens
        return LookupResponse(matched_tokens=found * PAGE, lease=Lease(lease_id=session_id) if leased else None)

    async def retrieve(
        self, session_id: str, lease: Any, tables: Any, *, skip_tokens: int, accept_partial: bool, **_: Any
    ) -> RetrieveResponse:
        self._enter("retrieve")
        assert accept_partial
        (table,) = tables
        assert table.absent_blocks * PAGE == skip_tokens
        self.loaded.append((skip_tokens // PAGE, list(table.block_ids)))
        return RetrieveResponse(retrieved_tokens=len(table.block_ids) * PAGE)

    async def store(self, session_id: str, prefix: Any, tables: Any, *, timeout_seconds: float) -> StoreResponse:
        self._enter("store")
        new = [key for key in prefix.block_hashes if key not in self.pages]
        stored = new[: self.room]
        self.room -= len(stored)
        self.pages |= set(stored)
        refused = (len(new) - len(stored)) * PAGE
        return StoreResponse(refused_tokens=refused, refusal=Refusal(detail="full") if refused else None)

    async def end_session(self, session_id: str, *, timeout_seconds: float) -> None:
        self.ended.append(session_id)


class Site:
    """The calls of one pool to a depot, and the transfers that are done."""

    def __init__(self, depot: Depot) -> None:
        self.calls = PoolCalls(ConnectorConfig(lease_hold_seconds=30.0), PAGE, 1, salt="", caller="kv")
        self.calls.connection = depot  # type: ignore[assignment]
        self.done: list[int] = []
        self.lookups = PageLookups(self.calls)
        self.transfers = PageTransfers(self.calls, self.lookups, self.done.extend)

    async def settle(self) -> None:
        """Let the calls that end sessions go on."""
        for _ in range(5):
            await asyncio.sleep(0)


async def test_after_a_query_without_an_answer_the_next_ones_are_not_sent() -> None:
    depot = Depot(KEYS)
    depot.errors = {"lookup": [NO_ANSWER]}
    site = Site(depot)
    assert await site.lookups.exists(KEYS) == 0
    assert await site.lookups.exists(KEYS) == 0
    assert await site.transfers.load(1, KEYS, range(8)) == 0
    assert await site.transfers.store(2, KEYS, range(8)) == [False] * 8
    assert depot.asked == ["lookup"]
    assert (site.done, depot.uncertain) == ([1, 2], [])
    site.calls.pause.note_answer()
    assert await site.lookups.exists(KEYS) == 8


async def test_a_load_uses_the_lease_of_its_query_and_ends_it_with_the_last_page() -> None:
    depot = Depot(KEYS[:6])
    site = Site(depot)
    assert await site.lookups.exists(KEYS) == 6
    assert await site.transfers.load(1, KEYS[:4], [10, 11, 12, 13]) == 4
    await site.settle()
    assert depot.ended == []
    assert await site.transfers.load(2, KEYS[4:6], [14, 15]) == 2
    await site.settle()
    assert depot.loaded == [(0, [10, 11, 12, 13]), (4, [14, 15])]
    assert depot.asked == ["lookup", "retrieve", "retrieve"]
    assert len(depot.ended) == 1
    assert site.done == [1, 2]


async def test_a_lease_that_is_gone_is_asked_for_again_once() -> None:
    depot = Depot(KEYS)
    depot.errors = {"retrieve": [LEASE_GONE]}
    site = Site(depot)
    assert await site.lookups.exists(KEYS) == 8
    assert await site.transfers.load(1, KEYS, range(8)) == 8
    assert depot.asked == ["lookup", "retrieve", "lookup", "retrieve"]
    depot.errors = {"retrieve": [LEASE_GONE] * 3}
    assert await site.transfers.load(2, KEYS, range(8)) == 0
    assert site.done == [1, 2]
    await site.settle()
    assert len(depot.ended) == 4  # of each lookup that found pages


@pytest.mark.parametrize("rpc", ["retrieve", "store"])
async def test_a_transfer_without_an_answer_is_uncertain(rpc: str) -> None:
    depot = Depot(KEYS if rpc == "retrieve" else ())
    depot.errors = {rpc: [NO_ANSWER]}
    site = Site(depot)
    if rpc == "retrieve":
        assert await site.transfers.load(7, KEYS, range(8)) == 0
    else:
        assert await site.transfers.store(7, KEYS, range(8)) == [False] * 8
    assert (site.done, depot.uncertain) == ([], [7])
    await site.settle()
    assert depot.ended == []  # the next attachment ends what this one had


async def test_a_transfer_that_is_cancelled_is_uncertain() -> None:
    depot = Depot(KEYS)
    site = Site(depot)
    hangs: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def store(*_: Any, **__: Any) -> Any:
        return await hangs

    depot.store = store  # type: ignore[method-assign]
    task = asyncio.ensure_future(site.transfers.store(7, KEYS, range(8)))
    await site.settle()
    task.cancel()
    await asyncio.wait([task])
    assert (site.done, depot.uncertain) == ([], [7])


@pytest.mark.parametrize(("there", "room", "stored"), [([], 8, 8), ([], 3, 3), ([6, 7], 3, 3), ([], 0, 0), ([7], 0, 0)])
async def test_a_partly_refused_store_names_the_first_pages(there: list[int], room: int, stored: int) -> None:
    depot = Depot([KEYS[page] for page in there])
    depot.room = room
    site = Site(depot)
    results = await site.transfers.store(1, KEYS, range(8))
    assert results == [page < stored for page in range(8)]
    assert all(key in depot.pages for key, is_there in zip(KEYS, results, strict=True) if is_there)
    assert site.done == [1]
    await site.settle()
    assert len(depot.ended) == 1


async def test_a_search_sends_few_lookups_at_once_and_stops_where_it_finds() -> None:
    keys = [page.to_bytes(4, "big") for page in range(300)]
    depot = Depot(keys[:250])
    site = Site(depot)
    ends = await site.lookups.window_ends(keys, 1)
    assert max(ends) == 250
    assert len(depot.asked) < 50 + 2 * MAX_WAVE
    depot.errors = {"lookup": [NO_ANSWER]}
    assert await site.lookups.window_ends(keys, 1) == []
    await site.settle()
    assert len(depot.ended) == 2


@pytest.mark.parametrize("is_hung", [True, False])
async def test_a_query_that_finds_nothing_leaves_no_session(is_hung: bool) -> None:
    depot = Depot()
    if is_hung:
        depot.errors["lookup"] = [NO_ANSWER]
    site = Site(depot)
    assert await site.lookups.exists(KEYS) == 0
    await eventually(lambda: len(depot.ended) == 1)
