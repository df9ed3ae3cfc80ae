"""Metrics that are read from the state of the depot and of access, so that dropped events do not change them."""

from __future__ import annotations

import platform

import grpc

from kvdepot.version import __version__
from service.access.access import Access
from service.cache_memory import CacheMemory
from service.depot.tenant_depots import TenantDepots
from service.l1.adoption import Doubt
from service.recording.recorder import Recorder
from service.rpc.admission import Admission
from service.rpc.refusals import Refusals
from telemetry.kinds import PrefetchOutcome
from telemetry.metrics import definitions, recording_definitions
from telemetry.metrics.metric import Attributes
from telemetry.metrics.snapshot import Scalars


def read_depot(depots: TenantDepots, admission: Admission, refusals: Refusals, populated_bytes: int) -> Scalars:
    """Return the state of L1, of attachments, sessions and calls, and of tenants. For the event loop."""
    return {
        **_l1(depots, populated_bytes),
        **_verification(depots),
        **_work(depots, admission, refusals),
        **_tenants(depots),
    }


def read_memory(memory: CacheMemory) -> Scalars:
    """Return what L1's memory holds of an earlier process, and what a later one will not find."""
    adoption, ledger = memory.adoption, memory.index.ledger
    return {
        definitions.L1_ADOPTED: {(): adoption.num_chunks},
        definitions.L1_NOT_ADOPTED: {
            (doubt.name.lower().replace("_", " "),): adoption.num_rejected[doubt] for doubt in Doubt
        },
        definitions.L1_WITHOUT_RECORD: {(): ledger.num_without_record if ledger is not None else 0},
        definitions.L1_UNZEROED: {(): memory.index.unzeroed.num_bytes},
        definitions.L1_IN_FILE: {(): int(memory.is_in_file)},
    }


def read_build(transfer_backend: str) -> Scalars:
    """Return what runs."""
    build = (__version__, platform.python_version(), grpc.__version__, transfer_backend)
    return {definitions.BUILD: {build: 1}}


def _l1(depots: TenantDepots, populated_bytes: int) -> Scalars:
    index = depots.index
    return {
        definitions.L1_USED: {(): index.pool.used_bytes},
        definitions.L1_CAPACITY: {(): index.pool.capacity_bytes},
        definitions.L1_POPULATED: {(): populated_bytes},
        definitions.L1_SLOTS: {
            ("used",): index.pool.num_used_slots,
            ("free",): index.pool.num_free_slots,
        },
        definitions.L1_RESIDENT: {(): index.num_resident},
        definitions.L1_PROTECTED: {(): index.num_protected},
        definitions.L1_PINNED_CHUNKS: {(): sum(len(depot.pins.held) for depot in depots)},
        definitions.L1_PINNED: {(): depots.pin_bounds.bytes_by_tenant.total()},
        definitions.L1_EVICTED: {(): index.num_evicted},
        definitions.L1_REFUSED: {(): sum(depot.num_refused_chunks for depot in depots)},
    }


def _verification(depots: TenantDepots) -> Scalars:
    verification, scrub = depots.verification, depots.scrub
    seconds_since_round = scrub.seconds_since_round
    return {
        definitions.L1_VERIFIED: {(hop.value,): n for hop, n in verification.num_verified.items()},
        definitions.L1_CORRUPT: {(hop.value,): n for hop, n in verification.num_corrupt.items()},
        definitions.SCRUB_IO: {(): scrub.scrubbed_bytes},
        definitions.SCRUB_WAITING: {(): scrub.num_waiting},
        definitions.SCRUB_AGE: {(): seconds_since_round} if seconds_since_round is not None else {},
    }


def _work(depots: TenantDepots, admission: Admission, refusals: Refusals) -> Scalars:
    instances = [instance for depot in depots for instance in depot.instances]
    attachments = [attachment for instance in instances for attachment in instance.ranks.values()]
    mapped_bytes = sum(each.buffer.mapped_bytes for each in attachments if each.buffer is not None)
    return {
        definitions.LEASES_LIVE: {(): sum(len(depot.leases) for depot in depots)},
        definitions.PINS_LIVE: {(): sum(len(depot.pins) for depot in depots)},
        definitions.PREFETCHED: {
            (outcome.value,): sum(depot.prefetches.num_chunks()[outcome] for depot in depots)
            for outcome in PrefetchOutcome
        },
        definitions.SESSIONS_LIVE: {(): sum(len(depot.sessions) for depot in depots)},
        definitions.INSTANCES_LIVE: {(): len(instances)},
        definitions.ATTACHMENTS_LIVE: {(): len(attachments)},
        definitions.ATTACHMENTS_MAPPED: {(): mapped_bytes},
        definitions.DRAINING: {(): int(admission.is_draining)},
        definitions.RPCS_RUNNING: {
            ("call",): admission.num_running,
            ("stream",): admission.num_streams,
        },
        definitions.RPCS_REFUSED: dict(refusals.num_refused.items()),
    }


def _tenants(depots: TenantDepots) -> Scalars:
    tenants = [depot for depot in depots if depot.tenant]
    in_l1 = depots.chunks_and_bytes() if tenants else {}
    return {
        definitions.TENANT_L1_USED: {(each.tenant,): in_l1[each.tenant][1] for each in tenants},
        definitions.TENANT_PINNED_CHUNKS: {(each.tenant,): len(each.pins.held) for each in tenants},
        definitions.TENANT_PINNED: {(each.tenant,): each.pins.held.num_bytes for each in tenants},
        definitions.TENANT_SESSIONS: {(each.tenant,): len(each.sessions) for each in tenants},
        definitions.TENANT_RPCS: {
            (kind, each.tenant): num_running
            for each in tenants
            for kind, num_running in (("call", each.quota.num_running), ("stream", each.quota.num_streams))
        },
        definitions.TENANT_IN_FLIGHT: {(each.tenant,): each.quota.bytes_in_flight for each in tenants},
        definitions.TENANT_REFUSED: {
            (reason, each.tenant): num_refused
            for each in tenants
            for reason, num_refused in each.quota.num_refused.items()
        },
    }


def read_recording(recorder: Recorder) -> Scalars:
    """Return what is recorded, and what is missing."""
    return {
        recording_definitions.RECORDING: {(): int(recorder.is_recording)},
        recording_definitions.RECORDED: {(): recorder.num_recorded},
        recording_definitions.RECORDING_DROPPED: {(): recorder.num_dropped},
    }


def read_access(access: Access) -> Scalars:
    """Return which calls were denied, and the state of the watched files."""
    files = [file for file in (access.tenants, access.certificate) if file is not None]
    reads: dict[Attributes, float] = {}
    for file in files:
        reads[file.name, "used"] = file.num_reloads
        reads[file.name, "refused"] = file.num_refusals
    seconds_left = access.certificate_seconds_left
    return {
        definitions.DENIED: {(reason, tenant): n for (tenant, reason), n in access.audit.num_denied.items()},
        definitions.FILES_READ: reads,
        definitions.FILES_BROKEN: {(file.name,): int(file.is_broken) for file in files},
        definitions.CERTIFICATE_TIME_LEFT: {(): seconds_left} if seconds_left is not None else {},
    }
