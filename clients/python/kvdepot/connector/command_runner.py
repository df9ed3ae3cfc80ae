"""Carries out a worker's commands, on the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from kvdepot.aio.attachment import AsyncAttachment
from kvdepot.connector.attached_memory import AttachedMemory
from kvdepot.connector.commands import LoadCommand, StoreCommand, TransferCommand, TransferOutcome
from kvdepot.connector.config import ConnectorConfig
from kvdepot.connector.depot_connection import DepotConnection
from kvdepot.connector.event_loop import BackgroundTasks
from kvdepot.connector.worker_results import WorkerResults
from kvdepot.errors import ChunkCorrupt, ChunkLost, DepotError
from kvdepot.rpc import traceparent
from kvdepot.v1.cache_pb2 import MissReason, RefusalReason

logger = logging.getLogger(__name__)

MAX_STORES = 8

# Reasons of our own, beside those of the depot.
NOT_ATTACHED = "NOT_ATTACHED"
LEASE_GIVEN_BACK = "LEASE_GIVEN_BACK"
NO_SLOT_IN_TIME = "NO_SLOT_IN_TIME"
SHORT_ANSWER = "SHORT_ANSWER"
CANCELLED = "CANCELLED"
OTHER = "OTHER"

Send = Callable[[AsyncAttachment, AttachedMemory, TransferOutcome], Awaitable[bool]]
"""Makes the call of a transfer and fills the outcome in; returns whether its tokens were moved.

