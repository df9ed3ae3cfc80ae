"""ObservabilityService: takes block reports, shows events and sessions."""

from __future__ import annotations

import asyncio
from itertools import islice

import grpc
import numpy as np
from google.protobuf.struct_pb2 import Struct

from kvdepot.v1 import cache_pb2, observability_pb2, observability_pb2_grpc
from service.depot import Depot
from service.errors import ObservabilityDisabled, invalid
from service.servicers import decode, encode
from telemetry.attributes import attributes
from telemetry.bus import EventBus
from telemetry.events import EVENT_TYPES, BlockAllocation, BlocksAllocated, Event
from telemetry.subscribers.watch import Watcher

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1_000
SUMMARIES_A_TURN = 200  # a millisecond of the event loop's time


class ObservabilityServicer(observability_pb2_grpc.ObservabilityServiceServicer):
    """Serves schedulers that report, and people who watch. `bus` is None where observability is disabled."""

    def __init__(self, depot: Depot, bus: EventBus | None) -> None:
        self._depot = depot
        self._bus = bus

    async def ReportBlockAllocation(
        self, request: observability_pb2.ReportBlockAllocationRequest, context: object
    ) -> observability_pb2.ReportBlockAllocationResponse:
        decode.check_block_report(request)
        for session_id in {record.session_id for record in request.records}:
            self._depot.sessions.used(self._depot.session(request.instance_id, session_id, request.model_name))
        if self._bus is not None:
            self._bus.publish(
                BlocksAllocated(
                    instance_id=request.instance_id,
                    model_name=request.model_name,
                    block_size=request.block_size,
                    records=tuple(map(_allocation, request.records)),
                )
            )
        return observability_pb2.ReportBlockAllocationResponse()

    async def WatchEvents(  # type: ignore[override]  # sends with context.write, see Boundary
        self,
        request: observability_pb2.WatchEventsRequest,
        context: grpc.aio.ServicerContext[observability_pb2.WatchEventsRequest, observability_pb2.WatchEventsResponse],
    ) -> None:
        if self._bus is None:
            raise ObservabilityDisabled("the depot was started with --disable-observability")
        unknown = [name for name in request.event_types if name not in EVENT_TYPES]
        if unknown:
            raise invalid("event_types", f"{unknown} do not exist; there are {sorted(EVENT_TYPES)}")
        event_types = [EVENT_TYPES[name] for name in request.event_types]
        with Watcher(
            self._bus, event_types=event_types, instance_id=request.instance_id, session_id=request.session_id
        ) as watcher:
            # Headers now, so that a client knows from when on it sees everything.
            await context.send_initial_metadata(())
            async for event, num_lost in watcher:
                await context.write(
                    observability_pb2.WatchEventsResponse(event=_event(event), num_lost_events=num_lost)
                )

    async def ListSessions(
        self, request: observability_pb2.ListSessionsRequest, context: object
    ) -> observability_pb2.ListSessionsResponse:
        token = request.page_token  # the number of the last session on the page before
        if token and not (token.isascii() and token.isdecimal() and len(token) < 19):
            raise invalid("page_token", "is not from an answer of this RPC")
        if request.page_size > MAX_PAGE_SIZE:
            raise invalid("page_size", f"is more than {MAX_PAGE_SIZE}")
        page_size = request.page_size or DEFAULT_PAGE_SIZE
        sessions = self._depot.sessions.newest_first(request.instance_id, before=int(token) if token else None)
        page = list(islice(sessions, page_size + 1))
        summaries: list[cache_pb2.SessionSummary] = []
        for session in page[:page_size]:
            summaries.append(encode.session_summary(session, with_operations=False))
            if len(summaries) % SUMMARIES_A_TURN == 0:
                await asyncio.sleep(0)
        is_last = len(page) <= page_size
        return observability_pb2.ListSessionsResponse(
            sessions=summaries, next_page_token="" if is_last else str(page[page_size - 1].number)
        )

    async def GetSession(
        self, request: observability_pb2.GetSessionRequest, context: object
    ) -> observability_pb2.GetSessionResponse:
        session = self._depot.sessions.latest(*decode.session_ids(request))
        return observability_pb2.GetSessionResponse(session=encode.session_summary(session))


def _allocation(record: observability_pb2.BlockAllocationRecord) -> BlockAllocation:
    return BlockAllocation(
        session_id=record.session_id,
        block_ids=np.array(record.block_ids, dtype=np.uint32),
        token_ids=np.array(record.token_ids, dtype=np.uint32),
        reused_block_ids=np.array(record.reused_block_ids, dtype=np.uint32),
        resumed=record.resumed,
    )


def _event(event: Event) -> observability_pb2.Event:
    fields = attributes(event)
    operation_id = fields.pop("operation_id", "")
    struct = Struct()
    struct.update(fields)
    return observability_pb2.Event(
        type=type(event).__name__,
        time=encode.timestamp(event.time),
        instance_id=event.instance_id,
        session_id=event.session_id,
        operation_id=str(operation_id),
        attributes=struct,
    )
