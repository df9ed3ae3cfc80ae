"""Tells the depot which blocks the scheduler gave to whom: noted on its thread, sent by the event loop in batches.

Ends of sessions go through the same queue: a report that came after the end would begin the session again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence

from kvdepot.aio.client import AsyncDepotClient
from kvdepot.connector.allocations import Allocation
from kvdepot.errors import DepotError
from kvdepot.requests import allocation_record

logger = logging.getLogger(__name__)

BATCH_SECONDS = 0.1
BATCH_RECORDS = 256
MAX_RECORDS = 16_384
TIMEOUT_SECONDS = 5.0


class BlockReports:
    """A bounded queue. A request of which a record is lost is not told of any more: its next one would not fit."""

    def __init__(
        self,
        client: AsyncDepotClient,
        instance_id: str,
        model_name: str,
        block_size: int,
        end_session: Callable[[str], None],
    ) -> None:
        self._client = client
        self._end_session = end_session
        self._instance_id = instance_id
        self._model_name = model_name
        self._block_size = block_size
        self._queue: deque[Allocation | str] = deque()
        self._lost: set[str] = set()

    def note(self, allocation: Allocation) -> None:
        """Notes an allocation, to be sent soon; on the scheduler's thread, so nothing is made of it yet."""
        if len(self._queue) < MAX_RECORDS:
            self._queue.append(allocation)
        else:
            self._lost.add(allocation.session_id)

    def end(self, session_id: str) -> None:
        """The request has ended: so does its session, once all of its allocations are sent."""
        self._queue.append(session_id)

    async def run(self) -> None:
        """Sends batches until it is cancelled."""
        while True:
            await asyncio.sleep(BATCH_SECONDS)
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(BATCH_RECORDS, len(self._queue)))]
                await self._send([each for each in batch if isinstance(each, Allocation)])
                for ended in batch:
                    if isinstance(ended, str):
                        self._lost.discard(ended)
                        self._end_session(ended)

    async def _send(self, batch: Sequence[Allocation]) -> None:
        records = [
            allocation_record(
                each.session_id,
                block_ids=each.block_ids,
                token_ids=each.token_ids,
                reused_block_ids=each.reused_block_ids,
                resumed=each.resumed,
            )
            for each in batch
            if each.resumed or each.session_id not in self._lost
        ]
        if not records:
            return
        try:
            await self._client.report_block_allocation(
                self._instance_id, self._model_name, self._block_size, records, timeout_seconds=TIMEOUT_SECONDS
            )
        except DepotError as error:
            self._lost.update(each.session_id for each in batch)
            logger.debug("%d block allocations were not told: %s", len(batch), error)
        else:
            self._lost.difference_update(each.session_id for each in batch if each.resumed)
