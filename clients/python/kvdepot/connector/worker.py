"""The connector in a worker of the engine: begins loads and stores, and reports their results.

The engine's thread only hands over commands and takes results. It waits for nothing but its first attachment.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

from kvdepot.aio.client import AsyncDepotClient
from kvdepot.connector.attached_memory import AttachedMemory
from kvdepot.connector.command_runner import CommandRunner, ReadyEvent
from kvdepot.connector.commands import LoadCommand, StoreCommand, WorkerReport
from kvdepot.connector.config import ConnectorConfig
from kvdepot.connector.depot_connection import DepotConnection
from kvdepot.connector.event_loop import EventLoop
from kvdepot.connector.identity import CacheIdentity, WorkerId
from kvdepot.connector.worker_results import WorkerResults
from kvdepot.memory import cuda

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 2.0


class ConnectorWorker:
    """One worker: its memory, its connection to the depot, its running transfers and their `results`.

    `worker_index` is its index in the engine's reports. `record_event` records an event on the device's current
    stream, and returns it, as `kvdepot.cuda.ready_event` takes it. The depot waits for the event before it touches
    blocks. Only memory of a GPU needs it. All methods belong to one thread.
    """

    def __init__(
        self,
        config: ConnectorConfig,
        identity: CacheIdentity,
        worker_id: WorkerId,
        worker_index: int,
        loop: EventLoop,
        record_event: Callable[[], Any] | None = None,
    ) -> None:
        self._config = config
        self._identity = identity
        self._worker_id = worker_id
        self._loop = loop
        self._record_event = record_event
        self._on_gpu = False
        self._running: Future[None] | None = None
        self._first_attachment = threading.Event()
        self.results = WorkerResults(worker_index)
        # Used on the event loop only.
        self._runner = CommandRunner(config, worker_id.replica, self.results)
        self._client: AsyncDepotClient | None = None
        self._uncertain: set[int] = set()

    def attach(self, share: Callable[[], AttachedMemory]) -> None:
        """Attach the KV cache that `share` returns, and wait for that until the attach timeout.

        `share` is called after the end of the attachment before, if there was one. Its errors are raised.

        Raises: ValueError: the memory is of a GPU, and the worker has no `record_event`.
        """
        self.close()
        self._first_attachment.clear()
        memory = share()
        if memory.on_gpu and self._record_event is None:
            raise ValueError("memory of a GPU needs record_event: the depot must know when blocks are computed")
        self._on_gpu = memory.on_gpu
        self._running = self._loop.start(self._run(memory))
        if not self._first_attachment.wait(self._config.attach_timeout_seconds):
            logger.warning("not attached after %g s: the engine starts", self._config.attach_timeout_seconds)

    def load(self, commands: Iterable[LoadCommand]) -> None:
        """Begin loads. `results` has them when they have ended."""
        event = None
        for command in commands:
            event = event or self._ready_event()
            self._loop.call(self._runner.begin_load, command, event)

    def store(self, commands: Iterable[StoreCommand]) -> None:
        """Begin stores of blocks that are computed, or will be once the device's stream gets there."""
        event = None
        for command in commands:
            if not self._worker_id.stores:
                self.results.mark_done([command.transfer_id])
                continue
            event = event or self._ready_event()
            self._loop.call(self._runner.begin_store, command, event)

    def take_report(self) -> WorkerReport | None:
        """Return the report about the time since the last call, for `ConnectorScheduler.reported`.

        None: nothing happened. An engine calls either this in each step, or all methods of `results` that take.
        """
        self.results.take_loaded()  # `ConnectorScheduler.reported` returns the ended loads
        self.results.take_invalid_blocks()
        return self.results.take_report()

    def close(self) -> None:
        """Detach, within `CLOSE_SECONDS`."""
        if self._running is None:
            return
        self._running.cancel()
        try:
            self._loop.run(self._close(), CLOSE_SECONDS)
        except TimeoutError:
            logger.warning("the worker could not detach in time; the depot notices its end")

    def _ready_event(self) -> ReadyEvent:
        if not self._on_gpu or self._record_event is None:
            return ReadyEvent(None, b"")
        event = self._record_event()
        return ReadyEvent(event, cuda.ready_event(event))

    async def _run(self, memory: AttachedMemory) -> None:
        self._client = AsyncDepotClient(self._config.address, credentials=self._config.credentials)
        self._runner.connection = connection = DepotConnection(
            self._client,
            self._config,
            self._identity,
            self._worker_id,
            memory,
            self._uncertain,
            on_done=self.results.mark_done,
            on_change=self._attachment_changed,
        )
        try:
            await connection.run()
        except Exception:  # a bug: the engine goes on without the depot
            logger.exception("the connection to the depot failed")
            raise

    def _attachment_changed(self, chunk_size: int, *, wants_token_ids: bool) -> None:
        self.results.attachment_changed(chunk_size, wants_token_ids=wants_token_ids)
        if chunk_size:
            self._first_attachment.set()

    async def _close(self) -> None:
        await self._runner.close()
        if self._client is not None:
            await self._client.close()
