"""The worker's side: carries orders out on the event loop, and tells what became of them.

The engine's thread only hands orders over and picks results up; it waits for nothing but its first attachment.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

from kvdepot.aio.attachment import AsyncAttachment
from kvdepot.aio.client import AsyncDepotClient
from kvdepot.connector.commands import LoadCommand, StoreCommand, WorkerReport
from kvdepot.connector.depot_connection import DepotConnection, LinkSettings
from kvdepot.connector.event_loop import EventLoop
from kvdepot.errors import DepotError
from kvdepot.memory import cuda
from kvdepot.rpc import traceparent
from kvdepot.v1.cache_pb2 import RetrieveResponse, StoreResponse
from kvdepot.vllm.config import ConnectorConfig
from kvdepot.vllm.identity import Place
from kvdepot.vllm.memory import AttachedMemory, share

logger = logging.getLogger(__name__)

MAX_STORES = 8
CLOSE_SECONDS = 2.0

Response = TypeVar("Response")


class _Result(NamedTuple):
    """News of an operation: it failed, or it is settled, or both."""

    operation_id: int
    failed: bool
    settled: bool


class _Loaded(NamedTuple):
    """A load has ended, as far as its request is concerned."""

    order: LoadCommand
    failed: bool


class WorkerSide:
    """One worker: its memory, its link to the depot, the operations that run.

    ``record_event`` records an event on the device's current stream, which the depot waits for before it touches
    blocks; it is called if the memory is a GPU's.
    """

    def __init__(
        self,
        config: ConnectorConfig,
        model_name: str,
        place: Place,
        worker: int,
        loop: EventLoop,
        record_event: Callable[[], Any],
    ) -> None:
        self._config = config
        self._model_name = model_name
        self._place = place
        self._worker = worker
        self._record_event = record_event
        self._loop = loop
        self._running: Future[None] | None = None
        self._first_attachment = threading.Event()
        self._memory: AttachedMemory | None = None
        # Written on the loop, read by the engine's thread. The chunk size is 0 while this worker is not attached.
        self._chunk_size = 0
        self._results: deque[_Result] = deque()
        self._loads: deque[_Loaded] = deque()
        # The engine's thread's.
        self._told_chunk_size: int | None = None
        # The loop's.
        self._client: AsyncDepotClient | None = None
        self._link: DepotConnection | None = None
        self._unsettled: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._store_turns = asyncio.Semaphore(MAX_STORES)
        self._complaints: set[str] = set()

    def register(self, kv_caches: Mapping[str, Any], kv_cache_config: Any) -> None:
        """Shares the KV cache and attaches it; waits for that, at most for the setting's time.

        Raises:
            ValueError, OSError: the memory can't be shared.
        """
        self.close()  # where vLLM makes another cache, the depot lets go of the one before
        self._first_attachment.clear()
        self._memory = share(kv_caches, kv_cache_config, self._config.share_memory_by)
        self._running = self._loop.start(self._run(self._memory))
        if not self._first_attachment.wait(self._config.attach_timeout_seconds):
            logger.warning("not attached after %g s: the engine starts", self._config.attach_timeout_seconds)

    def load(self, orders: Iterable[LoadCommand]) -> None:
        """Begins loads; `take_loaded` tells when each has ended."""
        event = None
        for order in orders:
            event = event or self._event()
            self._loop.call(self._begin, self._load(order, event))

    def store(self, orders: Iterable[StoreCommand]) -> None:
        """Begins stores of blocks that are computed, or will be once the device's stream gets there."""
        event = None
        for order in orders:
            if not self._place.stores:
                self._results.append(_Result(order.operation_id, failed=False, settled=True))
                continue
            event = event or self._event()
            self._loop.call(self._begin, self._store(order, event))

    def take_loaded(self) -> tuple[set[str], set[str]]:
        """Requests whose load has ended since the last call, and those of them whose load failed."""
        loaded, failed = set(), set()
        while self._loads:
            order, has_failed = self._loads.popleft()
            loaded.add(order.request_id)
            if has_failed:
                failed.add(order.request_id)
        return loaded, failed

    def take_report(self) -> WorkerReport | None:
        """What the scheduler's side has to know; None if it is nothing."""
        report = WorkerReport()
        while self._results:
            result = self._results.popleft()
            if result.failed:
                report.failed.add(result.operation_id)
            if result.settled:
                report.settled[result.operation_id] += 1
        if (chunk_size := self._chunk_size) != self._told_chunk_size:
            self._told_chunk_size = report.chunk_sizes[self._worker] = chunk_size
        return report if report.settled or report.failed or report.chunk_sizes else None

    def close(self) -> None:
        """Detaches, within a bound."""
        if self._running is None:
            return
        self._running.cancel()
        try:
            self._loop.run(self._close(), CLOSE_SECONDS)
        except TimeoutError:
            logger.warning("the depot could not be told that the worker ends; it notices")

    def _event(self) -> _ReadyEvent:
        if self._memory is None or not self._memory.on_gpu:
            return _ReadyEvent(None, b"")
        event = self._record_event()
        return _ReadyEvent(event, cuda.ready_event(event))

    async def _run(self, memory: AttachedMemory) -> None:
        self._client = AsyncDepotClient(self._config.address, credentials=self._config.credentials)
        settings = LinkSettings(
            address=self._config.address,
            model_name=self._model_name,
            place=self._place,
            memory=memory,
            attach_timeout_seconds=self._config.attach_timeout_seconds,
        )
        self._link = DepotConnection(self._client, settings, self._unsettled, self._settle, self._attached)
        try:
            await self._link.run()
        except Exception:  # a bug: the engine goes on without the depot
            logger.exception("the link to the depot failed")
            raise

    def _attached(self, chunk_size: int) -> None:
        self._chunk_size = chunk_size
        if chunk_size:
            self._first_attachment.set()

    def _settle(self, operation_ids: Iterable[int]) -> None:
        self._results.extend(_Result(operation_id, failed=False, settled=True) for operation_id in operation_ids)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load(self, order: LoadCommand, event: _ReadyEvent) -> None:
        response: RetrieveResponse | None = None
        try:
            if order.leases:
                response = await self._call(order, lambda attachment: self._retrieve(attachment, order, event))
            else:
                self._settle([order.operation_id])
        finally:
            failed = response is None or response.retrieved_tokens != order.num_tokens - order.skip_tokens
            if failed:
                self._results.append(_Result(order.operation_id, failed=True, settled=False))
            self._loads.append(_Loaded(order, failed))

    async def _retrieve(self, attachment: AsyncAttachment, order: LoadCommand, event: _ReadyEvent) -> RetrieveResponse:
        assert self._memory is not None
        return await attachment.retrieve(
            order.session_id,
            order.leases[self._place.replica],
            self._memory.block_tables(order.tables),
            skip_tokens=order.skip_tokens,
            ready_event=event.handle,
            timeout_seconds=self._config.retrieve_timeout_seconds,
        )

    async def _store(self, order: StoreCommand, event: _ReadyEvent) -> None:
        """One store; its time begins before its turn comes."""
        response: StoreResponse | None = None
        deadline = time.monotonic() + self._config.store_timeout_seconds
        had_its_turn = False
        try:
            async with self._store_turns:
                if (left_seconds := deadline - time.monotonic()) > 0:
                    had_its_turn = True
                    response = await self._call(
                        order, lambda attachment: self._send(attachment, order, event, left_seconds)
                    )
        finally:
            if not had_its_turn:
                self._settle([order.operation_id])
            if response is None or response.refused_tokens:
                self._results.append(_Result(order.operation_id, failed=True, settled=False))

    async def _send(
        self, attachment: AsyncAttachment, order: StoreCommand, event: _ReadyEvent, timeout_seconds: float
    ) -> StoreResponse:
        assert self._memory is not None
        return await attachment.store(
            order.session_id,
            order.prefix,
            self._memory.block_tables(order.tables),
            start_token=order.start_token,
            ready_event=event.handle,
            timeout_seconds=timeout_seconds,
        )

    async def _call(
        self, order: LoadCommand | StoreCommand, call: Callable[[AsyncAttachment], Awaitable[Response]]
    ) -> Response | None:
        """Makes a call, and settles its operation as soon as that is certain; None if it failed."""
        traceparent.set(order.traceparent)  # of this task, and gone with it
        attachment = self._link.attachment if self._link is not None else None
        if self._link is None or attachment is None:
            self._settle([order.operation_id])
            return None
        is_answered = False
        try:
            response = await call(attachment)
            is_answered = True
        except DepotError as error:
            is_answered = answered(error)
            self._complain(order, error)
            return None
        finally:
            if is_answered:
                self._settle([order.operation_id])
            else:
                self._link.doubt(order.operation_id)
        return response

    def _complain(self, order: LoadCommand | StoreCommand, error: DepotError) -> None:
        if error.reason not in self._complaints:  # once for each reason: under load there would be thousands
            self._complaints.add(error.reason)
            logger.warning("%s of request %s failed: %s", type(order).__name__, order.request_id, error)

    async def _close(self) -> None:
        """Operations that run are in doubt; the next attachment of this worker settles them."""
        await asyncio.sleep(0)  # what was just begun must have started, or else nothing would tell of its end
        if tasks := set(self._tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        if self._client is not None:
            await self._client.close()


class _ReadyEvent(NamedTuple):
    """An event of the device, kept until the depot has waited for it, and its handle."""

    event: Any
    handle: bytes


def answered(error: DepotError) -> bool:
    """Whether the depot itself ended the call, after which it does not touch the call's blocks any more."""
    return error.reason not in (error.code.name, "UNREACHABLE")
