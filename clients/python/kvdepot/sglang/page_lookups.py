"""Which pages the depot has. No lookup raises, and each has a bound."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from kvdepot.aio.attachment import AsyncAttachment
from kvdepot.errors import DepotError
from kvdepot.sglang.found_pages import FoundPages, RecentQueries
from kvdepot.sglang.pool_calls import PoolCalls
from kvdepot.v1.cache_pb2 import LookupResponse

MAX_WAVE = 32
"""How many lookups run at once while the end of a prefix is searched for pages."""


class PageLookups:
    """The lookups of one pool. `queries` keep what they found leased."""

    def __init__(self, calls: PoolCalls) -> None:
        self.queries = RecentQueries()
        self._calls = calls

    async def exists(self, keys: Sequence[bytes]) -> int:
        """Return how many of the first pages the depot has. They stay leased for `lease_hold_seconds`."""
        attachment = self._calls.attachment
        if attachment is None or not keys:
            return 0
        found = await self.look_up(attachment, keys)
        if found is None:
            return 0
        if (evicted := self.queries.add(found)) is not None:
            self._calls.end(attachment, evicted.session_id)
        asyncio.get_running_loop().call_later(
            self._calls.config.lease_hold_seconds, self._expire, attachment, found.session_id
        )
        return len(found.keys)

    async def window_ends(self, keys: Sequence[bytes], window: int) -> list[int]:
        """Return some prefix lengths at which the last `window` pages are there. A prefix
        that is shorter than the window needs all of its pages.

        The longest such length is among them. The search begins at the end. It stops at the first wave of lookups that
        finds one, or at the lookup's timeout.
        """
        attachment = self._calls.attachment
        if attachment is None:
            return []
        deadline = time.monotonic() + self._calls.config.lookup_timeout_seconds
        session_id = self._calls.new_session()
        ends: list[int] = []
        wave, last = 1, len(keys)
        try:
            while last > 0 and not ends and (left_seconds := deadline - time.monotonic()) > 0:
                lengths = range(last, max(0, last - wave), -1)
                runs = await asyncio.gather(
                    *(self._run_before(attachment, session_id, keys[:end], window, left_seconds) for end in lengths)
                )
                if None in runs:
                    return []
                ends = [end for end, run in zip(lengths, runs, strict=True) if run == min(window, end)]
                last -= len(lengths)
                wave = min(2 * wave, MAX_WAVE)
        finally:
            self._calls.end(attachment, session_id)
        return ends

    async def look_up(self, attachment: AsyncAttachment, keys: Sequence[bytes]) -> FoundPages | None:
        """Return the first pages that are there, with their lease. None: the first one is not."""
        session_id = self._calls.new_session()
        found = await self._lookup(attachment, session_id, keys, self._calls.config.lookup_timeout_seconds, leased=True)
        num_pages = found.matched_tokens // self._calls.page_size if found is not None else 0
        if found is None or not num_pages:
            self._calls.end(attachment, session_id)  # after a timeout, too: the depot may have begun it
            return None
        return FoundPages(session_id=session_id, lease=found.lease, keys=keys[:num_pages])

    async def _run_before(
        self, attachment: AsyncAttachment, session_id: str, keys: Sequence[bytes], window: int, timeout_seconds: float
    ) -> int | None:
        """Return how many of the last `window` pages are there, counted from the last one on. None: no answer."""
        last_first = keys[-window:][::-1]
        found = await self._lookup(attachment, session_id, last_first, timeout_seconds, leased=False)
        return None if found is None else found.matched_tokens // self._calls.page_size

    async def _lookup(
        self,
        attachment: AsyncAttachment,
        session_id: str,
        keys: Sequence[bytes],
        timeout_seconds: float,
        *,
        leased: bool,
    ) -> LookupResponse | None:
        try:
            found = await attachment.lookup(
                session_id,
                self._calls.prefix(keys),
                computed_tokens=0 if leased else len(keys) * self._calls.page_size,  # there is no lease for these
                timeout_seconds=timeout_seconds,
            )
        except DepotError as error:
            self._calls.failed(error, "lookup")
            return None
        self._calls.pause.note_answer()
        return found

    def _expire(self, attachment: AsyncAttachment, session_id: str) -> None:
        if self.queries.remove(session_id) is not None:
            self._calls.end(attachment, session_id)
