# Generated from aio/attachment.py by `make docs`: edit that file.
"""One rank's attachment, with blocking calls."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Self

import grpc

from kvdepot.attachment_state import DETACH_SECONDS, ended, unacknowledged
from kvdepot.errors import DepotError, depot_error
from kvdepot.sync.calls import Calls
from kvdepot.sync.rank_calls import RankCalls
from kvdepot.sync.session import Session
from kvdepot.sync.threads import Event, Reader
from kvdepot.v1 import cache_pb2

_logger = logging.getLogger(__name__)


class Attachment(RankCalls):
    """One rank that is attached; made by `DepotClient.attach`, ended by `close` or by leaving `with`.

    A daemon thread reads the stream, so that the loss of the depot is noticed while no call is made. Methods may be
    called from any thread.
    """

    def __init__(
        self,
        calls: Calls,
        attachments: set[Attachment],
        request: cache_pb2.AttachInstanceRequest,
        on_lost: Callable[[DepotError], None] | None,
    ) -> None:
        super().__init__(calls, request)
        self._attachments = attachments  # of the client; it leaves them when its stream ends
        self._on_lost = on_lost
        self._settled = Event()  # acknowledged, or ended before that
        self._ended = Event()
        self._stream = calls.cache.AttachInstance(request, metadata=calls.metadata())  # lives as long as the engine
        attachments.add(self)
        self._reader = Reader(self._read, f"kvdepot-{request.instance_id}")

    def session(self, session_id: str, *, will_continue: bool | None = None) -> Session:
        """Return a session for one request: `with attachment.session(request_id) as session:`.

        Leaving the block always ends the session, also after an error or a cancellation. `will_continue` says that its
        prompt is likely to come again soon with more tokens, as those of chats and agents do.

        Raises: InvalidArgument, Closed.
        """
        self._require_open()
        return Session(self, session_id, will_continue=will_continue)

    def wait_lost(self, timeout_seconds: float | None = None) -> DepotError | None:
        """Wait until the attachment ends, and return why. None: it was closed, or the time is over."""
        self._ended.wait_for(timeout_seconds)
        return self.lost_reason

    def close(self) -> None:
        """Detach the rank: the depot unmaps its memory. Wait two seconds at most for the depot. Idempotent."""
        is_attached = self._is_acknowledged and not self._closed and not self._ended.is_set()
        self._closed = True
        try:
            if is_attached:
                request = cache_pb2.DetachInstanceRequest(instance_id=self.instance_id, rank=self.rank)
                with suppress(DepotError):  # the end of the stream detaches the rank as well
                    self._calls.unary(self._calls.cache.DetachInstance, request, DETACH_SECONDS)
        finally:
            self._stream.cancel()
        self._reader.finish()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _wait_acknowledged(self, timeout_seconds: float) -> None:
        """Wait for the depot's acknowledgement.

        Raises: DepotError.
        """
        if not self._settled.wait_for(timeout_seconds):
            raise unacknowledged(self._calls.address, timeout_seconds)
        if not self._is_acknowledged:
            raise self.lost_reason or ended()

    def _read(self) -> None:
        """Take the messages of the stream, until it ends."""
        reason = DepotError(grpc.StatusCode.CANCELLED, "CANCELLED", "the reader of the stream was cancelled")
        try:
            for response in self._stream:
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
