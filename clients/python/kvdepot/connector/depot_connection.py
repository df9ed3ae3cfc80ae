"""A worker's attachment, kept alive: attached again whenever it is lost, with a backoff.

An operation whose outcome is not known (a deadline passed, the connection broke) may still touch the engine's blocks.
It is settled when it is certain that it does not: the depot took a new attachment of this rank, which it does only
after the old one has been undone, or nobody listens at its address any more.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from kvdepot.aio.attachment import AsyncAttachment
from kvdepot.aio.client import AsyncDepotClient
from kvdepot.errors import DepotError
from kvdepot.vllm.identity import Place
from kvdepot.vllm.memory import AttachedMemory

logger = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS = 0.2
LONGEST_BACKOFF_SECONDS = 5.0
PROBE_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSettings:
    """Where to attach, and what."""

    address: str
    model_name: str
    place: Place
    memory: AttachedMemory
    attach_timeout_seconds: float


class DepotConnection:
    """Runs on the event loop. ``on_settled`` is called with operations, ``on_change`` with the chunk size or 0.

    ``unsettled`` are the worker's operations in doubt; they outlive a link that is closed.
    """

    def __init__(
        self,
        client: AsyncDepotClient,
        settings: LinkSettings,
        unsettled: set[int],
        on_settled: Callable[[Iterable[int]], None],
        on_change: Callable[[int], None],
    ) -> None:
        self._client = client
        self._settings = settings
        self._on_settled = on_settled
        self._on_change = on_change
        self._attachment: AsyncAttachment | None = None
        self._unsettled = unsettled
        self._doubt = asyncio.Event()
        self._complaint = ""

    @property
    def attachment(self) -> AsyncAttachment | None:
        """What to call the depot through; None while it is not there, or about to go."""
        attachment = self._attachment
        if attachment is None or attachment.lost or attachment.draining or self._doubt.is_set():
            return None
        return attachment

    def doubt(self, operation_id: int) -> None:
        """Notes an operation that may still be running: the attachment is given up, to find out."""
        self._unsettled.add(operation_id)
        self._doubt.set()

    async def run(self) -> None:
        """Attaches, and attaches again, until it is cancelled."""
        backoff_seconds = FIRST_BACKOFF_SECONDS
        while True:
            try:
                self._doubt.clear()
                async with await self._attach() as attachment:
                    self._settle()
                    backoff_seconds = FIRST_BACKOFF_SECONDS
                    await self._while_attached(attachment)
            except DepotError as error:
                self._complain(str(error))
                if self._unsettled and await nobody_listens(self._settings.address):
                    self._settle()
            finally:
                self._attachment = None
            await asyncio.sleep(backoff_seconds * random.uniform(0.5, 1.0))
            backoff_seconds = min(2 * backoff_seconds, LONGEST_BACKOFF_SECONDS)

    async def _attach(self) -> AsyncAttachment:
        settings = self._settings
        return await self._client.attach(
            instance_id=settings.place.instance_id,
            model_name=settings.model_name,
            world_size=settings.place.world_size,
            rank=settings.place.rank,
            groups=settings.memory.groups,
            regions=settings.memory.regions,
            timeout_seconds=settings.attach_timeout_seconds,
        )

    async def _while_attached(self, attachment: AsyncAttachment) -> None:
        self._attachment = attachment
        self._complaint = ""
        logger.info("attached to the depot: %r, version %s", attachment, attachment.server_version)
        self._on_change(attachment.chunk_size)
        lost = asyncio.ensure_future(attachment.wait_lost())
        doubt = asyncio.ensure_future(self._doubt.wait())
        try:
            await asyncio.wait([lost, doubt], return_when=asyncio.FIRST_COMPLETED)
        finally:
            lost.cancel()
            doubt.cancel()
            self._attachment = None
            self._on_change(0)
        logger.warning("detached from the depot, the engine goes on without it: %s", attachment.lost_reason or "slow")

    def _settle(self) -> None:
        self._on_settled(tuple(self._unsettled))
        self._unsettled.clear()

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:  # once, and not at each attempt
            self._complaint = complaint
            logger.warning("no depot at %s, the engine goes on without it: %s", self._settings.address, complaint)


async def nobody_listens(address: str) -> bool:
    """Whether a connection is refused, so that no depot of this address lives; one that hangs still takes them."""
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
