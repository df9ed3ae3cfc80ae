"""The state of one rank's attachment: the depot's acknowledgement, and whether the stream lives."""

from __future__ import annotations

import grpc

from kvdepot.errors import DepotError
from kvdepot.inline import PieceOrder
from kvdepot.v1 import cache_pb2

DETACH_SECONDS = 2.0  # that `close` waits for the depot's answer


class AttachmentState:
    """The common part of `AsyncAttachment` and `Attachment`."""

    def __init__(self, instance_id: str, rank: int) -> None:
        self.instance_id = instance_id
        self.rank = rank
        self._acknowledgement: cache_pb2.AttachInstanceResponse | None = None
        self._draining = False
        self._lost_reason: DepotError | None = None
        self._closed = False

    @property
    def chunk_size(self) -> int:
        """Tokens per chunk; a `start_token` is a multiple of it."""
        return self._acknowledged.chunk_size

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one chunk of this rank, over all its groups."""
        return self._acknowledged.chunk_bytes

    @property
    def server_version(self) -> str:
        """Version of the depot."""
        return self._acknowledged.server_version

    @property
    def transfer_backend(self) -> str:
        """The depot's backend that moves bytes for this rank; `inline` if it attached no memory."""
        return self._acknowledged.transfer_backend

    @property
    def draining(self) -> bool:
        """Whether the depot said that it is shutting down."""
        return self._draining

    @property
    def lost(self) -> bool:
        """Whether the stream ended without `close`. The depot then holds nothing for this rank: attach again."""
        return self._lost_reason is not None

    @property
    def lost_reason(self) -> DepotError | None:
        """Why the stream ended."""
        return self._lost_reason

    def __repr__(self) -> str:
        state = "lost" if self.lost else "closed" if self._closed else "draining" if self._draining else "attached"
        return f"<{type(self).__name__} {self.instance_id}/{self.rank} {state}, chunks of {self.chunk_size} tokens>"

    def _take(self, response: cache_pb2.AttachInstanceResponse) -> None:
        """Note a message of the stream: the acknowledgement, or a notice."""
        if self._acknowledgement is None:
            self._acknowledgement = response
        if response.notice == cache_pb2.NOTICE_DRAINING:
            self._draining = True

    def _pieces_from(self, skip_tokens: int) -> PieceOrder:
        """Return the order in which an inline retrieve must bring its pieces."""
        first_chunk = skip_tokens // self.chunk_size if self.chunk_size else 0
        return PieceOrder(chunk_bytes=self.chunk_bytes, first_chunk=first_chunk)

    @property
    def _acknowledged(self) -> cache_pb2.AttachInstanceResponse:
        return self._acknowledgement or cache_pb2.AttachInstanceResponse()


def ended() -> DepotError:
    """Return the error for a stream that the depot ended with OK."""
    return DepotError(grpc.StatusCode.UNAVAILABLE, "ATTACHMENT_ENDED", "the depot ended the attachment")


def unacknowledged(timeout_seconds: float) -> DepotError:
    """Return the error for an acknowledgement that took too long."""
    message = f"the depot did not acknowledge the attachment within {timeout_seconds:g} s"
    return DepotError(grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", message)
