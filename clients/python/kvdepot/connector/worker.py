"""The connector in a worker of the engine: begins loads and stores, and reports their results.

The engine's thread only hands over commands and takes results. It waits for nothing but its first attachment.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

from kvdepot.aio.client import AsyncDepotClient
from kvdepot.connector.attached_memory import AttachedMemory
from kvdepot.connector.command_runner import CommandRunner, ReadyEvent
from kvdepot.connector.commands import LoadCommand, StoreCommand, WorkerReport
from kvdepot.connector.config import ConnectorConfig
from kvdepot.connector.depot_connection import DepotConnection, LastWarning
from kvdepot.connector.event_loop import EventLoop
from kvdepot.connector.identity import CacheIdentity, WorkerId
from kvdepot.connector.worker_results import WorkerResults
from kvdepot.memory import cuda

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 2.0


class _Acknowledgement(NamedTuple):
    """The answer of a depot to an attach. `chunk_size` is in tokens; 0: there is no attachment."""

    chunk_size: int
    wants_token_ids: bool


_NOT_ATTACHED = _Acknowledgement(0, False)


class ConnectorWorker:
    """One worker: its memory, its connections to the depot, its running transfers and their `results`.

    It has a connection for each of `num_shards` shards of its heads. All of them share one client, and the depot maps
    the same memory for each. The worker is attached while all of its shards are.

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
        *,
        num_shards: int = 1,
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
        self._shard_ids = worker_id.shards(num_shards)
        self._uncertain: list[set[int]] = [set() for _ in self._shard_ids]
        self._acknowledged = [_NOT_ATTACHED] * num_shards
        self._common = _NOT_ATTACHED

    def attach(self, share: Callable[[], AttachedMemory]) -> None:
        """Attach the KV cache that `share` returns, and wait for that until the attach timeout.

        `share` is called after the end of the attachment before, if there was one. Its errors are raised.

        Raises: ValueError: the memory is of a GPU, and the worker has no `record_event`.
            InvalidArgument: the heads of a group can't be divided by the number of shards.
        """
        self.close()
        self._first_attachment.clear()
        memory = share()
        if memory.on_gpu and self._record_event is None:
            raise ValueError("memory of a GPU needs record_event: the depot must know when blocks are computed")
        self._on_gpu = memory.on_gpu
        shards = (memory,) if len(self._shard_ids) == 1 else memory.shards(len(self._shard_ids))
        self._running = self._loop.start(self._run(shards))
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

    async def _run(self, shards: Sequence[AttachedMemory]) -> None:
        client = self._client = AsyncDepotClient(self._config.address, credentials=self._config.credentials)
        last_warning = LastWarning()
        connections = self._runner.connections = tuple(
            DepotConnection(
                client,
                self._config,
                self._identity,
                shard_id,
                shards[number],
                self._uncertain[number],
                on_done=self._runner.ends.end,
                on_change=partial(self._shard_changed, number),
                last_warning=last_warning,
            )
            for number, shard_id in enumerate(self._shard_ids)
        )
        try:
            async with asyncio.TaskGroup() as running:
                for connection in connections:
                    running.create_task(connection.run())
        except Exception:  # a bug: the engine goes on without the depot
            logger.exception("the connection to the depot failed")
            raise

    def _shard_changed(self, shard: int, chunk_size: int, *, wants_token_ids: bool) -> None:
        """Take the chunk size of a shard, or 0. That of the worker is the one of all its shards."""
        self._acknowledged[shard] = _Acknowledgement(chunk_size, wants_token_ids)
        common = self._acknowledged[0] if len(set(self._acknowledged)) == 1 else _NOT_ATTACHED
        if common == self._common:
            return  # other shards are missing as before
        self._common = common
        self.results.attachment_changed(common.chunk_size, wants_token_ids=common.wants_token_ids)
        if common.chunk_size:
            self._first_attachment.set()

    async def _close(self) -> None:
        await self._runner.close()
        if self._client is not None:
            await self._client.close()
