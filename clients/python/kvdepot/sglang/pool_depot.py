"""One host pool and the depot, as SGLang's threads use them: calls that block, within a bound, and never raise."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Coroutine, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from kvdepot.aio.client import AsyncDepotClient
from kvdepot.connector.attached_memory import AttachedMemory
from kvdepot.connector.config import ConnectorConfig
from kvdepot.connector.depot_connection import DepotConnection
from kvdepot.connector.event_loop import EventLoop
from kvdepot.connector.identity import CacheIdentity, WorkerId
from kvdepot.errors import DepotError
from kvdepot.sglang.held_pages import HeldPages
from kvdepot.sglang.page_lookups import PageLookups
from kvdepot.sglang.page_transfers import PageTransfers
from kvdepot.sglang.placement import KV, Placement
from kvdepot.sglang.pool_calls import PoolCalls

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 3.0  # a detach has two
GRACE_SECONDS = 1.0
"""How much longer than the depot's calls a thread waits for the event loop."""

Result = TypeVar("Result")

_transfer_ids = itertools.count(1)


@dataclass(frozen=True, slots=True)
class MovedPages:
    """A load or a store: its pages, its bytes and its seconds."""

    pages: int
    num_bytes: int
    seconds: float


class PoolDepot:
    """The attachment of one pool of one rank, kept alive, and its calls. Any thread may use it."""

    def __init__(
        self,
        pool_name: str,
        page_size: int,
        memory: AttachedMemory,
        config: ConnectorConfig,
        identity: CacheIdentity,
        placement: Placement,
        held: HeldPages,
        loop: EventLoop,
    ) -> None:
        self.page_size = page_size
        self._pool_name = pool_name
        self._memory = memory
        self._config = config
        self._identity = identity
        self._placement = placement
        self._held = held
        self._loop = loop
        self._attached = threading.Event()
        self._running: Future[None] | None = None
        self._chunk_bytes = sum(
            len(group.planes) * group.num_heads * group.head_bytes * page_size for group in memory.groups
        )
        # Used on the event loop only.
        salt = "" if pool_name == KV else pool_name
        self._calls = PoolCalls(
            config, page_size, len(memory.groups), salt=salt, caller=f"{pool_name}-rank{placement.rank}"
        )
        self._lookups = PageLookups(self._calls)
        self._transfers = PageTransfers(self._calls, self._lookups, held.release)
        self._client: AsyncDepotClient | None = None
        self._task: asyncio.Task[Any] | None = None
        self._uncertain: set[int] = set()

    def attach(self) -> None:
        """Begin to attach. It is tried again until `close`."""
        self._running = self._loop.start(self._run())

    def wait_attached(self, timeout_seconds: float) -> bool:
        """Wait for an attachment. Return whether there is one."""
        return self._attached.wait(max(0.0, timeout_seconds))

    def exists(self, keys: Sequence[bytes]) -> int:
        """Return how many of the first pages the depot has."""
        return self._call(self._lookups.exists(keys), self._config.lookup_timeout_seconds, 0)

    def window_ends(self, keys: Sequence[bytes], window: int) -> list[int]:
        """Return some prefix lengths at which the last `window` pages are there: see `PageLookups.window_ends`."""
        return self._call(self._lookups.window_ends(keys, window), self._config.lookup_timeout_seconds, [])

    def load(self, keys: Sequence[bytes], pages: Sequence[int]) -> tuple[list[bool], MovedPages]:
        """Load pages. Return for each whether its bytes are right."""
        begin = time.monotonic()
        transfer_id = self._hold(pages)
        bound = 2 * (self._config.lookup_timeout_seconds + self._config.retrieve_timeout_seconds)
        num_loaded = self._call(self._transfers.load(transfer_id, keys, pages), bound, 0)
        return [position < num_loaded for position in range(len(keys))], self._moved(num_loaded, begin)

    def store(self, keys: Sequence[bytes], pages: Sequence[int]) -> tuple[list[bool], MovedPages]:
        """Store pages. Return for each whether the depot certainly has it."""
        begin = time.monotonic()
        transfer_id = self._hold(pages)
        work = self._transfers.store(transfer_id, keys, pages)
        stored = self._call(work, self._config.store_timeout_seconds, [False] * len(keys))
        return stored, self._moved(sum(stored), begin)

    def clear(self) -> bool:
        """Remove the pages of this model from the depot, those of other engines too. Return whether it did."""
        return self._call(self._clear(), self._config.store_timeout_seconds, False)

    def close(self) -> None:
        """Detach, within `CLOSE_SECONDS`. Later calls find nothing."""
        if self._running is None:
            return
        self._running = None
        try:
            self._loop.run(self._close(), CLOSE_SECONDS)
        except TimeoutError:
            logger.warning("the pool %s could not detach in time; the depot notices its end", self._pool_name)

    def _hold(self, pages: Sequence[int]) -> int:
        transfer_id = next(_transfer_ids)
        self._held.hold(transfer_id, self.page_size, pages)
        return transfer_id

    def _moved(self, num_pages: int, begin: float) -> MovedPages:
        return MovedPages(num_pages, num_pages * self._chunk_bytes, time.monotonic() - begin)

    def _call(self, work: Coroutine[Any, Any, Result], seconds: float, otherwise: Result) -> Result:
        try:
            return self._loop.run(work, seconds + GRACE_SECONDS)
        except TimeoutError:
            logger.warning("a call of the pool %s did not end within %g s", self._pool_name, seconds + GRACE_SECONDS)
        except Exception:  # a bug: SGLang goes on without the depot
            logger.exception("a call of the pool %s failed", self._pool_name)
        return otherwise

    async def _run(self) -> None:
        self._task = asyncio.current_task()
        self._client = AsyncDepotClient(self._config.address, credentials=self._config.credentials)
        self._calls.connection = connection = DepotConnection(
            self._client,
            self._config,
            self._identity,
            WorkerId(
                instance_id=self._placement.instance_id,
                rank=self._placement.rank,
                world_size=self._placement.world_size,
                replica=self._placement.replica,
            ),
            self._memory,
            self._uncertain,
            on_done=self._done,
            on_change=self._changed,
        )
        try:
            await connection.run()
        except Exception:  # a bug: SGLang goes on without the depot
            logger.exception("the connection of the pool %s failed", self._pool_name)
            raise

    def _done(self, transfer_ids: Iterable[int]) -> None:
        self._held.release(transfer_ids)

    def _changed(self, chunk_size: int, /, *, wants_token_ids: bool) -> None:
        """Take the state of the attachment. SGLang's storage calls have hashes and no tokens, so none can be sent."""
        self._lookups.queries.clear()
        self._calls.pause.note_answer()
        if chunk_size == self.page_size:
            self._attached.set()
            return
        self._attached.clear()
        if chunk_size:
            logger.warning(
                "the depot cuts the pool %s into chunks of %d tokens, and a page has %d: nothing is shared",
                self._pool_name,
                chunk_size,
                self.page_size,
            )

    async def _clear(self) -> bool:
        if self._client is None:
            return False
        try:
            await self._client.clear_cache(
                model_name=self._identity.model_name, force=True, timeout_seconds=self._config.store_timeout_seconds
            )
        except DepotError as error:
            self._calls.failed(error, "clear")
            return False
        return True

    async def _close(self) -> None:
        await self._calls.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])  # it detaches
        if self._client is not None:
            await self._client.close()
