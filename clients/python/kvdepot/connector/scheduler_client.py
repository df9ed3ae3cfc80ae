"""The scheduler's connection to the depot."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from kvdepot.aio.client import AsyncDepotClient
from kvdepot.connector.block_reports import BlockReportQueue
from kvdepot.connector.config import ConnectorConfig
from kvdepot.connector.event_loop import EventLoop
from kvdepot.connector.lookups import DepotLookupClient

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 2.0


class SchedulerClient:
    """A client of the depot on the event loop, with its lookups and its reports. The engine's end closes it.

    `reported_block_size` is in tokens, of the blocks that are reported; None if no group is. The depot may wait with an
    answer for `max_wait_seconds`.
    """

    def __init__(
        self,
        config: ConnectorConfig,
        instance_ids: Sequence[str],
        model_name: str,
        reported_block_size: int | None,
        loop: EventLoop,
        max_wait_seconds: float = 0.0,
    ) -> None:
        self._loop = loop
        self._client = self._loop.run(_client(config), CLOSE_SECONDS)
        self.lookups = DepotLookupClient(
            self._client,
            self._loop,
            instance_ids,
            timeout_seconds=config.lookup_timeout_seconds,
            max_wait_seconds=max_wait_seconds,
        )
        self.reports: BlockReportQueue | None = None
        if config.report_blocks and reported_block_size is not None:
            self.reports = BlockReportQueue(
                self._client, instance_ids[0], model_name, reported_block_size, self.lookups.end_session
            )
        self._sending = self._loop.start(self.reports.run()) if self.reports is not None else None

    def close(self) -> None:
        """Close the connection, within `CLOSE_SECONDS`."""
        if self._sending is not None:
            self._sending.cancel()
        try:
            self._loop.run(self._client.close(), CLOSE_SECONDS)
        except TimeoutError:
            logger.warning("the connection to the depot did not close within %g s", CLOSE_SECONDS)


async def _client(config: ConnectorConfig) -> AsyncDepotClient:
    """Make the client on the loop that uses it."""
    return AsyncDepotClient(config.address, credentials=config.credentials)
