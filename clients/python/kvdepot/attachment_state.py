"""The state of one rank's attachment: the depot's acknowledgement, and whether the stream lives."""

from __future__ import annotations

import grpc

from kvdepot.errors import DepotError, attachment_closed
from kvdepot.inline import PieceOrder
from kvdepot.rpc import too_late
from kvdepot.v1 import cache_pb2

DETACH_SECONDS = 2.0  # that `close` waits for the depot's answer


class AttachmentState:
    """The common part of `AsyncAttachment` and `Attachment`."""

    def __init__(self, request: cache_pb2.AttachInstanceRequest) -> None:
        self.instance_id = request.instance_id
        self.rank = request.rank
        self.block_sizes = tuple(group.block_size for group in request.groups)
        """Tokens per block of each group."""
        self.chunk_size = 0
        """Tokens per chunk; a `start_token` is a multiple of it."""
        self.chunk_bytes = 0
        """Bytes of one chunk of this rank, over all its groups."""
        self.server_version = ""
        """Version of the depot."""
        self.transfer_backend = ""
        """The depot's backend that moves bytes for this rank; `inline` if it attached no memory."""
        self.depot_incarnation = ""
        """Text that changes with each start of the depot; empty for a depot of an older version."""
        self.adopted_chunks = 0
        """Chunks of this tenant that the depot took over from the process before it."""
        self.wants_token_ids = False
        """Whether the depot tells routers what it holds, and needs tokens beside block hashes for that."""
        self.other_block_hash_seeds: tuple[str, ...] = ()
        """Seeds of block hashes, other than this rank's, that engines with the same KV use. It never finds theirs."""
        self.draining = False
        """Whether the depot said that it is shutting down."""
        self.lost_reason: DepotError | None = None
        """Why the stream ended."""
        self._is_acknowledged = False
        self._closed = False

    @property
    def lost(self) -> bool:
        """Whether the stream ended without `close`. The depot then holds nothing for this rank: attach again."""
        return self.lost_reason is not None

    def __repr__(self) -> str:
        state = "lost" if self.lost else "closed" if self._closed else "draining" if self.draining else "attached"
        return f"<{type(self).__name__} {self.instance_id}/{self.rank} {state}, chunks of {self.chunk_size} tokens>"

    def _take(self, response: cache_pb2.AttachInstanceResponse) -> None:
        """Note a message of the stream: the acknowledgement, or a notice."""
        if not self._is_acknowledged:
            self.chunk_size, self.chunk_bytes = response.chunk_size, response.chunk_bytes
            self.server_version, self.transfer_backend = response.server_version, response.transfer_backend
            self.depot_incarnation, self.adopted_chunks = response.depot_incarnation, response.adopted_chunks
            self.wants_token_ids = response.wants_token_ids
            self.other_block_hash_seeds = tuple(response.other_block_hash_seeds)
            self._is_acknowledged = True
        if response.notice == cache_pb2.NOTICE_DRAINING:
            self.draining = True

    def _require_open(self) -> None:
        """Check that the attachment was not closed.

        Raises: Closed.
        """
        if self._closed:
            raise attachment_closed(self.instance_id, self.rank)

    def _pieces_from(self, skip_tokens: int) -> PieceOrder:
        """Return the order in which an inline retrieve must bring its pieces."""
        first_chunk = skip_tokens // self.chunk_size if self.chunk_size else 0
        return PieceOrder(chunk_bytes=self.chunk_bytes, first_chunk=first_chunk)


def ended() -> DepotError:
    """Return the error for a stream that the depot ended with OK."""
    return DepotError(grpc.StatusCode.UNAVAILABLE, "ATTACHMENT_ENDED", "the depot ended the attachment")


def unacknowledged(address: str, timeout_seconds: float) -> DepotError:
    """Return the error for an acknowledgement that took too long."""
    return too_late("AttachInstance", address, timeout_seconds)
