"""Carries out a worker's commands, on the event loop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, NamedTuple, TypeVar

from kvdepot.aio.attachment import AsyncAttachment
from kvdepot.connector.commands import LoadCommand, StoreCommand, TransferCommand, TransferOutcome
from kvdepot.connector.config import ConnectorConfig
from kvdepot.connector.depot_connection import DepotConnection
from kvdepot.connector.event_loop import BackgroundTasks
from kvdepot.connector.transfer_ends import TransferEnds
from kvdepot.connector.worker_results import WorkerResults
from kvdepot.errors import ChunkCorrupt, ChunkLost, DepotError
from kvdepot.rpc import traceparent
from kvdepot.v1.cache_pb2 import BlockTable, MissReason, RefusalReason

logger = logging.getLogger(__name__)

Command = TypeVar("Command", bound=TransferCommand)

MAX_STORES = 8

# Reasons of our own, beside those of the depot.
NOT_ATTACHED = "NOT_ATTACHED"
LEASE_GIVEN_BACK = "LEASE_GIVEN_BACK"
NO_SLOT_IN_TIME = "NO_SLOT_IN_TIME"
SHORT_ANSWER = "SHORT_ANSWER"
CANCELLED = "CANCELLED"
OTHER = "OTHER"


class ReadyEvent(NamedTuple):
    """An event of the device and its handle. The event must live until the depot has waited for it."""

    event: Any
    handle: bytes


@dataclass(slots=True)
class _Part:
    """The part of a transfer that goes over one connection.

    A load has loaded the tokens before `end_token`. `why` says why these are not all.
    """

    connection: DepotConnection
    attachment: AsyncAttachment
    is_sent: bool = False
    outcome: TransferOutcome = field(default_factory=TransferOutcome)
    end_token: int = 0
    why: str = ""


Send = Callable[[_Part, Sequence[BlockTable]], Awaitable[None]]
"""Makes the call of a part, for these blocks, and fills in all but its connection."""


class CommandRunner:
    """The running transfers of one worker. While there are no `connections`, transfers fail.

    There is a connection for each shard of the worker's heads. A transfer goes over all of them at once. Its blocks
    have the tokens that all shards have moved, and it is done when all shards are certainly done with them.
    """

    def __init__(self, config: ConnectorConfig, replica: int, results: WorkerResults) -> None:
        self.connections: tuple[DepotConnection, ...] = ()
        self.ends = TransferEnds(results.mark_done)
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

        async def send(part: _Part, tables: Sequence[BlockTable]) -> None:
            try:
                response = await part.attachment.retrieve(
                    command.session_id,
                    command.leases[self._replica],
                    tables,
                    skip_tokens=command.skip_tokens,
                    ready_event=event.handle,
                    accept_partial=command.may_be_partial,
                    timeout_seconds=self._config.retrieve_timeout_seconds,
                )
            except (ChunkCorrupt, ChunkLost) as error:
                if not command.may_be_partial:
                    raise
                part.end_token, reason, part.why = error.first_bad_token, error.reason, str(error)  # an older depot
            else:
                part.end_token, part.why = command.skip_tokens + response.retrieved_tokens, response.miss.detail
                reason = _name(MissReason, response.miss.reason) if response.HasField("miss") else SHORT_ANSWER
                part.outcome.num_bytes = response.retrieved_bytes
            if part.end_token != command.num_tokens:
                part.outcome.reason = reason

        succeeded = False
        try:
            if command.leases:
                succeeded = await self._transfer(command, send, self._conclude_load)
            else:
                self._refuse(command, LEASE_GIVEN_BACK)
        finally:
            self._results.end_load(command.request_id, failed=not succeeded)

    def _conclude_load(self, command: LoadCommand, parts: Sequence[_Part]) -> bool:
        """Return whether a load has not failed, given that the depot has answered. Report a partial one.

        An answer of more tokens than there are is as wrong as one of fewer.
        """
        short = [part for part in parts if part.end_token != command.num_tokens]
        if not short:
            return True
        worst = min(short, key=lambda part: part.end_token)
        is_partial = command.may_be_partial and all(
            command.skip_tokens < part.end_token <= command.num_tokens for part in parts
        )
        if is_partial:
            self._results.mark_partial(command.transfer_id, worst.end_token, command.blocks_from(worst.end_token))
        end = f"ended after {worst.end_token} of {command.num_tokens} tokens"
        self._log(f"{'partial ' * is_partial}{worst.outcome.reason}", command, end, worst.why)
        return is_partial

    async def _store(self, command: StoreCommand, event: ReadyEvent) -> None:
        """Store chunks. The wait for a slot is part of the store's timeout."""

        async def send(part: _Part, tables: Sequence[BlockTable]) -> None:
            response = await part.attachment.store(
                command.session_id,
                prefix,
                tables,
                start_token=command.start_token,
                ready_event=event.handle,
                will_continue=command.will_continue,
                timeout_seconds=left_seconds,
            )
            part.outcome.num_bytes = response.stored_bytes
            part.outcome.stored_tokens, part.outcome.resident_tokens = response.stored_tokens, response.resident_tokens
            if response.refused_tokens:
                part.outcome.refused_tokens = response.refused_tokens
                part.outcome.reason = _name(RefusalReason, response.refusal.reason)

        deadline = time.monotonic() + self._config.store_timeout_seconds
        is_sent = False
        try:
            async with self._store_slots:
                if (left_seconds := deadline - time.monotonic()) > 0:
                    is_sent, prefix = True, command.prefix
                    await self._transfer(command, send, _conclude_store)
        finally:
            if not is_sent:
                self._refuse(command, NO_SLOT_IN_TIME)

    async def _transfer(
        self, command: Command, send: Send, conclude: Callable[[Command, Sequence[_Part]], bool]
    ) -> bool:
        """Send a transfer and report what became of it; return whether it has not failed.

        `conclude` says so of a transfer whose parts were all answered.
        """
        traceparent.set(command.traceparent)  # a context variable of this task and of those that it starts
        parts = [_Part(each, attachment) for each in self.connections if (attachment := each.attachment) is not None]
        if not parts or len(parts) < len(self.connections):
            self._refuse(command, NOT_ATTACHED)
            return False
        self.ends.begin(command.transfer_id, len(parts) + 1)  # the last one is for this task itself
        succeeded, start = False, time.monotonic()
        try:
            tables = parts[0].connection.memory.block_tables(command.tables)  # the same for all shards
            async with asyncio.TaskGroup() as sending:
                answers = [sending.create_task(self._send(command, part, tables, send)) for part in parts]
            succeeded = all(answer.result() for answer in answers) and conclude(command, parts)
        finally:
            outcome = reduce(TransferOutcome.aggregate, (part.outcome for part in parts))
            outcome.seconds = time.monotonic() - start
            outcome.reason = outcome.reason or ("" if succeeded else CANCELLED)
            self._results.record(command.transfer_id, outcome)
            if not succeeded:
                self._results.mark_failed(command.transfer_id)
            self.ends.end([command.transfer_id] * (1 + sum(not part.is_sent for part in parts)))
        return succeeded

    async def _send(self, command: TransferCommand, part: _Part, tables: Sequence[BlockTable], send: Send) -> bool:
        """Send a part of a transfer; return whether the depot has answered it without an error."""
        succeeded, is_done, part.is_sent = False, False, True
        try:
            await send(part, tables)
            succeeded = is_done = True
        except DepotError as error:
            is_done = is_answer(error)
            part.outcome.reason = error.reason
            self._log(error.reason, command, "failed", str(error))
        finally:
            if is_done:
                self.ends.end([command.transfer_id])
            else:
                part.connection.mark_uncertain(command.transfer_id)
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


def _conclude_store(command: StoreCommand, parts: Sequence[_Part]) -> bool:
    """Return whether all shards have all tokens of a store that the depot has answered."""
    return not any(part.outcome.refused_tokens for part in parts)


def is_answer(error: DepotError) -> bool:
    """Return whether the depot itself ended the call. It then does not touch the call's blocks again."""
    return error.reason not in (error.code.name, "UNREACHABLE")


def _name(reasons: Any, value: int) -> str:
    """Return a reason of the depot without its enum's prefix. A newer depot may have others than are known here."""
    try:
        return str(reasons.Name(value)).partition("_REASON_")[2]
    except ValueError:
        return OTHER
