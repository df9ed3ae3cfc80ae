"""A depot that speaks the contract and is controlled by a test."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.any_pb2 import Any as PackedAny
from google.rpc import error_details_pb2, status_pb2

from kvdepot.v1 import admin_pb2, cache_pb2, observability_pb2
from kvdepot.v1.admin_pb2_grpc import AdminServiceServicer, add_AdminServiceServicer_to_server
from kvdepot.v1.cache_pb2_grpc import CacheServiceServicer, add_CacheServiceServicer_to_server
from kvdepot.v1.observability_pb2_grpc import ObservabilityServiceServicer, add_ObservabilityServiceServicer_to_server

CHUNK_SIZE = 8
CHUNK_BYTES = (1 << 20) + 100  # a chunk takes two pieces

Failure = Callable[[grpc.ServicerContext], None]


def failure(
    code: grpc.StatusCode,
    reason: str,
    message: str = "",
    *,
    violations: tuple[tuple[str, str], ...] = (),
    retry_after: tuple[int, int] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Failure:
    """Return a failure that aborts an RPC as the depot does."""
    metadata = {"key": "value"} if metadata is None else metadata
    details = [_packed(error_details_pb2.ErrorInfo(reason=reason, domain="kvdepot", metadata=metadata))]
    if violations:
        bad = error_details_pb2.BadRequest()
        for field, description in violations:
            bad.field_violations.add(field=field, description=description)
        details.append(_packed(bad))
    if retry_after is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.seconds, retry.retry_delay.nanos = retry_after
        details.append(_packed(retry))
    status = status_pb2.Status(code=code.value[0], message=message, details=details)
    return lambda context: _abort(context, code, message, status.SerializeToString())


def bare_failure(code: grpc.StatusCode, message: str = "", details: bytes | None = None) -> Failure:
    """Return a failure that aborts an RPC as another server does: without details, or with others."""
    return lambda context: _abort(context, code, message, details)


def _abort(context: grpc.ServicerContext, code: grpc.StatusCode, message: str, details: bytes | None) -> None:
    if details is not None:
        context.set_trailing_metadata((("grpc-status-details-bin", details),))
    context.abort(code, message)


def _packed(message: Any) -> PackedAny:
    packed = PackedAny()
    packed.Pack(message)
    return packed


class FakeDepot(CacheServiceServicer, ObservabilityServiceServicer, AdminServiceServicer):
    """Answers every RPC, records the requests, and fails or hangs as `failures` and `hanging` say.

    ``requests`` holds pairs of RPC name and request. ``deadlines`` has the seconds that each RPC had left. ``answered``
    has the RPCs that hung until a test let them go on.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, Any]] = []
        self.deadlines: dict[str, float | None] = {}
        self.failures: dict[str, Failure] = {}
        self.hanging: set[str] = set()
        self.answered: list[str] = []
        self.inline_pieces: list[cache_pb2.RetrieveInlineResponse] = []
        self.inline_failure: Failure | None = None
        self.store_inline_reads = 1 << 30
        self.found = cache_pb2.LookupResponse(matched_tokens=16, lease=cache_pb2.Lease(lease_id="lease-1"))
        self.retrieved = cache_pb2.RetrieveResponse(retrieved_tokens=16)
        self.next_page_token = "next"
        self.attached = threading.Event()
        self.detached = threading.Event()
        self.reading = threading.Event()
        self.ended = threading.Event()
        self._commands: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._server: grpc.Server | None = None
        self.address = ""
        self.other_block_hash_seeds: list[str] = []

    def start(self, address: str = "127.0.0.1:0") -> None:
        self._server = grpc.server(ThreadPoolExecutor(16))
        add_CacheServiceServicer_to_server(self, self._server)
        add_ObservabilityServiceServicer_to_server(self, self._server)
        add_AdminServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(address)
        self.address = address.replace(":0", f":{port}")
        self._server.start()

    def stop(self) -> None:
        if self._server is not None:
            stopping = self._server.stop(None)  # first: so that streams are cut, not ended
            self._stopped.set()
            stopping.wait()

    def notify(self, notice: cache_pb2.Notice.ValueType) -> None:
        """Send a notice on the attachment's stream."""
        self._commands.put(cache_pb2.AttachInstanceResponse(notice=notice))

    def end_attachment(self, how: Failure | None = None) -> None:
        """End the attachment's stream: with OK, or with a failure."""
        self._commands.put(how or _end)

    def AttachInstance(self, request: Any, context: Any) -> Iterator[cache_pb2.AttachInstanceResponse]:
        _at_the_end(context, self.detached)
        self._enter("AttachInstance", request, context)
        yield cache_pb2.AttachInstanceResponse(
            chunk_size=CHUNK_SIZE,
            chunk_bytes=CHUNK_BYTES,
            server_version="1.2.3",
            transfer_backend="host",
            notice=cache_pb2.NOTICE_ATTACHED,
            depot_incarnation="first start",
            adopted_chunks=7,
            other_block_hash_seeds=self.other_block_hash_seeds,
        )
        self.attached.set()
        while context.is_active() and not self._stopped.is_set():
            try:
                command = self._commands.get(timeout=0.02)
            except queue.Empty:
                continue
            if command is _end:
                return
            if callable(command):
                command(context)
            yield command

    def DetachInstance(self, request: Any, context: Any) -> cache_pb2.DetachInstanceResponse:
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "an older depot has no such RPC")
        raise AssertionError  # abort raises

    def Lookup(self, request: Any, context: Any) -> cache_pb2.LookupResponse:
        self._enter("Lookup", request, context)
        return self.found

    def Store(self, request: Any, context: Any) -> cache_pb2.StoreResponse:
        self._enter("Store", request, context)
        return cache_pb2.StoreResponse(stored_tokens=16)

    def Retrieve(self, request: Any, context: Any) -> cache_pb2.RetrieveResponse:
        self._enter("Retrieve", request, context)
        return self.retrieved

    def ReleaseLease(self, request: Any, context: Any) -> cache_pb2.ReleaseLeaseResponse:
        self._enter("ReleaseLease", request, context)
        return cache_pb2.ReleaseLeaseResponse()

    def StoreInline(self, request_iterator: Any, context: Any) -> cache_pb2.StoreInlineResponse:
        """Answer, or fail, after ``store_inline_reads`` messages."""
        _at_the_end(context, self.ended)
        self.reading.set()
        stored_bytes, messages = 0, []
        for _, message in zip(range(self.store_inline_reads), request_iterator, strict=False):
            messages.append(message)
            stored_bytes += len(message.data)
        self._enter("StoreInline", messages, context)
        return cache_pb2.StoreInlineResponse(stored_bytes=stored_bytes)

    def RetrieveInline(self, request: Any, context: Any) -> Iterator[cache_pb2.RetrieveInlineResponse]:
        _at_the_end(context, self.ended)
        self._enter("RetrieveInline", request, context)
        yield from self.inline_pieces
        if self.inline_failure is not None:
            self.inline_failure(context)

    def EndSession(self, request: Any, context: Any) -> cache_pb2.EndSessionResponse:
        self._enter("EndSession", request, context)
        return cache_pb2.EndSessionResponse(summary=cache_pb2.SessionSummary(session_id=request.session_id))

    def PinPrefix(self, request: Any, context: Any) -> cache_pb2.PinPrefixResponse:
        self._enter("PinPrefix", request, context)
        return cache_pb2.PinPrefixResponse(pin=cache_pb2.Pin(pin_id="pin-1"))

    def UnpinPrefix(self, request: Any, context: Any) -> cache_pb2.UnpinPrefixResponse:
        self._enter("UnpinPrefix", request, context)
        return cache_pb2.UnpinPrefixResponse()

    def ListPins(self, request: Any, context: Any) -> cache_pb2.ListPinsResponse:
        self._enter("ListPins", request, context)
        return cache_pb2.ListPinsResponse(next_page_token=self.next_page_token)

    def Prefetch(self, request: Any, context: Any) -> cache_pb2.PrefetchResponse:
        self._enter("Prefetch", request, context)
        return cache_pb2.PrefetchResponse()

    def ReportBlockAllocation(self, request: Any, context: Any) -> observability_pb2.ReportBlockAllocationResponse:
        self._enter("ReportBlockAllocation", request, context)
        return observability_pb2.ReportBlockAllocationResponse()

    def WatchEvents(self, request: Any, context: Any) -> Iterator[observability_pb2.WatchEventsResponse]:
        _at_the_end(context, self.ended)
        self._enter("WatchEvents", request, context)
        while context.is_active() and not self._stopped.is_set():
            yield observability_pb2.WatchEventsResponse(event=observability_pb2.Event(type="StoreFinished"))

    def ListSessions(self, request: Any, context: Any) -> observability_pb2.ListSessionsResponse:
        self._enter("ListSessions", request, context)
        return observability_pb2.ListSessionsResponse(next_page_token=self.next_page_token)

    def GetSession(self, request: Any, context: Any) -> observability_pb2.GetSessionResponse:
        self._enter("GetSession", request, context)
        return observability_pb2.GetSessionResponse()

    def ExplainPrefix(self, request: Any, context: Any) -> observability_pb2.ExplainPrefixResponse:
        self._enter("ExplainPrefix", request, context)
        return observability_pb2.ExplainPrefixResponse()

    def GetActivity(self, request: Any, context: Any) -> observability_pb2.GetActivityResponse:
        self._enter("GetActivity", request, context)
        return observability_pb2.GetActivityResponse()

    def GetStatus(self, request: Any, context: Any) -> admin_pb2.GetStatusResponse:
        self._enter("GetStatus", request, context)
        return admin_pb2.GetStatusResponse(version="1.2.3")

    def ListInstances(self, request: Any, context: Any) -> admin_pb2.ListInstancesResponse:
        self._enter("ListInstances", request, context)
        return admin_pb2.ListInstancesResponse()

    def ClearCache(self, request: Any, context: Any) -> admin_pb2.ClearCacheResponse:
        self._enter("ClearCache", request, context)
        return admin_pb2.ClearCacheResponse()

    def GetHitCurve(self, request: Any, context: Any) -> admin_pb2.GetHitCurveResponse:
        self._enter("GetHitCurve", request, context)
        return admin_pb2.GetHitCurveResponse()

    def SetLogLevel(self, request: Any, context: Any) -> admin_pb2.SetLogLevelResponse:
        self._enter("SetLogLevel", request, context)
        return admin_pb2.SetLogLevelResponse()

    def last(self, rpc: str) -> Any:
        """Return the latest request of an RPC."""
        return [request for name, request in self.requests if name == rpc][-1]

    def _enter(self, rpc: str, request: Any, context: Any) -> None:
        self.requests.append((rpc, request))
        remaining = context.time_remaining()
        self.deadlines[rpc] = remaining if remaining is not None and remaining < 1e8 else None
        if rpc in self.failures:
            self.failures[rpc](context)
        if rpc in self.hanging:
            while context.is_active() and rpc in self.hanging and not self._stopped.wait(0.02):
                pass
            if context.is_active():
                self.answered.append(rpc)


def _at_the_end(context: grpc.ServicerContext, event: threading.Event) -> None:
    """Set the event when the RPC ends, or at once if it has ended."""
    if not context.add_callback(event.set):
        event.set()


def _end(context: grpc.ServicerContext) -> None:
    """Mark the end of an attachment's stream."""
