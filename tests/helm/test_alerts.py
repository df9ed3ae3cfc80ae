"""The alerts: each fires when it should and not when it should not, and each has its entry in the runbook."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.fakes.real_servers import needs
from tests.helm.queries import faults

REPOSITORY = Path(__file__).parents[2]
RULES = REPOSITORY / "helm/kvdepot/rules/alerts.yaml"
RUNBOOK = REPOSITORY / "docs/operations.md"

ALL_RULES = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
ALERTS = {rule["alert"]: rule for rule in ALL_RULES if "alert" in rule}
RECORDED = {rule["record"] for rule in ALL_RULES if "record" in rule}

TARGET = {"instance": "10.0.0.1:9464", "job": "kvdepot"}
CERTIFICATE = "kvdepot_tls_certificate_time_left_seconds"
RPCS = "rpc_server_call_duration_seconds_count"
TIER = 'kvdepot_tier_state{{tier="disk", kind="disk", state="{}"}}'
TIER_READ = 'kvdepot_tier_chunks_read_total{{tier="disk", outcome="{}"}}'
TIER_WRITTEN = 'kvdepot_tier_chunks_written_total{tier="disk", outcome="ok"}'
TIER_DROPPED = 'kvdepot_tier_chunks_dropped_total{{tier="disk", reason="{}"}}'
IO_WORKERS_ENDED = 'kvdepot_tier_io_workers_ended_total{{tier="disk", role="{}", reason="{}"}}'
REFUSED = 'kvdepot_rpcs_refused_total{{rpc_method="kvdepot.v1.CacheService/{}", reason="{}"}}'
CALLS = RPCS + '{{rpc_method="kvdepot.v1.CacheService/{}", rpc_response_status_code="{}", rpc_system_name="grpc"}}'


@dataclass(frozen=True, slots=True)
class Case:
    """Series that Prometheus sees, and the alert that should fire. If it should not fire, ``summary`` is empty.

    Series are values once a minute, in promtool's notation. ``labels`` are those of the alert.
    """

    alert: str
    why: str
    at: str
    series: Mapping[str, str]
    summary: str = ""
    labels: Mapping[str, str] | None = None

    def as_test(self) -> dict[str, Any]:
        """Return the case in the format of promtool."""
        rule = ALERTS[self.alert]
        expected = {
            "exp_labels": {**(TARGET if self.labels is None else self.labels), **rule["labels"]},
            "exp_annotations": {**rule["annotations"], "summary": self.summary},
        }
        return {
            "name": f"{self.alert}: {self.why}",
            "interval": "1m",
            "input_series": [{"series": _of_target(name), "values": values} for name, values in self.series.items()],
            "alert_rule_test": [
                {"alertname": self.alert, "eval_time": self.at, "exp_alerts": [expected] if self.summary else []},
                *({"alertname": self.alert, "eval_time": at, "exp_alerts": []} for at in _too_early(rule)),
            ],
        }


def _too_early(rule: Mapping[str, Any]) -> list[str]:
    """Return a time at which each case has begun and no alert can have lasted long enough."""
    minutes = {"m": 1, "h": 60}
    lasts = rule.get("for", "0m")
    too_early = int(lasts[:-1]) * minutes[lasts[-1]] - 1
    return [f"{too_early}m"] if too_early > 0 else []


def _of_target(series: str) -> str:
    """Add the labels of a depot that Prometheus scrapes."""
    name, _, labels = series.partition("{")
    given = labels.removesuffix("}")
    own = ", ".join(f'{label}="{value}"' for label, value in TARGET.items() if f"{label}=" not in given)
    return f"{name}{{{', '.join(filter(None, (given, own)))}}}"


HEALTHY: Mapping[str, str] = {
    "up": "1+0x480",
    "process_uptime_seconds": "0+60x480",
    "kvdepot_draining": "0+0x480",
    'kvdepot_event_loop_lag_seconds_bucket{le="0.0005"}': "0+600x480",
    'kvdepot_event_loop_lag_seconds_bucket{le="0.1"}': "0+600x480",
    'kvdepot_event_loop_lag_seconds_bucket{le="0.25"}': "0+600x480",
    'kvdepot_event_loop_lag_seconds_bucket{le="+Inf"}': "0+600x480",
    "kvdepot_l1_populated_bytes": "1000+0x480",
    "kvdepot_l1_capacity_bytes": "1000+0x480",
    CALLS.format("Lookup", "OK"): "0+10000x480",
    CALLS.format("Lookup", "NOT_FOUND"): "0+2000x480",
    CALLS.format("Retrieve", "INTERNAL"): "0+1x480",
    CALLS.format("Store", "UNAVAILABLE"): "0+500x480",
    CALLS.format("Store", "RESOURCE_EXHAUSTED"): "0+100x480",
    CALLS.replace("_count", "_bucket").replace("{{", '{{le="0.1", ').format("Lookup", "OK"): "0+9950x480",
    CALLS.replace("_count", "_bucket").replace("{{", '{{le="0.1", ').format("Lookup", "NOT_FOUND"): "0+2000x480",
    'kvdepot_transfer_duration_seconds_count{outcome="ok"}': "0+1000x480",
    'kvdepot_transfer_duration_seconds_count{outcome="cancelled"}': "0+1000x480",
    'kvdepot_transfer_io_bytes_total{direction="store"}': "0+60e9x480",
    'kvdepot_transfer_duration_seconds_sum{direction="store", outcome="ok"}': "0+20x480",
    'kvdepot_attachments_ended_total{reason="closed", model_name="m"}': "0+5x480",
    'kvdepot_attachments_ended_total{reason="lost", model_name="m"}': "0 0 1 1 1 1 2+0x480",
    REFUSED.format("AttachInstance", "DRAINING"): "0+5x480",
    REFUSED.format("AttachInstance", "RANK_ATTACHED"): "0 0 1 1 1 1 2+0x480",
    REFUSED.format("Store", "DRAINING"): "0+50x480",
    REFUSED.format("StoreInline", "INSTANCE_NOT_FOUND"): "0 9+0x480",
    REFUSED.format("Lookup", "INSTANCE_NOT_FOUND"): "0+50x480",
    "kvdepot_l1_chunks_refused_total": "0+5x480",
    'kvdepot_l1_chunks_stored_total{model_name="m"}': "0+1000x480",
    'kvdepot_l1_chunk_reuse_after_evict_seconds_bucket{le="300.0", model_name="m", tier="l1"}': "0+150x480",
    'kvdepot_l1_chunk_reuse_after_evict_seconds_bucket{le="14400.0", model_name="m", tier="l1"}': "0+900x480",
    'kvdepot_leases_ended_total{reason="expired"}': "0+5x480",
    'kvdepot_leases_ended_total{reason="released"}': "0+95x480",
    "kvdepot_leases_granted_total": "0+100x480",
    'kvdepot_lookup_missed_tokens_total{reason="never stored", model_name="m"}': "0+60000x480",
    'kvdepot_lookup_missed_tokens_total{reason="rank missing", model_name="m"}': "0+1000x480",
    'kvdepot_lookup_tokens_total{model_name="m"}': "0+100000x480",
    'kvdepot_events_dropped_total{event_type="LookupStarted"}': "7+0x480",
    'kvdepot_subscriber_errors_total{subscriber="metrics"}': "1+0x480",
    "kvdepot_l0_records_malformed_total": "3+0x480",
    TIER.format("available"): "1+0x480",
    TIER.format("failing"): "0+0x480",
    TIER_READ.format("arrived"): "0+100x480",
    TIER_READ.format("absent"): "0+5x480",
    TIER_READ.format("damaged"): "2+0x480",
    TIER_WRITTEN: "0+100x480",
    TIER_DROPPED.format("queue full"): "0+5x480",
    TIER_DROPPED.format("budget"): "0+500x480",
    IO_WORKERS_ENDED.format("read", "deadline"): "0 0 1 1 1 1 2+0x480",
    "kvdepot_tls_certificate_time_left_seconds": "5000000-60x480",
    'kvdepot_files_broken{file="tenants"}': "0+0x480",
    'kvdepot_access_denied_total{reason="TOKEN_UNKNOWN", tenant=""}': "0+1x480",
}
"""A depot with some work, as every one has."""

QUIET = [
    Case("KvdepotKvEventsRetold", "one gap", "40m", {'kvdepot_kv_events_retold_total{reason="gap"}': "0+0x20 1+0x60"}),
    Case(
        "KvdepotKvEventsRetold",
        "readers that come and go",
        "40m",
        {'kvdepot_kv_events_retold_total{reason="reader"}': "0+5x60"},
    ),
    Case("KvdepotKvEventsExpire", "a short peak", "65m", {"kvdepot_kv_events_expired_total": "0+0x20 50+0x100"}),
    Case("KvdepotManyDown", "one of four", "20m", {f'up{{instance="{n}"}}': f"{int(n > 0)}+0x30" for n in range(4)}),
    Case("KvdepotAbsent", "a collector brings its metrics", "20m", {"kvdepot_l1_capacity_bytes": "1+0x30"}),
    Case("KvdepotDown", "one that is scraped again soon", "20m", {"up": "1+0x15 0 0 0 0 1+0x10"}),
    Case("KvdepotRestarting", "an upgrade", "30m", {"process_uptime_seconds": "0+60x10 0+60x30"}),
    Case("KvdepotDraining", "a drain that ends", "20m", {"kvdepot_draining": "0+0x14 1 1 1 0+0x10"}),
    Case(
        "KvdepotEventLoopLag",
        "a pause",
        "20m",
        {
            'kvdepot_event_loop_lag_seconds_bucket{le="0.1"}': "0+600x10 6000 6000 6000+600x20",
            'kvdepot_event_loop_lag_seconds_bucket{le="5.0"}': "0+600x30",
            'kvdepot_event_loop_lag_seconds_bucket{le="+Inf"}': "0+600x30",
        },
    ),
    Case(
        "KvdepotL1NotPopulated",
        "a start",
        "50m",
        {"kvdepot_l1_populated_bytes": "0+20x100", "kvdepot_l1_capacity_bytes": "1000+0x100"},
    ),
    Case(
        "KvdepotErrorsFast",
        "a burst that is over",
        "60m",
        {CALLS.format("Lookup", "OK"): "0+100x60", CALLS.format("Lookup", "INTERNAL"): "0+0x20 0+100x9 900+0x40"},
    ),
    Case(
        "KvdepotTransfersSlow",
        "next to no traffic",
        "60m",
        {
            "kvdepot_transfer_io_bytes_total": "0+1e6x60",
            'kvdepot_transfer_duration_seconds_sum{outcome="ok"}': "0+1x60",
        },
    ),
    Case("KvdepotFileBroken", "it is mended", "30m", {'kvdepot_files_broken{file="tenants"}': "0+0x24 1 1 1 0 0+0x10"}),
    Case("KvdepotCertificateEndsSoon", "it is renewed", "10m", {CERTIFICATE: "100000-60x8 7776000-60x20"}),
    Case("KvdepotCertificateEndsSoon", "three days", "10m", {CERTIFICATE: "259200-60x20"}),
    Case(
        "KvdepotChunksCorrupt",
        "one of two hours ago",
        "150m",
        {'kvdepot_l1_chunks_corrupt_total{hop="scrub"}': "0+0x20 1+0x180"},
    ),
    Case(
        "KvdepotTierUnavailable",
        "it is used again after two minutes",
        "30m",
        {TIER.format("available"): "1+0x24 0 0 1+0x10", TIER.format("failing"): "0+0x24 1 1 0+0x10"},
    ),
    Case("KvdepotTierUnavailable", "a start", "10m", {TIER.format("available"): "_x5 0 1+0x20"}),
    Case("KvdepotTierChunksDamaged", "one of two hours ago", "150m", {TIER_READ.format("damaged"): "0+0x20 1+0x180"}),
    Case(
        "KvdepotTierWritesDropped",
        "the budget of the day is used up",
        "60m",
        {
            TIER_DROPPED.format("budget"): "0+900x90",
            TIER_DROPPED.format("queue full"): "0+0x90",
            TIER_WRITTEN: "0+1x90",
        },
    ),
    Case(
        "KvdepotTierWritesDropped",
        "nothing is stored",
        "60m",
        {TIER_DROPPED.format("queue full"): "5+0x90", TIER_WRITTEN: "5+0x90"},
    ),
    Case("KvdepotIoWorkersEnd", "long ago", "40m", {IO_WORKERS_ENDED.format("read", "deadline"): "_x10 5+0x40"}),
    Case(
        "KvdepotTransfersFail",
        "a failure of long ago",
        "40m",
        {'kvdepot_transfer_duration_seconds_count{direction="store", outcome="failed"}': "_x10 1+0x40"},
    ),
    Case(
        "KvdepotSubscriberFails", "long ago", "40m", {'kvdepot_subscriber_errors_total{subscriber="m"}': "_x10 1+0x40"}
    ),
    Case("KvdepotEventsDropped", "long ago", "40m", {'kvdepot_events_dropped_total{event_type="X"}': "_x10 1+0x40"}),
    Case(
        "KvdepotErrorsSlow",
        "a burst that is over",
        "120m",
        {CALLS.format("Lookup", "OK"): "0+100x120", CALLS.format("Lookup", "INTERNAL"): "0+0x20 0+100x9 900+0x90"},
    ),
    Case(
        "KvdepotAttachmentsLost",
        "long ago",
        "40m",
        {'kvdepot_attachments_ended_total{reason="lost", model_name="m"}': "_x10 5+0x40"},
    ),
    Case(
        "KvdepotAttachmentsRefused",
        "long ago",
        "40m",
        {REFUSED.format("AttachInstance", "RANK_ATTACHED"): "_x10 5+0x40"},
    ),
    Case(
        "KvdepotDeviceFailed",
        "long ago",
        "40m",
        {'kvdepot_attachments_ended_total{reason="failed", model_name="m"}': "_x10 1+0x40"},
    ),
]

FIRING = [
    Case(
        "KvdepotAbsent",
        "another's target is no depot",
        "11m",
        {'up{job="node"}': "1+0x20"},
        "Prometheus has no depot.",
        labels={},
    ),
    Case(
        "KvdepotManyDown",
        "two of five",
        "10m",
        {f'up{{instance="{n}", namespace="llm"}}': f"{int(n > 1)}+0x30" for n in range(5)},
        "Only 60% of the depots of kvdepot are up.",
        labels={"job": "kvdepot", "namespace": "llm"},
    ),
    Case(
        "KvdepotDown",
        "it has gone, under the name of its release",
        "10m",
        {'up{job="prod-kvdepot"}': "1 1 0+0x20"},
        "The depot 10.0.0.1:9464 is down.",
        labels={**TARGET, "job": "prod-kvdepot"},
    ),
    Case(
        "KvdepotRestarting",
        "a crash loop",
        "30m",
        {"process_uptime_seconds": "0+60x5 " * 4 + "0+60x20"},
        "The depot 10.0.0.1:9464 was started 4 times within an hour.",
    ),
    Case(
        "KvdepotDraining",
        "it hangs",
        "15m",
        {"kvdepot_draining": "0 0 1+0x20"},
        "The depot 10.0.0.1:9464 has been draining for 10 minutes.",
    ),
    Case(
        "KvdepotEventLoopLag",
        "two in a hundred are late",
        "20m",
        {
            'kvdepot_event_loop_lag_seconds_bucket{le="0.1"}': "0+588x30",
            'kvdepot_event_loop_lag_seconds_bucket{le="0.25"}': "0+588x30",
            'kvdepot_event_loop_lag_seconds_bucket{le="0.5"}': "0+600x30",
            'kvdepot_event_loop_lag_seconds_bucket{le="+Inf"}': "0+600x30",
        },
        "The event loop of 10.0.0.1:9464 is late by 375ms at the 99th percentile.",
    ),
    Case(
        "KvdepotL1NotPopulated",
        "populating stopped",
        "65m",
        {"kvdepot_l1_populated_bytes": "500+0x100", "kvdepot_l1_capacity_bytes": "1000+0x100"},
        "Pages of L1 are missing on 10.0.0.1:9464.",
    ),
    Case(
        "KvdepotErrorsFast",
        "one in fifty",
        "62m",
        {CALLS.format("Lookup", "OK"): "0+98x90", CALLS.format("Store", "DEADLINE_EXCEEDED"): "0+2x90"},
        "2% of the calls to 10.0.0.1:9464 fail.",
    ),
    Case(
        "KvdepotErrorsSlow",
        "one in a hundred",
        "7h",
        {CALLS.format("Lookup", "OK"): "0+99x480", CALLS.format("Retrieve", "DATA_LOSS"): "0+1x480"},
        "1% of the calls to 10.0.0.1:9464 fail.",
    ),
    Case(
        "KvdepotLookupsSlow",
        "one in fifty",
        "30m",
        {
            CALLS.format("Lookup", "OK"): "0+100x60",
            CALLS.format("Store", "OK"): "0+1000x60",
            CALLS.replace("_count", "_bucket").replace("{{", '{{le="0.1", ').format("Lookup", "OK"): "0+98x60",
        },
        "2% of the lookups on 10.0.0.1:9464 take longer than 100 ms.",
    ),
    Case(
        "KvdepotCallsRefused",
        "a flood",
        "20m",
        {CALLS.format("Lookup", "OK"): "0+80x30", CALLS.format("Lookup", "RESOURCE_EXHAUSTED"): "0+20x30"},
        "The depot 10.0.0.1:9464 refuses 20% of its calls.",
    ),
    Case(
        "KvdepotAttachmentsRefused",
        "an engine that tries again",
        "14m",
        {REFUSED.format("AttachInstance", "REGION_UNAVAILABLE"): "_x10 1 2 3 4+0x40"},
        "Engines can't attach to 10.0.0.1:9464.",
    ),
    Case(
        "KvdepotAttachmentsRefused",
        "for two reasons, again",
        "62m",
        {
            REFUSED.format("AttachInstance", "RANK_ATTACHED"): "9+0x58 9 10 11+0x40",
            REFUSED.format("AttachInstance", "REGION_UNAVAILABLE"): "9+0x58 9 10 11+0x40",
        },
        "Engines can't attach to 10.0.0.1:9464.",
    ),
    Case(
        "KvdepotStoreCallsRefused",
        "a connector that is wrong",
        "14m",
        {REFUSED.format("Store", "INVALID_REQUEST"): "_x10 5 10 15+0x40"},
        "The depot 10.0.0.1:9464 refuses to store.",
    ),
    Case(
        "KvdepotTransfersFail",
        "the first of all",
        "12m",
        {'kvdepot_transfer_duration_seconds_count{direction="store", outcome="failed"}': "_x10 1+0x40"},
        "Transfers of 10.0.0.1:9464 fail.",
    ),
    Case(
        "KvdepotTransfersFail",
        "one more",
        "62m",
        {'kvdepot_transfer_duration_seconds_count{direction="store", outcome="failed"}': "1+0x60 2+0x40"},
        "Transfers of 10.0.0.1:9464 fail.",
    ),
    Case(
        "KvdepotChunksCorrupt",
        "the scrub finds one",
        "130m",
        {
            'kvdepot_l1_chunks_corrupt_total{hop="scrub"}': "0+0x119 1+0x60",
            'kvdepot_l1_chunks_corrupt_total{hop="retrieve"}': "3+0x180",
        },
        "Chunks in L1 of 10.0.0.1:9464 were damaged.",
    ),
    Case(
        "KvdepotChunksCorrupt",
        "one before the first scrape",
        "20m",
        {'kvdepot_l1_chunks_corrupt_total{hop="retrieve"}': "_x10 1+0x60"},
        "Chunks in L1 of 10.0.0.1:9464 were damaged.",
    ),
    Case(
        "KvdepotTransfersSlow",
        "half a gigabyte a second",
        "45m",
        {
            'kvdepot_transfer_io_bytes_total{direction="store"}': "0+6e9x60",
            'kvdepot_transfer_io_bytes_total{direction="retrieve"}': "0+4e9x60",
            'kvdepot_transfer_duration_seconds_sum{direction="store", outcome="ok"}': "0+8x60",
            'kvdepot_transfer_duration_seconds_sum{direction="retrieve", outcome="ok"}': "0+12x60",
        },
        "Transfers of 10.0.0.1:9464 run at 500MB/s.",
    ),
    Case(
        "KvdepotDeviceFailed",
        "the first of all",
        "12m",
        {'kvdepot_attachments_ended_total{reason="failed", model_name="m"}': "_x10 1+0x40"},
        "A device failed on 10.0.0.1:9464.",
    ),
    Case(
        "KvdepotDeviceFailed",
        "one more",
        "62m",
        {'kvdepot_attachments_ended_total{reason="failed", model_name="m"}': "1+0x60 2+0x40"},
        "A device failed on 10.0.0.1:9464.",
    ),
    Case(
        "KvdepotAttachmentsLost",
        "four more",
        "62m",
        {'kvdepot_attachments_ended_total{reason="lost", model_name="m"}': "9+0x58 9 11 13+0x40"},
        "Engines of 10.0.0.1:9464 die.",
    ),
    Case(
        "KvdepotAttachmentsLost",
        "three engines die",
        "13m",
        {'kvdepot_attachments_ended_total{reason="lost", model_name="m"}': "_x10 1 2 3+0x40"},
        "Engines of 10.0.0.1:9464 die.",
    ),
    Case(
        "KvdepotStoresRefused",
        "one in ten",
        "30m",
        {"kvdepot_l1_chunks_refused_total": "0+10x60", 'kvdepot_l1_chunks_stored_total{model_name="m"}': "0+90x60"},
        "L1 of 10.0.0.1:9464 refuses chunks.",
    ),
    Case(
        "KvdepotStoresRefused",
        "nothing was ever stored",
        "30m",
        {"kvdepot_l1_chunks_refused_total": "0+10x60"},
        "L1 of 10.0.0.1:9464 refuses chunks.",
    ),
    Case(
        "KvdepotL1TooSmall",
        "a third comes back, as a collector writes it",
        "130m",
        {
            'kvdepot_l1_chunk_reuse_after_evict_seconds_bucket{le="300", model_name="m", tier="l1"}': "0+30x480",
            'kvdepot_l1_chunks_stored_total{model_name="m"}': "0+60x480",
            'kvdepot_l1_chunks_stored_total{model_name="n"}': "0+60x480",
        },
        "25% of the chunks stored on 10.0.0.1:9464 were evicted minutes before.",
    ),
    Case(
        "KvdepotLeasesExpire",
        "half of them",
        "60m",
        {'kvdepot_leases_ended_total{reason="expired"}': "0+50x90", "kvdepot_leases_granted_total": "0+100x90"},
        "50% of the leases of 10.0.0.1:9464 expire.",
    ),
    Case(
        "KvdepotRanksMissing",
        "all of one model",
        "30m",
        {
            'kvdepot_lookup_missed_tokens_total{reason="rank missing", model_name="m"}': "0+200x90",
            'kvdepot_lookup_tokens_total{model_name="m"}': "0+200x90",
            'kvdepot_lookup_tokens_total{model_name="n"}': "0+300x90",
        },
        "An instance on 10.0.0.1:9464 lacks ranks.",
    ),
    Case(
        "KvdepotTierUnavailable",
        "it fails, and each minute a probe tries it",
        "15m",
        {TIER.format("available"): "1+0x5 0 0 0 1 0 0 0 1 0 0 0 0+0x20", TIER.format("failing"): "0+0x30"},
        "The depot 10.0.0.1:9464 can't use its tier disk.",
        labels={**TARGET, "tier": "disk", "kind": "disk"},
    ),
    Case(
        "KvdepotTierChunksDamaged",
        "the first one",
        "30m",
        {TIER_READ.format("damaged"): "0+0x20 1+0x30", TIER_READ.format("arrived"): "0+9x60"},
        "Chunks in the tier disk of 10.0.0.1:9464 are damaged.",
        labels={**TARGET, "tier": "disk"},
    ),
    Case(
        "KvdepotTierWritesDropped",
        "half of them",
        "40m",
        {
            TIER_DROPPED.format("queue full"): "0+20x90",
            TIER_DROPPED.format("evicted"): "0+30x90",
            TIER_DROPPED.format("budget"): "0+90x90",
            TIER_WRITTEN: "0+40x90",
            TIER_WRITTEN.replace("ok", "late"): "0+10x90",
        },
        "50% of the chunks do not get into the tier disk of 10.0.0.1:9464.",
        labels={**TARGET, "tier": "disk"},
    ),
    Case(
        "KvdepotIoWorkersEnd",
        "readers hang and a writer crashes",
        "12m",
        {
            IO_WORKERS_ENDED.format("read", "deadline"): "_x5 1 1 2+0x30",
            IO_WORKERS_ENDED.format("write", "crash"): "_x8 1+0x30",
        },
        "I/O workers of the tier disk of 10.0.0.1:9464 end again and again.",
        labels={**TARGET, "tier": "disk"},
    ),
    Case(
        "KvdepotCertificateEndsSoon",
        "a day is left",
        "10m",
        {CERTIFICATE: "87000-60x20"},
        "The certificate of 10.0.0.1:9464 ends in 1d 0h 0m 0s.",
    ),
    Case(
        "KvdepotCertificateEnds",
        "ten days are left",
        "90m",
        {CERTIFICATE: "869400-60x120"},
        "The certificate of 10.0.0.1:9464 ends in 10d 0h 0m 0s.",
    ),
    Case(
        "KvdepotFileBroken",
        "a wrong edit",
        "20m",
        {'kvdepot_files_broken{file="tenants"}': "1+0x30"},
        "The depot 10.0.0.1:9464 can't use its file of the tenants.",
        labels={**TARGET, "file": "tenants"},
    ),
    Case(
        "KvdepotCallsDenied",
        "an old token, and one that is over",
        "30m",
        {
            'kvdepot_access_denied_total{reason="TOKEN_UNKNOWN", tenant=""}': "0+6x60",
            'kvdepot_access_denied_total{reason="TOKEN_EXPIRED", tenant="a"}': "0+6x60",
        },
        "The depot 10.0.0.1:9464 denies 200m calls a second.",
    ),
    Case(
        "KvdepotEventsDropped",
        "the first of all",
        "9m",
        {'kvdepot_events_dropped_total{event_type="LookupStarted"}': "_x2 1+0x40"},
        "The depot 10.0.0.1:9464 drops events.",
    ),
    Case(
        "KvdepotEventsDropped",
        "more",
        "66m",
        {'kvdepot_events_dropped_total{event_type="LookupStarted"}': "1+0x60 2+0x40"},
        "The depot 10.0.0.1:9464 drops events.",
    ),
    Case(
        "KvdepotSubscriberFails",
        "the first time",
        "12m",
        {'kvdepot_subscriber_errors_total{subscriber="metrics"}': "_x10 1+0x40"},
        "A subscriber fails on 10.0.0.1:9464.",
    ),
    Case(
        "KvdepotSubscriberFails",
        "once more",
        "62m",
        {'kvdepot_subscriber_errors_total{subscriber="metrics"}': "1+0x60 2+0x40"},
        "A subscriber fails on 10.0.0.1:9464.",
    ),
    Case(
        "KvdepotBlockReportsMalformed",
        "one record",
        "32m",
        {"kvdepot_l0_records_malformed_total": "3+0x30 4+0x40"},
        "Engines of 10.0.0.1:9464 report malformed blocks.",
    ),
    Case(
        "KvdepotKvEventsRetold",
        "many gaps",
        "35m",
        {'kvdepot_kv_events_retold_total{reason="gap"}': "0+0x20 0+1x20"},
        "Routers have to forget the blocks of 10.0.0.1:9464 again and again.",
    ),
    Case(
        "KvdepotKvEventsExpire",
        "all the time",
        "90m",
        {"kvdepot_kv_events_expired_total": "0+0x20 0+5x100"},
        "Routers do not know of all blocks of 10.0.0.1:9464.",
    ),
]

needs_promtool = needs("promtool")


def promtool(*arguments: str) -> str:
    """Run promtool, which must succeed, and return its output."""
    run = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@needs_promtool
def test_prometheus_takes_the_rules() -> None:
    assert f"{len(ALL_RULES)} rules found" in promtool("check", "rules", str(RULES))


def run_tests(folder: Path, *tests: Mapping[str, Any]) -> None:
    """Run these tests with promtool."""
    file = folder / "tests.yaml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    promtool("test", "rules", str(file))


@needs_promtool
def test_each_fires_when_it_should(tmp_path: Path) -> None:
    assert {case.alert for case in FIRING} == set(ALERTS)
    assert all(case.summary for case in FIRING)
    run_tests(tmp_path, *(case.as_test() for case in FIRING))


@needs_promtool
def test_none_fires_where_it_should_not(tmp_path: Path) -> None:
    assert not any(case.summary for case in QUIET)
    run_tests(tmp_path, *(case.as_test() for case in QUIET))


@needs_promtool
def test_none_fires_in_a_depot_that_is_well(tmp_path: Path) -> None:
    well = {
        "interval": "1m",
        "input_series": [{"series": _of_target(name), "values": values} for name, values in HEALTHY.items()],
        "alert_rule_test": [{"alertname": alert, "eval_time": "7h", "exp_alerts": []} for alert in ALERTS],
    }
    run_tests(tmp_path, well)


def test_every_metric_and_label_that_they_ask_for_is_there() -> None:
    assert {rule.get("alert") or rule["record"]: faults(rule["expr"], RECORDED) for rule in ALL_RULES} == {
        rule.get("alert") or rule["record"]: [] for rule in ALL_RULES
    }


def test_each_says_how_bad_it_is_what_it_means_and_where_to_read_on() -> None:
    for name, rule in ALERTS.items():
        assert rule["labels"]["severity"] in ("critical", "warning"), name
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}, name
        assert "{{" not in rule["annotations"]["description"], name
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{name.lower()}"


def test_the_runbook_has_an_entry_for_each_alert_and_no_other() -> None:
    entries = re.split(r"^### (Kvdepot\w+)\n", RUNBOOK.read_text(), flags=re.MULTILINE)
    assert entries[1::2] == list(ALERTS)
    for name, text in zip(entries[1::2], entries[2::2], strict=True):
        section = text.split("\n## ")[0]
        assert f"({ALERTS[name]['labels']['severity']})" in section, name
        for part in ("Means:", "Look at:", "Do:"):
            assert section.count(f"**{part}**") == 1, (name, part)
