# Generated from aio/rank_calls.py by `make docs`: edit that file.
"""The calls of one attached rank, with blocking calls."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING

from kvdepot import requests
from kvdepot.attachment_state import AttachmentState
from kvdepot.inline import PieceOrder, TargetBuffer
from kvdepot.requests import BlockTables, LeaseLike, PrefixLike
from kvdepot.sync.calls import Calls, InlineData
from kvdepot.v1 import cache_pb2
from kvdepot.wire import Piece

if TYPE_CHECKING:
    from typing_extensions import Buffer


class RankCalls(AttachmentState):
    """The part of an `Attachment` that a session uses. Wrong arguments and a closed attachment raise at once."""

    def __init__(self, calls: Calls, request: cache_pb2.AttachInstanceRequest) -> None:
        super().__init__(request)
        self._calls = calls

    def lookup(
        self,
        session_id: str,
        prefix: PrefixLike,
        *,
        computed_tokens: int = 0,
        max_wait_seconds: float = 0.0,
        prefill_tokens_per_second: float | None = None,
        will_continue: bool | None = None,
        timeout_seconds: float | None = None,
    ) -> cache_pb2.LookupResponse:
        """Find the longest prefix of whole chunks that every rank of the instance holds, and lease it.

        See `DepotClient.lookup`.
        """
        self._require_open()
        request = requests.lookup(
            self.instance_id,
            session_id,
            prefix,
            computed_tokens,
            max_wait_seconds,
            prefill_tokens_per_second,
            will_continue,
        )
        return self._calls.unary(self._calls.cache.Lookup, request, timeout_seconds, added_seconds=max_wait_seconds)

    def store(
        self,
        session_id: str,
        prefix: PrefixLike,
        block_tables: BlockTables,
        *,
        start_token: int = 0,
        ready_event: bytes = b"",
        will_continue: bool | None = None,
        timeout_seconds: float | None = None,
    ) -> cache_pb2.StoreResponse:
        """Copy whole chunks of the prefix out of the engine's blocks, which may be reused when this returns.

        `block_tables` cover the tokens from `start_token` on, which is a multiple of `chunk_size`. If a group lacks
        blocks of the beginning, see `block_table`. If there is a `ready_event`, the blocks are read after it: see
        `kvdepot.memory.cuda.ready_event`. `will_continue` is described at `DepotClient.lookup`.
        """
        self._require_open()
        request = requests.store(
            self.instance_id, self.rank, session_id, prefix, block_tables, start_token, ready_event, will_continue
        )
        return self._calls.unary(self._calls.cache.Store, request, timeout_seconds)

    def retrieve(
        self,
        session_id: str,
        lease: LeaseLike,
        block_tables: BlockTables,
        *,
        skip_tokens: int = 0,
        ready_event: bytes = b"",
        accept_partial: bool = False,
        timeout_seconds: float | None = None,
    ) -> cache_pb2.RetrieveResponse:
        """Copy leased chunks into the engine's blocks. Blocks below `skip_tokens` are not written.

        `block_tables` cover the leased prefix, or a shorter chunk-aligned part of it, from token 0. The blocks are
        written after the `ready_event`, if there is one. If this raises, the depot may write to the
        blocks until `release_lease` or `end_session` has returned.

        A chunk that is damaged raises `ChunkCorrupt`, and one that does not come from its tier raises `ChunkLost`.
        With `accept_partial` neither is raised. Read then `skip_tokens + retrieved_tokens` of the response: the blocks
        of so many tokens are right, and the engine computes the tokens behind them. A depot of an older version raises
        `ChunkCorrupt` nevertheless.
        """
        self._require_open()
        request = requests.retrieve(
            self.instance_id, self.rank, session_id, lease, block_tables, skip_tokens, ready_event, accept_partial
        )
        return self._calls.unary(self._calls.cache.Retrieve, request, timeout_seconds)

    def release_lease(
        self, lease: LeaseLike, *, timeout_seconds: float | None = None
    ) -> cache_pb2.ReleaseLeaseResponse:
        """End a lease before it expires. A lease that has ended already is no error."""
        self._require_open()
        request = requests.release_lease(lease)
        return self._calls.unary(self._calls.cache.ReleaseLease, request, timeout_seconds)

    def store_inline(
        self,
        session_id: str,
        prefix: PrefixLike,
        data: InlineData,
        *,
        start_token: int = 0,
        will_continue: bool | None = None,
        timeout_seconds: float | None = None,
    ) -> cache_pb2.StoreInlineResponse:
        """Store the canonical bytes of every whole chunk from `start_token` on."""
        self._require_open()
        header = requests.store_inline_header(
            self.instance_id, self.rank, session_id, prefix, start_token, will_continue
        )
        return self._calls.store_inline(header, data, timeout_seconds)

    def retrieve_inline(
        self, session_id: str, lease: LeaseLike, *, skip_tokens: int = 0, timeout_seconds: float | None = None
    ) -> Generator[Piece, None, None]:
        """Iterate over the canonical bytes of leased chunks, in order, in pieces of at most 1 MiB.

        The bytes are right and complete only if the iterator ends without an exception. `skip_tokens` is a
        multiple of `chunk_size`.
        """
        self._require_open()
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
        """Fill a buffer with the canonical bytes of leased chunks. The buffer must be exactly as large as they are.

        That is `(matched_tokens - skip_tokens) // chunk_size * chunk_bytes`. If this raises, the content of the
        buffer is undefined.
        """
        target = TargetBuffer(buffer)
        pieces = self.retrieve_inline(session_id, lease, skip_tokens=skip_tokens, timeout_seconds=timeout_seconds)
        with closing(pieces):
            for piece in pieces:
                target.append(piece.data)
        target.finish()

    def end_session(self, session_id: str, *, timeout_seconds: float | None = None) -> cache_pb2.EndSessionResponse:
        """End a session, its retrieves and its leases, and return what it did."""
        self._require_open()
        request = requests.end_session(self.instance_id, session_id)
        return self._calls.unary(self._calls.cache.EndSession, request, timeout_seconds)


def _in_order(responses: Generator[Piece, None, None], order: PieceOrder) -> Generator[Piece, None, None]:
    with closing(responses):
        for piece in responses:
            order.accept(piece)
            yield piece
    order.finish()
