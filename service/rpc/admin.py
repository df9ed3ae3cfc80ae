"""AdminService: reports what the depot has and does, clears the cache, and changes levels of the log."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict

from kvdepot.v1 import admin_pb2, admin_pb2_grpc
from kvdepot.version import __version__
from service.depot.depot import Depot
from service.depot.instances import Instance
from service.depot.tenant_depots import TenantDepots
from service.kv_events.setup import KvEvents
from service.process.log_levels import LogLevels
from service.rpc import encode
from service.rpc.hit_curve import hit_curve
from service.rpc.kv_events import kv_events_status
from service.rpc.log_level import logger_levels, set_log_level
from service.rpc.tiers import tier_statuses
from service.sizing.report import Sizing
from telemetry.bus import EventBus


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """The service for operators. `settings` are the server's settings by name, without secrets."""

    def __init__(
        self,
        depots: TenantDepots,
        bus: EventBus | None,
        settings: Mapping[str, str],
        populated_bytes: Callable[[], int],
        log_levels: LogLevels,
        sizing: Sizing,
        kv_events: KvEvents | None,
    ) -> None:
        self._depots = depots
        self._bus = bus
        self._settings = settings
        self._populated_bytes = populated_bytes
        self._log_levels = log_levels
        self._sizing = sizing
        self._kv_events = kv_events
        self._start_time = time.time()
        self._start = time.monotonic()

    async def GetStatus(self, request: admin_pb2.GetStatusRequest, context: object) -> admin_pb2.GetStatusResponse:
        depots = self._depots
        return admin_pb2.GetStatusResponse(
            version=__version__,
            start_time=encode.timestamp(self._start_time),
            uptime=encode.duration(time.monotonic() - self._start),
            state=admin_pb2.SERVER_STATE_DRAINING if depots.draining else admin_pb2.SERVER_STATE_SERVING,
            settings=self._settings,
            tiers=tier_statuses(depots, self._populated_bytes()),
            event_queue=self._event_queue(),
            transfer_backend=depots.backend.name,
            num_instances=sum(len(depot.instances) for depot in depots),
            num_sessions=sum(len(depot.sessions) for depot in depots),
            num_leases=sum(len(depot.leases) for depot in depots),
            tenants=self._tenants(),
            log_levels=logger_levels(self._log_levels),
            depot_incarnation=depots.incarnation,
            num_adopted_chunks=sum(depots.num_adopted_chunks_by_tenant.values()),
            num_pins=sum(len(depot.pins) for depot in depots),
            pinned_bytes=depots.pin_bounds.bytes_by_tenant.total(),
            hits=self._hits(),
            kv_events=kv_events_status(self._kv_events),
        )

    async def ListInstances(
        self, request: admin_pb2.ListInstancesRequest, context: object
    ) -> admin_pb2.ListInstancesResponse:
        pace = self._depots.slices.pace()
        instances: list[admin_pb2.Instance] = []
        for depot in sorted(self._depots, key=lambda depot: depot.tenant):
            num_leases = Counter(lease.instance_id for lease in depot.leases.live())
            for instance in sorted(depot.instances, key=lambda instance: instance.instance_id):
                instances.append(_instance(depot, instance, num_leases[instance.instance_id]))
                if pace.is_over():
                    await pace.next()
        return admin_pb2.ListInstancesResponse(instances=instances)

    async def ClearCache(self, request: admin_pb2.ClearCacheRequest, context: object) -> admin_pb2.ClearCacheResponse:
        cache_salt = request.cache_salt if request.HasField("cache_salt") else None
        answer = await self._depots.clear(request.tenant, request.model_name, cache_salt, force=request.force)
        return admin_pb2.ClearCacheResponse(**asdict(answer))

    async def SetLogLevel(
        self, request: admin_pb2.SetLogLevelRequest, context: object
    ) -> admin_pb2.SetLogLevelResponse:
        set_log_level(self._log_levels, request)
        return admin_pb2.SetLogLevelResponse(log_levels=logger_levels(self._log_levels))

    async def GetHitCurve(
        self, request: admin_pb2.GetHitCurveRequest, context: object
    ) -> admin_pb2.GetHitCurveResponse:
        return hit_curve(self._sizing, request)

    def _hits(self) -> admin_pb2.HitTotals:
        totals = [depot.hit_totals for depot in self._depots]
        saved = [each.saved_prefill_seconds for each in totals if each.saved_prefill_seconds is not None]
        return admin_pb2.HitTotals(
            num_lookups=sum(each.num_lookups for each in totals),
            asked_tokens=sum(each.asked_tokens for each in totals),
            hit_tokens=sum(each.hit_tokens for each in totals),
            l2_tokens=sum(each.l2_tokens for each in totals),
            hit_bytes=sum(each.hit_bytes for each in totals),
            saved_prefill_seconds=sum(saved) if saved else None,
        )

    def _event_queue(self) -> admin_pb2.EventQueueStatus | None:
        if self._bus is None:
            return None
        stats = self._bus.stats()
        return admin_pb2.EventQueueStatus(
            depth=stats.depth,
            capacity=stats.capacity,
            num_published=stats.num_published,
            num_dropped_by_type=stats.num_dropped_by_type,
            num_errors_by_subscriber=stats.num_errors_by_subscriber,
        )

    def _tenants(self) -> list[admin_pb2.TenantStatus]:
        in_l1, num_adopted = self._depots.chunks_and_bytes(), self._depots.num_adopted_chunks_by_tenant
        return [
            admin_pb2.TenantStatus(
                name=depot.tenant,
                num_instances=len(depot.instances),
                num_sessions=len(depot.sessions),
                num_leases=len(depot.leases),
                num_chunks=in_l1[depot.tenant][0],
                used_bytes=in_l1[depot.tenant][1],
                num_running_rpcs=depot.quota.num_running,
                bytes_in_flight=depot.quota.bytes_in_flight,
                num_adopted_chunks=num_adopted.get(depot.tenant, 0),
                num_pins=len(depot.pins),
                pinned_bytes=depot.pins.held.num_bytes,
            )
            for depot in sorted(self._depots, key=lambda depot: depot.tenant)
            if depot.tenant
        ]


def _instance(depot: Depot, instance: Instance, num_leases: int) -> admin_pb2.Instance:
    return admin_pb2.Instance(
        tenant=depot.tenant,
        instance_id=instance.instance_id,
        model_name=instance.model_name,
        world_size=instance.world_size,
        ranks=[
            admin_pb2.AttachedRank(
                rank=rank,
                attach_time=encode.timestamp(attachment.attach_time),
                chunk_bytes=attachment.chunk_bytes,
                transfer_backend=attachment.transfer_backend,
                mapped_bytes=attachment.buffer.mapped_bytes if attachment.buffer is not None else 0,
                num_groups=len(attachment.groups),
                num_transfers=len(attachment.transfers),
            )
            for rank, attachment in sorted(instance.ranks.items())
        ],
        num_sessions=depot.sessions.num_of_instance(instance.instance_id),
        num_leases=num_leases,
        model_revision=instance.model_revision,
        block_hash_seed=instance.block_hash_seed,
        chunk_size=instance.chunk_size,
    )