A partial load is reported already.
"""


class ReadyEvent(NamedTuple):
    """An event of the device and its handle. The event must live until the depot has waited for it."""

    event: Any
    handle: bytes


class CommandRunner:
    """The running transfers of one worker. While `connection` is None, transfers fail."""

    def __init__(self, config: ConnectorConfig, replica: int, results: WorkerResults) -> None:
        self.connection: DepotConnection | None = None
        self._config = config
        self._replica = replica
        self._results = results
        self._tasks = BackgroundTasks()
        self._store_slots = asyncio.Semaphore(MAX_STORES)
        self._logged_reasons: set[str] = set()

    def begin_load(self, command: LoadCommand, event: ReadyEvent) -> None:
        """Begin a load."""
        self._tasks.start(self._load(command, event))

    def begin_store(self, command: StoreCommand, event: ReadyEvent) -> None:
        """Begin a store, or let it wait for one of `MAX_STORES` slots."""
        self._tasks.start(self._store(command, event))

    async def close(self) -> None:
        """Cancel all transfers. They become uncertain; the worker's next attachment shows that they are done.

        A task that is cancelled before its first step would report nothing. That can't happen: the loop runs what the
        engine's thread gives it in order, so that all transfers have begun.
        """
        await self._tasks.cancel()

    async def _load(self, command: LoadCommand, event: ReadyEvent) -> None:
        """Load chunks. A load that ends early is a partial one, if it may be and has loaded anything."""

        async def send(attachment: AsyncAttachment, memory: AttachedMemory, outcome: TransferOutcome) -> bool:
            try:
                response = await attachment.retrieve(
                    command.session_id,
                    command.leases[self._replica],
                    memory.block_tables(command.tables),
                    skip_tokens=command.skip_tokens,
                    ready_event=event.handle,
                    accept_partial=command.may_be_partial,
                    timeout_seconds=self._config.retrieve_timeout_seconds,
                )
            except (ChunkCorrupt, ChunkLost) as error:
                if not command.may_be_partial:
                    raise
                num_valid, reason, why = error.first_bad_token, error.reason, str(error)  # the depot is an older one
            else:
                num_valid, why = command.skip_tokens + response.retrieved_tokens, response.miss.detail
                reason = _name(MissReason, response.miss.reason) if response.HasField("miss") else SHORT_ANSWER
                outcome.num_bytes = response.retrieved_bytes
            if num_valid == command.num_tokens:
                return True
            outcome.reason = reason
            is_partial = command.may_be_partial and command.skip_tokens < num_valid < command.num_tokens
            if is_partial:
                self._results.mark_partial(command.transfer_id, num_valid, command.blocks_from(num_valid))
            end = f"ended after {num_valid} of {command.num_tokens} tokens"
            self._log(f"{'partial ' * is_partial}{reason}", command, end, why)
            return is_partial

        succeeded = False
        try:
            if command.leases:
                succeeded = await self._transfer(command, send)
            else:
                self._refuse(command, LEASE_GIVEN_BACK)
        finally:
            self._results.end_load(command.request_id, failed=not succeeded)

    async def _store(self, command: StoreCommand, event: ReadyEvent) -> None:
        """Store chunks. The wait for a slot is part of the store's timeout."""

        async def send(attachment: AsyncAttachment, memory: AttachedMemory, outcome: TransferOutcome) -> bool:
            response = await attachment.store(
                command.session_id,
                command.prefix,
                memory.block_tables(command.tables),
                start_token=command.start_token,
                ready_event=event.handle,
                will_continue=command.will_continue,
                timeout_seconds=left_seconds,
            )
            outcome.num_bytes = response.stored_bytes
            outcome.stored_tokens, outcome.resident_tokens = response.stored_tokens, response.resident_tokens
            if response.refused_tokens:
                outcome.refused_tokens = response.refused_tokens
                outcome.reason = _name(RefusalReason, response.refusal.reason)
            return not response.refused_tokens

        deadline = time.monotonic() + self._config.store_timeout_seconds
        is_sent = False
        try:
            async with self._store_slots:
                if (left_seconds := deadline - time.monotonic()) > 0:
                    is_sent = True
                    await self._transfer(command, send)
        finally:
            if not is_sent:
                self._refuse(command, NO_SLOT_IN_TIME)

    async def _transfer(self, command: TransferCommand, send: Send) -> bool:
        """Send a transfer and report what became of it; return whether it has not failed."""
        traceparent.set(command.traceparent)  # a context variable of this task only
        connection = self.connection
        attachment = connection.attachment if connection is not None else None
        if connection is None or attachment is None:
            self._refuse(command, NOT_ATTACHED)
            return False
        succeeded = is_done = False
        outcome, start = TransferOutcome(), time.monotonic()
        try:
            succeeded = await send(attachment, connection.memory, outcome)
            is_done = True
        except DepotError as error:
            is_done = is_answer(error)
            outcome.reason = error.reason
            self._log(error.reason, command, "failed", str(error))
        finally:
            outcome.seconds = time.monotonic() - start
            outcome.reason = outcome.reason or ("" if succeeded else CANCELLED)
            self._results.record(command.transfer_id, outcome)
            if not succeeded:
                self._results.mark_failed(command.transfer_id)
            if is_done:
                self._results.mark_done([command.transfer_id])
            else:
                connection.mark_uncertain(command.transfer_id)
        return succeeded

    def _refuse(self, command: TransferCommand, reason: str) -> None:
        """Report a transfer that was not sent."""
        self._results.record(command.transfer_id, TransferOutcome(reason=reason))
        self._results.mark_failed(command.transfer_id)
        self._results.mark_done([command.transfer_id])

    def _log(self, reason: str, command: TransferCommand, outcome: str, why: str) -> None:
        if reason not in self._logged_reasons:  # once for each reason: under load there would be thousands
            self._logged_reasons.add(reason)
            kind = "load" if isinstance(command, LoadCommand) else "store"
            logger.warning("the %s of request %s %s: %s", kind, command.request_id, outcome, why)


def is_answer(error: DepotError) -> bool:
    """Return whether the depot itself ended the call. It then does not touch the call's blocks again."""
    return error.reason not in (error.code.name, "UNREACHABLE")


def _name(reasons: Any, value: int) -> str:
    """Return a reason of the depot without its enum's prefix. A newer depot may have others than are known here."""
    try:
        return str(reasons.Name(value)).partition("_REASON_")[2]
    except ValueError:
        return OTHER
