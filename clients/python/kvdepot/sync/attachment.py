"""One rank's attachment, with calls that block."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

import grpc

from kvdepot import inline, requests
from kvdepot.attachment_state import DETACH_SECONDS, Attached, ended, unacknowledged
from kvdepot.errors import DepotError, depot_error
from kvdepot.pieces import Piece
from kvdepot.requests import BlockTables, LeaseLike, PrefixLike
from kvdepot.v1 import cache_pb2

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from kvdepot.sync.calls import Calls
    from kvdepot.sync.client import DepotClient

_logger = logging.getLogger(__name__)


class Attachment(Attached):
    """One rank that is attached; made by `DepotClient.attach`, ended by `close` or by leaving its ``with`` block.

    A daemon thread reads the stream, so that a depot that goes away is noticed while no call is made. Methods may be
    called from any thread.
    """

    def __init__(
        self,
        client: DepotClient,
        calls: Calls,
        siblings: set[Attachment],
        request: cache_pb2.AttachInstanceRequest,
        on_lost: Callable[[DepotError], None] | None,
        timeout_seconds: float,
    ) -> None:
        super().__init__(request.instance_id, request.rank)
        self._client = client
        self._calls = calls
        self._siblings = siblings
        self._on_lost = on_lost
        self._settled = threading.Event()  # acknowledged, or ended before that
        self._ended = threading.Event()
        self._stream = calls.cache.AttachInstance(
            request, metadata=calls.metadata()
        )  # no deadline: it lives as long as the engine
        siblings.add(self)
        threading.Thread(target=self._read, name=f"kvdepot-{request.instance_id}", daemon=True).start()
        try:
            self._wait_acknowledged(timeout_seconds)
        except BaseException:
            self.close()
            raise

    def lookup(
        self,
        session_id: str,
        prefix: PrefixLike,
        *,
        computed_tokens: int = 0,
        max_wait_seconds: float = 0.0,
        timeout_seconds: float | None = None,
    ) -> cache_pb2.LookupResponse:
        """Finds the longest prefix of whole chunks that every rank of the instance holds, and leases it."""
        return self._client.lookup(
            self.instance_id,
            session_id,
            prefix,
            computed_tokens=computed_tokens,
            max_wait_seconds=max_wait_seconds,
            timeout_seconds=timeout_seconds,
        )

    def store(
        self,
        session_id: str,
        prefix: PrefixLike,
        block_tables: BlockTables,
        *,
        start_token: int = 0,
        ready_event: bytes = b"",
        timeout_seconds: float | None = None,
    ) -> cache_pb2.StoreResponse:
        """Copies whole chunks of the prefix out of the engine's blocks; the blocks may be reused when it returns.

        ``block_tables`` cover the tokens from ``start_token`` (a multiple of `chunk_size`) on; where a group lacks
        blocks of the beginning, see `block_table`. The blocks are read after the ``ready_event`` (see
        `kvdepot.memory.cuda.ready_event`), if there is one.
        """
        request = requests.store(
            self.instance_id, self.rank, session_id, prefix, block_tables, start_token, ready_event
        )
        return self._calls.unary(self._calls.cache.Store, request, self._calls.timeout(timeout_seconds))

    def retrieve(
        self,
        session_id: str,
        lease: LeaseLike,
        block_tables: BlockTables,
        *,
        skip_tokens: int = 0,
        ready_event: bytes = b"",
        timeout_seconds: float | None = None,
    ) -> cache_pb2.RetrieveResponse:
        """Copies leased chunks into the engine's blocks; blocks below ``skip_tokens`` are not written.

        ``block_tables`` cover the leased prefix, or a shorter chunk-aligned part of it, from token 0. If this raises,
        the depot may write to the blocks until `release_lease` or `end_session` has returned. The
        blocks are written after the ``ready_event``, if there is one.
        """
        request = requests.retrieve(
            self.instance_id, self.rank, session_id, lease, block_tables, skip_tokens, ready_event
        )
        return self._calls.unary(self._calls.cache.Retrieve, request, self._calls.timeout(timeout_seconds))

    def release_lease(
        self, lease: LeaseLike, *, timeout_seconds: float | None = None
    ) -> cache_pb2.ReleaseLeaseResponse:
        """Gives a lease back before it expires; one that has ended already is no error."""
        return self._client.release_lease(lease, timeout_seconds=timeout_seconds)

    def store_inline(
        self,
        session_id: str,
        prefix: PrefixLike,
        data: Buffer | Iterable[Buffer],
        *,
        start_token: int = 0,
        timeout_seconds: float | None = None,
    ) -> cache_pb2.StoreInlineResponse:
        """Stores the canonical bytes of every whole chunk from ``start_token`` on: one buffer, or several in a row."""
        header = requests.store_inline_header(self.instance_id, self.rank, session_id, prefix, start_token)
        return self._calls.send(self._calls.store_inline, _messages(header, data), self._calls.timeout(timeout_seconds))

    def retrieve_inline(
        self, session_id: str, lease: LeaseLike, *, skip_tokens: int = 0, timeout_seconds: float | None = None
    ) -> Generator[Piece, None, None]:
        """The canonical bytes of leased chunks, in order, in pieces of at most 1 MiB.

        The bytes are right and complete only if the iterator ends without an exception. ``skip_tokens`` is a
        multiple of `chunk_size`.
        """
        request = requests.retrieve_inline(self.instance_id, self.rank, session_id, lease, skip_tokens)
        responses = self._calls.stream(self._calls.retrieve_inline, request, self._calls.timeout(timeout_seconds))
        return _in_order(responses, self._pieces_from(skip_tokens))

    def retrieve_inline_into(
        self,
        session_id: str,
        lease: LeaseLike,
        buffer: Buffer,
        *,
        skip_tokens: int = 0,
        timeout_seconds: float | None = None,
    ) -> None:
        """Fills a buffer with the canonical bytes of leased chunks; it must be exactly as large as they are.

        That is ``(matched_tokens - skip_tokens) // chunk_size * chunk_bytes``. If this raises, the content of the
        buffer is undefined.
        """
        filling = inline.Filling(buffer)
        pieces = self.retrieve_inline(session_id, lease, skip_tokens=skip_tokens, timeout_seconds=timeout_seconds)
        with closing(pieces):
            for piece in pieces:
                filling.accept(piece.data)
        filling.finish()

    def end_session(self, session_id: str, *, timeout_seconds: float | None = None) -> cache_pb2.EndSessionResponse:
        """Ends a session: stops its retrieves, ends its leases, answers with what it did."""
        return self._client.end_session(self.instance_id, session_id, timeout_seconds=timeout_seconds)

    def wait_lost(self, timeout_seconds: float | None = None) -> DepotError | None:
        """Waits until the attachment ends, and returns why; None if it was closed, or if the time is over."""
        self._ended.wait(timeout_seconds)
        return self.lost_reason

    def close(self) -> None:
        """Detaches the rank: the depot unmaps its memory. Idempotent; waits two seconds at most for the depot."""
        is_attached = self._acknowledgement is not None and not self._closed and not self._ended.is_set()
        self._closed = True
        if is_attached:
            request = cache_pb2.DetachInstanceRequest(instance_id=self.instance_id, rank=self.rank)
            with suppress(DepotError):  # the depot detaches the rank when the stream ends, too
                self._calls.unary(self._calls.cache.DetachInstance, request, DETACH_SECONDS)
        self._stream.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _wait_acknowledged(self, timeout_seconds: float) -> None:
        if not self._settled.wait(timeout_seconds):
            raise unacknowledged(timeout_seconds)
        if self._acknowledgement is None:
            raise self._lost_reason or ended()

    def _read(self) -> None:
        """The reader thread: takes what the stream brings, until it ends."""
        try:
            for response in self._stream:
                self._take(response)
                self._settled.set()
            reason = ended()
        except grpc.RpcError as error:
            reason = depot_error(error)
        if not self._closed:
            self._lost_reason = reason
        self._siblings.discard(self)
        self._settled.set()
        self._ended.set()
        if self.lost and self._acknowledgement is not None and self._on_lost is not None:
            try:
                self._on_lost(reason)
            except Exception:
                _logger.exception("on_lost failed")


def _messages(header: cache_pb2.StoreInlineRequest, data: Buffer | Iterable[Buffer]) -> Iterator[bytes]:
    yield header.SerializeToString()
    yield from inline.messages(data)


def _in_order(responses: Generator[Piece, None, None], order: inline.PieceOrder) -> Generator[Piece, None, None]:
    with closing(responses):
        for piece in responses:
            order.accept(piece)
            yield piece
    order.finish()
