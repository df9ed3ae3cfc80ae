# Generated from aio/session.py by `make docs`: edit that file.
"""One request of an engine, with blocking calls: its calls, and the end that it always has."""

from __future__ import annotations

import logging
from collections.abc import Generator
from functools import partial
from typing import TYPE_CHECKING, Self

from kvdepot.errors import ChunkCorrupt, ChunkLost, Closed, DepotError, invalid
from kvdepot.requests import BlockTables, PrefixLike, prefix_of
from kvdepot.session_tables import checked_count, num_prompt_tokens, tables_to_retrieve, tables_to_store
from kvdepot.sync.calls import InlineData
from kvdepot.sync.rank_calls import RankCalls
from kvdepot.sync.threads import to_the_end
from kvdepot.v1 import cache_pb2
from kvdepot.wire import Piece

if TYPE_CHECKING:
    from typing_extensions import Buffer

_logger = logging.getLogger(__name__)

# Of a retrieve that wrote no bytes, because the depot no longer has them, or never had all of them.
_MISSES = ("LEASE_EXPIRED", "LEASE_REVOKED", "BLOCK_ABSENT")
_ENDED_ALREADY = ("SESSION_NOT_FOUND", "INSTANCE_NOT_FOUND")


class Session:
    """One request of the engine; made by `Attachment.session`, ended by leaving `with`.

        with attachment.session(request_id) as session:
            found = session.lookup(token_ids)
            num_ready = session.retrieve(found, [block_ids])  # 0 after a miss
            ...  # prefill token_ids[num_ready:]
            session.store(token_ids, [block_ids], start_token=num_ready)

    Block tables are those of the whole request, from token 0 on: each call takes the blocks that it needs. When the
    block is left, the depot neither reads nor writes the engine's blocks for this session.

    A session is that of the whole instance. If its ranks are in several processes, only the scheduler's opens it and
    leaves it, after all ranks are done; the others call the methods of their attachments, with its `session_id`.
    """

    def __init__(self, attachment: RankCalls, session_id: str, *, will_continue: bool | None = None) -> None:
        if not session_id or not isinstance(session_id, str):
            raise invalid("session_id", f"is {session_id!r}, not the name of a request")
        self.session_id = session_id
        self.will_continue = will_continue
        """What its next calls say: whether the prompt is likely to come again soon with more tokens. None: nothing."""
        self.summary: cache_pb2.SessionSummary | None = None
        """What the session did, once it has ended. None: it made no call, or its attachment ended."""
        self.has_ended = False
        """Whether the session has ended, so that the depot neither reads nor writes blocks for it."""
        self._attachment = attachment

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.session_id!r} of {self._attachment!r}>"

    def lookup(
        self,
        prefix: PrefixLike,
        *,
        computed_tokens: int = 0,
        max_wait_seconds: float = 0.0,
        prefill_tokens_per_second: float | None = None,
        timeout_seconds: float | None = None,
    ) -> cache_pb2.LookupResponse:
        """Find the longest prefix of whole chunks that every rank holds, and lease it until the session ends.

        See `DepotClient.lookup`.
        """
        return self._attachment.lookup(
            self.session_id,
            prefix,
            computed_tokens=computed_tokens,
            max_wait_seconds=max_wait_seconds,
            prefill_tokens_per_second=prefill_tokens_per_second,
            will_continue=self.will_continue,
            timeout_seconds=timeout_seconds,
        )

    def store(
        self,
        prefix: PrefixLike,
        block_tables: BlockTables,
        *,
        start_token: int = 0,
        ready_event: bytes = b"",
        timeout_seconds: float | None = None,
    ) -> cache_pb2.StoreResponse:
        """Copy whole chunks of the prefix out of the engine's blocks, which may be reused when this returns.

        `block_tables` begin at token 0, and may be longer than the prefix. Chunks that end at `start_token` or before
        it are not stored.
        """
        prefix = prefix_of(prefix)
        chunk_size = self._attachment.chunk_size
        start_token = checked_count("start_token", start_token) // chunk_size * chunk_size
        tables = tables_to_store(block_tables, self._attachment.block_sizes, start_token, num_prompt_tokens(prefix))
        return self._attachment.store(
            self.session_id,
            prefix,
            tables,
            start_token=start_token,
            ready_event=ready_event,
            will_continue=self.will_continue,
            timeout_seconds=timeout_seconds,
        )

    def retrieve(
        self,
        found: cache_pb2.LookupResponse,
        block_tables: BlockTables,
        *,
        skip_tokens: int = 0,
        ready_event: bytes = b"",
        timeout_seconds: float | None = None,
    ) -> int:
        """Copy what a lookup of this session found into the engine's blocks, and return how many tokens are there.

        `block_tables` begin at token 0. They may be longer than the match, or shorter: whole chunks that all tables
        have blocks for are copied. After a miss this does nothing and returns `skip_tokens`. So it does if the lease
        has expired or was revoked, and if the depot lacks bytes of a block that a table names. If the depot finds that
        its bytes of some tokens are damaged, or if they do not come from a tier, this returns the first of these
        tokens, and a warning is logged.

        The blocks of tokens below `skip_tokens` are not written; the tokens count as there. If this raises or is
        cancelled, the lease is released, and the depot no longer writes to the blocks. If that fails, too, the error
        has a note: leave the blocks alone until the session or the attachment has ended.
        """
        if not self._has_more(found, skip_tokens):
            return skip_tokens
        num_tokens, tables = tables_to_retrieve(
            block_tables, self._attachment.block_sizes, self._attachment.chunk_size, found.matched_tokens
        )
        if num_tokens <= skip_tokens:
            return skip_tokens
        try:
            response = self._attachment.retrieve(
                self.session_id,
                found.lease,
                tables,
                skip_tokens=skip_tokens,
                ready_event=ready_event,
                accept_partial=True,
                timeout_seconds=timeout_seconds,
            )
        except BaseException as error:
            if isinstance(error, DepotError) and error.reason in _MISSES:
                _logger.info("session %s retrieves nothing: %s", self.session_id, error)
                return skip_tokens
            if isinstance(error, ChunkCorrupt | ChunkLost):  # of an older depot, and it no longer writes to the blocks
                return self._partial(max(skip_tokens, error.first_bad_token), num_tokens, str(error))
            to_the_end(partial(self._stop_writing, found.lease, error))
            raise
        num_valid = skip_tokens + response.retrieved_tokens  # older depots have no valid_tokens
        if num_valid < num_tokens:
            return self._partial(num_valid, num_tokens, response.miss.detail or "the depot did not say why")
        return num_tokens

    def store_inline(
        self,
        prefix: PrefixLike,
        data: InlineData,
        *,
        start_token: int = 0,
        timeout_seconds: float | None = None,
    ) -> cache_pb2.StoreInlineResponse:
        """Store the canonical bytes of every whole chunk from `start_token` on."""
        return self._attachment.store_inline(
            self.session_id,
            prefix,
            data,
            start_token=start_token,
            will_continue=self.will_continue,
            timeout_seconds=timeout_seconds,
        )

    def retrieve_inline(
        self, found: cache_pb2.LookupResponse, *, skip_tokens: int = 0, timeout_seconds: float | None = None
    ) -> Generator[Piece, None, None]:
        """Iterate over the canonical bytes of what a lookup of this session found; there are none after a miss.

        See `Attachment.retrieve_inline`.
        """
        if not self._has_more(found, skip_tokens):
            return _no_pieces()
        return self._attachment.retrieve_inline(
            self.session_id, found.lease, skip_tokens=skip_tokens, timeout_seconds=timeout_seconds
        )

    def retrieve_inline_into(
        self,
        found: cache_pb2.LookupResponse,
        buffer: Buffer,
        *,
        skip_tokens: int = 0,
        timeout_seconds: float | None = None,
    ) -> int:
        """Fill the beginning of a buffer with the canonical bytes of what a lookup found, and return their tokens.

        The buffer may be larger than they are. After a miss this does nothing and returns `skip_tokens`. If this
        raises, the content of the buffer is undefined.
        """
        if not self._has_more(found, skip_tokens):
            return skip_tokens
        num_chunks = (found.matched_tokens - skip_tokens) // self._attachment.chunk_size
        num_bytes = num_chunks * self._attachment.chunk_bytes
        view = memoryview(buffer)
        if view.nbytes < num_bytes:
            raise invalid("buffer", f"has {view.nbytes} bytes, and {num_chunks} chunks of the match have {num_bytes}")
        self._attachment.retrieve_inline_into(
            self.session_id,
            found.lease,
            view.cast("B")[:num_bytes],
            skip_tokens=skip_tokens,
            timeout_seconds=timeout_seconds,
        )
        return found.matched_tokens

    def _partial(self, num_valid: int, num_tokens: int, why: str) -> int:
        _logger.warning("session %s retrieves %d of %d tokens: %s", self.session_id, num_valid, num_tokens, why)
        return num_valid

    def _stop_writing(self, lease: cache_pb2.Lease, error: BaseException) -> None:
        try:
            self._attachment.release_lease(lease)
        except DepotError as failure:
            error.add_note(f"the depot may still write to the blocks of session {self.session_id!r}: {failure}")

    def _has_more(self, found: cache_pb2.LookupResponse, skip_tokens: int) -> bool:
        """Return whether a lookup found more than `skip_tokens`.

        Raises: InvalidArgument.
        """
        if not isinstance(found, cache_pb2.LookupResponse):
            raise invalid("found", f"is a {type(found).__name__}, not the answer of `lookup`")
        return found.HasField("lease") and found.matched_tokens > checked_count("skip_tokens", skip_tokens)

    def _end(self) -> None:
        """End the session, if it lives.

        Raises: DepotError.
        """
        try:
            self.summary = (self._attachment.end_session(self.session_id)).summary
        except Closed:
            pass  # the session ended with its attachment
        except DepotError as error:
            # No call was made, or the session was idle for too long, or the depot has ended the attachment.
            if error.reason not in _ENDED_ALREADY and not self._attachment.lost:
                raise
        self.has_ended = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """End the session. If that fails after an error of the block, the error gets a note.

        Raises: DepotError.
        """
        try:
            to_the_end(self._end)
        except DepotError as failure:
            if error is None:
                raise
            error.add_note(f"session {self.session_id!r} may not have ended: {failure}")


def _no_pieces() -> Generator[Piece, None, None]:
    return
    yield  # makes it a generator
