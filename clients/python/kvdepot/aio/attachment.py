"""One rank's attachment, on an event loop."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Self

import grpc

from kvdepot import requests
from kvdepot.aio.calls import AsyncCalls, InlineData
from kvdepot.aio.tasks import Event, Reader
from kvdepot.attachment_state import DETACH_SECONDS, AttachmentState, ended, unacknowledged
from kvdepot.errors import DepotError, depot_error
from kvdepot.inline import PieceOrder, TargetBuffer
from kvdepot.requests import BlockTables, LeaseLike, PrefixLike
from kvdepot.v1 import cache_pb2
from kvdepot.wire import Piece

if TYPE_CHECKING:
    from typing_extensions import Buffer

_logger = logging.getLogger(__name__)


class AsyncAttachment(AttachmentState):
    """One rank that is attached; made by `AsyncDepotClient.attach`, ended by `close` or by leaving `async with`.

    A task reads the stream, so that the loss of the depot is noticed while no call is made. Methods are called on the
    event loop of the client.
    """

    def __init__(
        self,
        calls: AsyncCalls,
        attachments: set[AsyncAttachment],
        request: cache_pb2.AttachInstanceRequest,
        on_lost: Callable[[DepotError], None] | None,
    ) -> None:
        super().__init__(request.instance_id, request.rank)
        self._calls = calls
        self._attachments = attachments  # of the client; it leaves them when its stream ends
        self._on_lost = on_lost
        self._settled = Event()  # acknowledged, or ended before that
        self._ended = Event()
        self._stream = calls.cache.AttachInstance(request, metadata=calls.metadata())  # lives as long as the engine
        attachments.add(self)
        self._reader = Reader(self._read, f"kvdepot-{request.instance_id}")

    async def lookup(
        self,
        session_id: str,
        prefix: PrefixLike,
        *,
        computed_tokens: int = 0,
        max_wait_seconds: float = 0.0,
        timeout_seconds: float | None = None,
    ) -> cache_pb2.LookupResponse:
        """Find the longest prefix of whole chunks that every rank of the instance holds, and lease it.

        See `AsyncDepotClient.lookup`.
        """
        request = requests.lookup(self.instance_id, session_id, prefix, computed_tokens, max_wait_seconds)
        return await self._calls.unary(
            self._calls.cache.Lookup, request, timeout_seconds, added_seconds=max_wait_seconds
        )

    async def store(
        self,
        session_id: str,
        prefix: PrefixLike,
        block_tables: BlockTables,
        *,
        start_token: int = 0,
        ready_event: bytes = b"",
        timeout_seconds: float | None = None,
    ) -> cache_pb2.StoreResponse:
        """Copy whole chunks of the prefix out of the engine's blocks, which may be reused when this returns.

        `block_tables` cover the tokens from `start_token` on, which is a multiple of `chunk_size`. If a group lacks
        blocks of the beginning, see `block_table`. If there is a `ready_event`, the blocks are read after it: see
        `kvdepot.memory.cuda.ready_event`.
        """
        request = requests.store(
            self.instance_id, self.rank, session_id, prefix, block_tables, start_token, ready_event
        )
        return await self._calls.unary(self._calls.cache.Store, request, timeout_seconds)

    async def retrieve(
        self,
        session_id: str,
        lease: LeaseLike,
        block_tables: BlockTables,
        *,
        skip_tokens: int = 0,
        ready_event: bytes = b"",
        timeout_seconds: float | None = None,
    ) -> cache_pb2.RetrieveResponse:
        """Copy leased chunks into the engine's blocks. Blocks below `skip_tokens` are not written.

        `block_tables` cover the leased prefix, or a shorter chunk-aligned part of it, from token 0. The blocks are
        written after the `ready_event`, if there is one. If this raises or is cancelled, the depot may write to the
        blocks until `release_lease` or `end_session` has returned.
        """
        request = requests.retrieve(
            self.instance_id, self.rank, session_id, lease, block_tables, skip_tokens, ready_event
        )
        return await self._calls.unary(self._calls.cache.Retrieve, request, timeout_seconds)

    async def release_lease(
        self, lease: LeaseLike, *, timeout_seconds: float | None = None
    ) -> cache_pb2.ReleaseLeaseResponse:
        """End a lease before it expires. A lease that has ended already is no error."""
        request = cache_pb2.ReleaseLeaseRequest(lease_id=requests.lease_id_of(lease))
        return await self._calls.unary(self._calls.cache.ReleaseLease, request, timeout_seconds)

    async def store_inline(
        self,
        session_id: str,
        prefix: PrefixLike,
        data: InlineData,
        *,
        start_token: int = 0,
        timeout_seconds: float | None = None,
    ) -> cache_pb2.StoreInlineResponse:
        """Store the canonical bytes of every whole chunk from `start_token` on."""
        header = requests.store_inline_header(self.instance_id, self.rank, session_id, prefix, start_token)
        return await self._calls.store_inline(header, data, timeout_seconds)

    def retrieve_inline(
        self, session_id: str, lease: LeaseLike, *, skip_tokens: int = 0, timeout_seconds: float | None = None
    ) -> AsyncGenerator[Piece, None]:
        """Iterate over the canonical bytes of leased chunks, in order, in pieces of at most 1 MiB.

        The bytes are right and complete only if the iterator ends without an exception. `skip_tokens` is a
        multiple of `chunk_size`.
        """
        request = cache_pb2.RetrieveInlineRequest(
            instance_id=self.instance_id,
            rank=self.rank,
            session_id=session_id,
            lease_id=requests.lease_id_of(lease),
            skip_tokens=skip_tokens,
        )
        responses = self._calls.stream(self._calls.retrieve_inline, request, self._calls.timeout(timeout_seconds))
        return _in_order(responses, self._pieces_from(skip_tokens))

    async def retrieve_inline_into(
        self,
        session_id: str,
        lease: LeaseLike,
        buffer: Buffer,
        *,
        skip_tokens: int = 0,
        timeout_seconds: float | None = None,
    ) -> None:
        """Fill a buffer with the canonical bytes of leased chunks. The buffer must be exactly as large as they are.

        That is `(matched_tokens - skip_tokens) // chunk_size * chunk_bytes`. If this raises, the content of the
        buffer is undefined.
        """
        target = TargetBuffer(buffer)
        pieces = self.retrieve_inline(session_id, lease, skip_tokens=skip_tokens, timeout_seconds=timeout_seconds)
        async with aclosing(pieces):
            async for piece in pieces:
                target.append(piece.data)
        target.finish()

    async def end_session(
        self, session_id: str, *, timeout_seconds: float | None = None
    ) -> cache_pb2.EndSessionResponse:
        """End a session, its retrieves and its leases, and return what it did."""
        request = cache_pb2.EndSessionRequest(instance_id=self.instance_id, session_id=session_id)
        return await self._calls.unary(self._calls.cache.EndSession, request, timeout_seconds)

    async def wait_lost(self, timeout_seconds: float | None = None) -> DepotError | None:
        """Wait until the attachment ends, and return why. None: it was closed, or the time is over."""
        await self._ended.wait_for(timeout_seconds)
        return self.lost_reason

    async def close(self) -> None:
        """Detach the rank: the depot unmaps its memory. Wait two seconds at most for the depot. Idempotent."""
        is_attached = self._is_acknowledged and not self._closed and not self._ended.is_set()
        self._closed = True
        try:
            if is_attached:
                request = cache_pb2.DetachInstanceRequest(instance_id=self.instance_id, rank=self.rank)
                with suppress(DepotError):  # the end of the stream detaches the rank as well
                    await self._calls.unary(self._calls.cache.DetachInstance, request, DETACH_SECONDS)
        finally:
            self._stream.cancel()
        await self._reader.finish()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _wait_acknowledged(self, timeout_seconds: float) -> None:
        """Wait for the depot's acknowledgement.

        Raises: DepotError.
        """
        if not await self._settled.wait_for(timeout_seconds):
            raise unacknowledged(timeout_seconds)
        if not self._is_acknowledged:
            raise self.lost_reason or ended()

    async def _read(self) -> None:
        """Take the messages of the stream, until it ends."""
        reason = DepotError(grpc.StatusCode.CANCELLED, "CANCELLED", "the reader of the stream was cancelled")
        try:
            async for response in self._stream:
                self._take(response)
                self._settled.set()
            reason = ended()
        except grpc.RpcError as error:
            reason = depot_error(error)
        finally:
            self._end(reason)

    def _end(self, reason: DepotError) -> None:
        if not self._closed:
            self.lost_reason = reason
        self._attachments.discard(self)
        self._settled.set()
        self._ended.set()
        if self.lost and self._is_acknowledged and self._on_lost is not None:
            try:
                self._on_lost(reason)
            except Exception:
                _logger.exception("on_lost failed")


async def _in_order(responses: AsyncGenerator[Piece, None], order: PieceOrder) -> AsyncGenerator[Piece, None]:
    async with aclosing(responses):
        async for piece in responses:
            order.accept(piece)
            yield piece
    order.finish()
