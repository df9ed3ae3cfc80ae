"""A worker's attachment, kept alive: attached again after each loss, with a backoff.

The outcome of a transfer is uncertain if a deadline has passed or the connection broke: it may still touch the engine's
blocks. It is certainly done in two cases. The depot has taken a new attachment of this rank, which it does only after
the old one is undone. Or nothing listens at the depot's address.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from kvdepot.aio.attachment import AsyncAttachment
from kvdepot.aio.client import AsyncDepotClient
from kvdepot.connector.attached_memory import AttachedMemory
from kvdepot.connector.config import ConnectorConfig
from kvdepot.connector.identity import CacheIdentity, WorkerId
from kvdepot.errors import DepotError

logger = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS = 0.2
MAX_BACKOFF_SECONDS = 5.0
PROBE_SECONDS = 1.0


class OnChange(Protocol):
    """What is called when the worker is attached to a depot, or no more."""

    def __call__(self, chunk_size: int, /, *, wants_token_ids: bool) -> None: ...


@dataclass(slots=True)
class LastWarning:
    """The last warning of a worker's connections, so that no attempt repeats it. Empty: there is none."""

    message: str = ""


class DepotConnection:
    """The attachment of one rank: a worker, or a shard of its heads. It runs on the event loop.

    `uncertain` are its uncertain transfers; the caller owns the set, which outlives a closed connection.
    `on_done` takes transfers that are done. `on_change` takes the chunk size of a new attachment, or 0, and
    whether its depot wants tokens.
    """

    def __init__(
        self,
        client: AsyncDepotClient,
        config: ConnectorConfig,
        identity: CacheIdentity,
        worker_id: WorkerId,
        memory: AttachedMemory,
        uncertain: set[int],
        on_done: Callable[[Iterable[int]], None],
        on_change: OnChange,
        last_warning: LastWarning | None = None,
    ) -> None:
        self.memory = memory
        self._client = client
        self._config = config
        self._identity = identity
        self._worker_id = worker_id
        self._on_done = on_done
        self._on_change = on_change
        self._attachment: AsyncAttachment | None = None
        self._uncertain = uncertain
        self._must_reattach = asyncio.Event()
        self._last_warning = last_warning or LastWarning()

    @property
    def attachment(self) -> AsyncAttachment | None:
        """The attachment for calls to the depot. None: there is none, or it is about to end."""
        attachment = self._attachment
        if attachment is None or attachment.lost or attachment.draining or self._must_reattach.is_set():
            return None
        return attachment

    def mark_uncertain(self, transfer_id: int) -> None:
        """End the attachment, because the next one shows that this transfer is done."""
        self._uncertain.add(transfer_id)
        self._must_reattach.set()

    async def run(self) -> None:
        """Attach, and attach again after each loss, until cancelled."""
        backoff_seconds = FIRST_BACKOFF_SECONDS
        while True:
            try:
                self._must_reattach.clear()
                async with await self._attach() as attachment:
                    self._mark_done()
                    backoff_seconds = FIRST_BACKOFF_SECONDS
                    await self._while_attached(attachment)
            except DepotError as error:
                self._warn(str(error))
                if self._uncertain and await is_refused(self._config.address):
                    self._mark_done()
            finally:
                self._attachment = None
            await asyncio.sleep(backoff_seconds * random.uniform(0.5, 1.0))
            backoff_seconds = min(2 * backoff_seconds, MAX_BACKOFF_SECONDS)

    async def _attach(self) -> AsyncAttachment:
        return await self._client.attach(
            instance_id=self._worker_id.instance_id,
            model_name=self._identity.model_name,
            model_revision=self._identity.model_revision,
            block_hash_seed=self._identity.block_hash_seed,
            prefill_tokens_per_second=self._config.prefill_tokens_per_second or None,
            world_size=self._worker_id.world_size,
            rank=self._worker_id.rank,
            groups=self.memory.groups,
            regions=self.memory.regions,
            chunk_size=self.memory.chunk_size,
            timeout_seconds=self._config.attach_timeout_seconds,
        )

    async def _while_attached(self, attachment: AsyncAttachment) -> None:
        self._attachment = attachment
        self._last_warning.message = ""
        logger.info(
            "attached to the depot: %r, version %s, model_revision %s, %d chunks taken over",
            attachment,
            attachment.server_version,
            self._identity.model_revision or "not given",
            attachment.adopted_chunks,
        )
        if attachment.other_block_hash_seeds:
            logger.warning(
                "engines of this model use other block hashes (%s), so this engine (%s) shares no KV with them: start "
                "all of them with the same block size, hash algorithm and seed",
                ", ".join(attachment.other_block_hash_seeds),
                self._identity.block_hash_seed,
            )
        self._on_change(attachment.chunk_size, wants_token_ids=attachment.wants_token_ids)
        ends = [asyncio.ensure_future(attachment.wait_lost()), asyncio.ensure_future(self._must_reattach.wait())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
            self._attachment = None
            self._on_change(0, wants_token_ids=False)
        reason = attachment.lost_reason or "it did not answer a call in time"
        logger.warning("detached from the depot, the engine goes on without it: %s", reason)

    def _mark_done(self) -> None:
        self._on_done(tuple(self._uncertain))
        self._uncertain.clear()

    def _warn(self, message: str) -> None:
        if message != self._last_warning.message:  # once, and not at each attempt
            self._last_warning.message = message
            logger.warning("no depot at %s, the engine goes on without it: %s", self._config.address, message)


async def is_refused(address: str) -> bool:
    """Return whether a connection is refused: then no depot runs there. A depot that hangs accepts connections."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            if address.startswith("unix:"):
                path = address.removeprefix("unix:").removeprefix("//")
                _, writer = await asyncio.open_unix_connection(path)
            elif port.isdecimal():
                _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
            else:
                return False
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    except (OSError, TimeoutError):
        return False
    with suppress(OSError):
        writer.close()
    return False
