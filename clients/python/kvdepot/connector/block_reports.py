"""Reports to the depot which blocks the scheduler gave to which request, in batches.

The scheduler's thread queues them and the event loop sends them. Ends of sessions go through the same queue, because a
report that arrives after the end would begin the session again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence

from kvdepot.aio.client import AsyncDepotClient
from kvdepot.connector.block_allocations import BlockAllocation
from kvdepot.errors import DepotError
from kvdepot.requests import allocation_record

logger = logging.getLogger(__name__)

BATCH_SECONDS = 0.1
BATCH_RECORDS = 256
MAX_RECORDS = 16_384
TIMEOUT_SECONDS = 5.0


class BlockReportQueue:
    """A bounded queue.

    A session with a lost record is not reported until it starts anew, because its next record would not fit.
    """

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
        self._queue: deque[BlockAllocation | str] = deque()
        self._lost: set[str] = set()

    def report(self, allocation: BlockAllocation) -> None:
        """Queue an allocation. The event loop makes the record of it, so that the scheduler's thread is not delayed."""
        if len(self._queue) < MAX_RECORDS:
            self._queue.append(allocation)
        else:
            self._lost.add(allocation.session_id)

    def end_session(self, session_id: str) -> None:
        """End a session once all of its allocations are sent."""
        self._queue.append(session_id)

    async def run(self) -> None:
        """Send batches until cancelled."""
        while True:
            await asyncio.sleep(BATCH_SECONDS)
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(BATCH_RECORDS, len(self._queue)))]
                await self._send([each for each in batch if isinstance(each, BlockAllocation)])
                for ended in batch:
                    if isinstance(ended, str):
                        self._lost.discard(ended)
                        self._end_session(ended)

    async def _send(self, batch: Sequence[BlockAllocation]) -> None:
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
            logger.debug("%d block allocations were not reported: %s", len(batch), error)
        else:
            self._lost.difference_update(each.session_id for each in batch if each.resumed)
