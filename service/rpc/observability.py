"""ObservabilityService: takes block reports, sends events, shows sessions and activity, and explains misses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import islice

import grpc
import numpy as np
from google.protobuf.struct_pb2 import Struct

from kvdepot.v1 import cache_pb2, observability_pb2, observability_pb2_grpc
from service.access.credentials import caller, visible_tenant
from service.depot.depot import Depot
from service.depot.explain import explain_prefix
from service.depot.sessions import Session
from service.depot.tenant_depots import TenantDepots
from service.errors import InstanceNotFound, ObservabilityDisabled, SessionNotFound, invalid
from service.rpc import decode, encode, explain
from service.rpc.activity import RESOLUTIONS, activity_bucket, session_activity
from service.rpc.limits import MAX_EVENT_TYPES, MAX_RECORDS
from service.rpc.violations import MAX_ID_BYTES, Violations
from telemetry.activity.latency import BOUNDS_SECONDS
from telemetry.activity.subscriber import Activity
from telemetry.attributes import attributes
from telemetry.bus import EventBus
from telemetry.events import EVENT_TYPES, BlockAllocation, BlocksAllocated, Event
from telemetry.watch import Watcher

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1_000
SUMMARIES_AT_ONCE = 50
RECORDS_PER_EVENT = 256
MAX_BUSIEST_SESSIONS = 20
NUM_MEANT = 3  # types of events to suggest


class ObservabilityServicer(observability_pb2_grpc.ObservabilityServiceServicer):
    """The service for reports of blocks, events, sessions and activity.

    `bus` is None if observability is disabled, `activity` if no history is kept.
    """

    def __init__(self, depots: TenantDepots, bus: EventBus | None, activity: Activity | None = None) -> None:
        self._depots = depots
        self._bus = bus
        self._activity = activity

    async def ReportBlockAllocation(
        self, request: observability_pb2.ReportBlockAllocationRequest, context: object
    ) -> observability_pb2.ReportBlockAllocationResponse:
        _check_block_report(request)
        depot = self._depots.of_caller()
        pace = depot.slices.pace()
        for first in range(0, len(request.records), RECORDS_PER_EVENT):
            if pace.is_over():
                await pace.next()
            self._report(depot, request, request.records[first : first + RECORDS_PER_EVENT])
        return observability_pb2.ReportBlockAllocationResponse()

    def _report(
        self,
        depot: Depot,
        request: observability_pb2.ReportBlockAllocationRequest,
        records: Sequence[observability_pb2.BlockAllocationRecord],
    ) -> None:
        for session_id in {record.session_id for record in records}:
            depot.lifetimes.report_session(request.instance_id, session_id, request.model_name)
        if self._bus is not None:
            depot.bus.publish(
                BlocksAllocated(
                    instance_id=request.instance_id,
                    model_name=request.model_name,
                    block_size=request.block_size,
                    records=tuple(map(_allocation, records)),
                )
            )

    async def WatchEvents(  # type: ignore[override]  # sends with context.write, see Interceptor
        self,
        request: observability_pb2.WatchEventsRequest,
        context: grpc.aio.ServicerContext[observability_pb2.WatchEventsRequest, observability_pb2.WatchEventsResponse],
    ) -> None:
        if self._bus is None:
            raise ObservabilityDisabled("the depot was started with --disable-observability")
        if len(request.event_types) > MAX_EVENT_TYPES:
            raise invalid("event_types", f"has {len(request.event_types)}, more than {MAX_EVENT_TYPES}")
        unknown = [name for name in request.event_types if name not in EVENT_TYPES]
        if unknown:
            description = f"{unknown} do not exist; {_meant(unknown[0])}there are {sorted(EVENT_TYPES)}"
            raise invalid("event_types", description)
        event_types = [EVENT_TYPES[name] for name in request.event_types]
        with Watcher(
            self._bus,
            event_types=event_types,
            instance_id=request.instance_id,
            session_id=request.session_id,
            tenant=visible_tenant(request.tenant),
        ) as watcher:
            # Once a client has these headers, it misses no event.
            await context.send_initial_metadata(())
            async for event, num_lost in watcher:
                await context.write(
                    observability_pb2.WatchEventsResponse(event=_event(event), num_lost_events=num_lost)
                )

    async def ListSessions(
        self, request: observability_pb2.ListSessionsRequest, context: object
    ) -> observability_pb2.ListSessionsResponse:
        # The tenant (empty without tenants) and the number of the last session on the previous page.
        at_tenant, _, number = request.page_token.rpartition("/")
        if request.page_token and not (number.isascii() and number.isdecimal() and len(number) < 19):
            raise invalid("page_token", "is not from an answer of this RPC")
        if request.page_size > MAX_PAGE_SIZE:
            raise invalid("page_size", f"is more than {MAX_PAGE_SIZE}")
        page_size = request.page_size or DEFAULT_PAGE_SIZE
        sessions = self._sessions(request.instance_id, visible_tenant(request.tenant), at_tenant, int(number or 0))
        page = list(islice(sessions, page_size + 1))
        summaries: list[cache_pb2.SessionSummary] = []
        pace = self._depots.slices.pace()
        for tenant, session in page[:page_size]:
            summaries.append(encode.session_summary(session, tenant, with_operations=False))
            if len(summaries) % SUMMARIES_AT_ONCE == 0 and pace.is_over():
                await pace.next()
        is_last = len(page) <= page_size
        return observability_pb2.ListSessionsResponse(
            sessions=summaries, next_page_token="" if is_last else _page_token(*page[page_size - 1])
        )

    async def GetSession(
        self, request: observability_pb2.GetSessionRequest, context: object
    ) -> observability_pb2.GetSessionResponse:
        tenant = visible_tenant(request.tenant) if request.tenant else caller.get().tenant.name
        ids = decode.session_ids(request)
        depot = self._depots.named(tenant)
        if depot is None:
            raise SessionNotFound(*ids)
        return observability_pb2.GetSessionResponse(session=encode.session_summary(depot.sessions.latest(*ids), tenant))

    async def GetActivity(
        self, request: observability_pb2.GetActivityRequest, context: object
    ) -> observability_pb2.GetActivityResponse:
        tenant = visible_tenant(request.tenant)
        if self._activity is None:
            raise ObservabilityDisabled("the depot was started with --disable-activity or --disable-observability")
        resolution = RESOLUTIONS.get(request.resolution)
        if resolution is None:
            raise invalid("resolution", f"{request.resolution} is not one of {sorted(RESOLUTIONS)}")
        after = request.after.seconds + request.after.nanos / 1e9  # 0 if it is unset
        buckets: list[observability_pb2.ActivityBucket] = []
        pace = self._depots.slices.pace()
        for bucket in self._activity.read(tenant, resolution, after):
            buckets.append(activity_bucket(bucket))
            if pace.is_over():
                await pace.next()
        return observability_pb2.GetActivityResponse(
            buckets=buckets,
            bucket_duration=encode.duration(resolution),
            duration_bounds_seconds=BOUNDS_SECONDS,
            busiest_sessions=(session_activity(*each) for each in self._activity.busiest(tenant, MAX_BUSIEST_SESSIONS)),
            time=encode.timestamp(self._activity.now()),
        )

    async def ExplainPrefix(
        self, request: observability_pb2.ExplainPrefixRequest, context: object
    ) -> observability_pb2.ExplainPrefixResponse:
        tenant = visible_tenant(request.tenant) if request.tenant else caller.get().tenant.name
        prefix = explain.explained_prefix(request)
        depot = self._depots.named(tenant)
        if depot is None:
            raise InstanceNotFound(request.instance_id, model_name=request.model_name)
        explanation = await explain_prefix(depot, request.instance_id, request.model_name, prefix)
        return explain.response(explanation, prefix, is_admin=caller.get().tenant.is_admin)

    def _sessions(self, instance_id: str, tenant: str, at_tenant: str, before: int) -> Iterator[tuple[str, Session]]:
        """Yield tenants and sessions by tenant, newest first. Begin at `at_tenant`, below the number `before`."""
        for depot in sorted(self._depots, key=lambda depot: depot.tenant):
            if tenant in ("", depot.tenant) and depot.tenant >= at_tenant:
                last = before if before and depot.tenant == (at_tenant or tenant) else None
                for session in depot.sessions.newest_first(instance_id, before=last):
                    yield depot.tenant, session


def _meant(name: str) -> str:
    """Return which types of events may be meant by a name that does not exist."""
    by_lower = {each.lower(): each for each in EVENT_TYPES}
    meant = [each for lower, each in by_lower.items() if name.lower() in lower]
    meant = meant or [by_lower[lower] for lower in get_close_matches(name.lower(), by_lower, 1)]
    return f"did you mean {' or '.join(meant[:NUM_MEANT])}? " if name and meant else ""


def _page_token(tenant: str, session: Session) -> str:
    return f"{tenant}/{session.number}" if tenant else str(session.number)


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
        tenant=event.tenant,
        instance_id=event.instance_id,
        session_id=event.session_id,
        operation_id=str(operation_id),
        attributes=struct,
    )


def _check_block_report(message: observability_pb2.ReportBlockAllocationRequest) -> None:
    """Check a report of block allocations.

    Raises: InvalidRequest.
    """
    wrong = Violations()
    wrong.check_text("instance_id", message.instance_id, max_bytes=MAX_ID_BYTES)
    wrong.check_text("model_name", message.model_name, max_bytes=decode.MAX_NAME_BYTES)
    if not message.block_size:
        wrong.add("block_size", "is 0")
    wrong.check_length("records", message.records, MAX_RECORDS)
    wrong.raise_any()
    for n, record in enumerate(message.records):
        wrong.check_text(f"records[{n}].session_id", record.session_id, max_bytes=MAX_ID_BYTES)
    wrong.raise_any()
