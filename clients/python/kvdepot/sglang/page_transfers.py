"""Loads and stores pages. No call raises, and each has a bound."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from kvdepot.aio.attachment import AsyncAttachment
from kvdepot.errors import DepotError
from kvdepot.sglang.found_pages import FoundPages
from kvdepot.sglang.page_lookups import PageLookups
from kvdepot.sglang.pool_calls import PoolCalls
from kvdepot.v1.cache_pb2 import StoreResponse

MAX_NARROWER = 4
"""How often a store that was partly refused is made again with fewer pages, to learn which of them are there."""

_LEASE_IS_GONE = ("LEASE_NOT_FOUND", "LEASE_EXPIRED", "LEASE_REVOKED", "LEASE_RELEASED", "SESSION_NOT_FOUND")


class PageTransfers:
    """The loads and stores of one pool. `on_done` takes the transfers after which the depot touches no page."""

    def __init__(self, calls: PoolCalls, lookups: PageLookups, on_done: Callable[[list[int]], None]) -> None:
        self._calls = calls
        self._lookups = lookups
        self._on_done = on_done

    async def load(self, transfer_id: int, keys: Sequence[bytes], pages: Sequence[int]) -> int:
        """Load the first pages that the depot has, and return how many. The pages behind them may have any bytes."""
        attachment = self._calls.attachment
        if attachment is None or not keys:
            self._on_done([transfer_id])
            return 0
        is_done = False
        try:
            for is_last in (False, True):
                query = self._lookups.queries.find(keys)
                if query is None or is_last:
                    found = await self._lookups.look_up(attachment, keys)
                    if found is None:
                        is_done = True
                        return 0
                    query = found, 0, len(found.keys)
                num_loaded, is_done, is_stale = await self._load_found(attachment, *query, pages)
                if not (is_done and is_stale):
                    return num_loaded
            return 0
        finally:
            self._settle(transfer_id, is_done)

    async def store(self, transfer_id: int, keys: Sequence[bytes], pages: Sequence[int]) -> list[bool]:
        """Store pages. Return for each whether the depot certainly has it."""
        attachment = self._calls.attachment
        if attachment is None or not keys:
            self._on_done([transfer_id])
            return [False] * len(keys)
        session_id = self._calls.new_session()
        deadline = time.monotonic() + self._calls.config.store_timeout_seconds
        num_asked, is_done = len(keys), False
        try:
            for _ in range(1 + MAX_NARROWER):
                if (left_seconds := deadline - time.monotonic()) <= 0 or num_asked <= 0:
                    break
                is_done = False
                response = await self._store(attachment, session_id, keys[:num_asked], pages[:num_asked], left_seconds)
                is_done = True
                if not response.refused_tokens:
                    return [position < num_asked for position in range(len(keys))]
                # The answer has the number of refused pages. Most often they are the last ones.
                self._calls.log(str(response.refusal.reason), f"the depot refused pages: {response.refusal.detail}")
                num_asked -= response.refused_tokens // self._calls.page_size
            return [False] * len(keys)
        except DepotError as error:
            is_done = self._calls.failed(error, "store")
            return [False] * len(keys)
        finally:
            self._settle(transfer_id, is_done)
            if is_done:
                self._calls.end(attachment, session_id)

    async def _load_found(
        self, attachment: AsyncAttachment, found: FoundPages, first: int, length: int, pages: Sequence[int]
    ) -> tuple[int, bool, bool]:
        """Load pages of a query. Return how many, whether the depot is done, and whether the lease had ended."""
        num_pages = min(length, len(pages))
        found.in_use = True
        is_done = is_stale = False
        try:
            response = await attachment.retrieve(
                found.session_id,
                found.lease,
                self._calls.tables(pages[:num_pages], absent_blocks=first),
                skip_tokens=first * self._calls.page_size,
                accept_partial=True,
                timeout_seconds=self._calls.config.retrieve_timeout_seconds,
            )
            is_done = True
        except DepotError as error:
            is_done = self._calls.failed(error, "load")
            is_stale = error.reason in _LEASE_IS_GONE
            return 0, is_done, is_stale
        finally:
            found.in_use = False
            if is_done and (is_stale or first + num_pages == len(found.keys)):
                self._lookups.queries.remove(found.session_id)
                self._calls.end(attachment, found.session_id)
        if response.HasField("miss"):
            self._calls.log(str(response.miss.reason), f"a load ended early: {response.miss.detail}")
        return response.retrieved_tokens // self._calls.page_size, True, False

    async def _store(
        self,
        attachment: AsyncAttachment,
        session_id: str,
        keys: Sequence[bytes],
        pages: Sequence[int],
        timeout_seconds: float,
    ) -> StoreResponse:
        response = await attachment.store(
            session_id, self._calls.prefix(keys), self._calls.tables(pages), timeout_seconds=timeout_seconds
        )
        self._calls.pause.note_answer()
        return response

    def _settle(self, transfer_id: int, is_done: bool) -> None:
        """Report a transfer as done, or let the connection find out when it is."""
        if is_done or self._calls.connection is None:
            self._on_done([transfer_id])
        else:
            self._calls.connection.mark_uncertain(transfer_id)
