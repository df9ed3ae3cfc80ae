"""The rows of the dashboard, each with its panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from grafana_foundation_sdk.builders import heatmap, stat, timeseries

from tools.generate.dashboard.kv_event_row import KV_EVENTS
from tools.generate.dashboard.panels import areas, heat, lines, number
from tools.generate.dashboard.queries import increase, or_zero, quantile, rate, share, total
from tools.generate.dashboard.sizing_row import SIZING
from tools.generate.dashboard.tier_row import TIERS

Panel = stat.Panel | timeseries.Panel | heatmap.Panel

_CALLS = 'rpc_server_call_duration_seconds_count{DEPOT, rpc_method=~"kvdepot.+"}'
_FAILED = _CALLS.replace("}", ', rpc_response_status_code=~"INTERNAL|UNKNOWN|DATA_LOSS|DEADLINE_EXCEEDED"}')
_NOT_OK = _CALLS.replace("}", ', rpc_response_status_code!="OK"}')
_CALL_BUCKET = _CALLS.replace("_count", "_bucket")
_LOOKUP_BUCKET = 'rpc_server_call_duration_seconds_bucket{DEPOT, rpc_method="kvdepot.v1.CacheService/Lookup"}'
_PROMPT_TOKENS = "kvdepot_lookup_tokens_total{MODEL}"
_MATCHED = "kvdepot_lookup_matched_tokens_total{MODEL}"
_MISSED = "kvdepot_lookup_missed_tokens_total{MODEL}"
_INSTANCE_TOKENS = "kvdepot_instance_lookup_tokens_total{MODEL}"
_INSTANCE_MATCHED = "kvdepot_instance_lookup_matched_tokens_total{MODEL}"
_PREFILL_SAVED = "kvdepot_prefill_saved_seconds_total{MODEL}"
_PREFILL_RATE = "kvdepot_prefill_token_rate{MODEL}"
_RETRIEVED = "kvdepot_retrieve_tokens_total{MODEL}"
_STORED = "kvdepot_l1_chunks_stored_total{MODEL}"
_REFUSED_CALLS = "kvdepot_rpcs_refused_total{DEPOT}"
_REFUSED_ATTACHES = 'kvdepot_rpcs_refused_total{DEPOT, rpc_method="kvdepot.v1.CacheService/AttachInstance"}'
_REFUSED_STORES = 'kvdepot_rpcs_refused_total{DEPOT, rpc_method=~"kvdepot[.]v1[.]CacheService/Store(Inline)?"}'
_REFUSED = "kvdepot_l1_chunks_refused_total{DEPOT}"
_STORED_AGAIN = 'kvdepot_l1_chunk_reuse_after_evict_seconds_bucket{{MODEL, le=~"{}([.]0)?"}}'
_TRANSFERRED = "kvdepot_transfer_io_bytes_total{DEPOT}"
_TRANSFER = "kvdepot_transfer_duration_seconds_{}{{DEPOT}}"
_STEP = "kvdepot_transfer_step_duration_seconds_{}{{DEPOT}}"
_LAG_BUCKET = "kvdepot_event_loop_lag_seconds_bucket{DEPOT}"
_DROPPED = "kvdepot_events_dropped_total{DEPOT}"

_OVERVIEW = (
    number("Depots", "Depots that Prometheus sees.", "short", "count(kvdepot_l1_capacity_bytes{DEPOT})"),
    number(
        "Hit ratio",
        "Share of the looked-up tokens that were found. The normal share depends on the traffic.",
        "percentunit",
        share(rate(_MATCHED), rate(_PROMPT_TOKENS)),
    ),
    number(
        "Tokens saved",
        "Tokens per second that were retrieved instead of prefilled. Each rank counts its own.",
        "short",
        rate(_RETRIEVED),
    ),
    number(
        "L1 fill",
        "Share of L1 that holds chunks. A full L1 is healthy: the least recently used chunks are evicted.",
        "percentunit",
        share(total("kvdepot_l1_used_bytes{DEPOT}"), total("kvdepot_l1_capacity_bytes{DEPOT}")),
    ),
    number(
        "Chunks refused",
        "Share of the chunks for which a store found no slot.",
        "percentunit",
        share(rate(_REFUSED), f"({rate(_REFUSED)} + {rate(_STORED)})"),
        *(0.001, 0.01),
    ),
    number(
        "Lookup, p99",
        "99 of 100 lookups are answered within this time. Each request waits for it before its first token.",
        "s",
        quantile(0.99, _LOOKUP_BUCKET),
        *(0.025, 0.1),
    ),
    number(
        "Calls failed",
        "Share of the calls that ended with INTERNAL, UNKNOWN, DATA_LOSS or DEADLINE_EXCEEDED.",
        "percentunit",
        share(or_zero(rate(_FAILED)), rate(_CALLS)),
        *(0.001, 0.01),
    ),
    number(
        "Events dropped",
        "Per second. Metrics that are counted from events lack these.",
        "short",
        or_zero(rate(_DROPPED)),
        *(0.1, 100),
    ),
)
_HITS = (
    areas(
        "Tokens looked up",
        "Hits by tier, and misses by the reason why the match ended. Evicted: L1 was too small. Never stored: the "
        "prompt is new. Rank missing: a rank is not attached, or stored less than the others.",
        "short",
        {"hit: {{tier}}": rate(_MATCHED, "tier"), "miss: {{reason}}": rate(_MISSED, "reason")},
    ),
    lines(
        "Hit ratio by model",
        "Share of the looked-up tokens that were found.",
        "percentunit",
        {"{{model_name}}": share(rate(_MATCHED, "model_name"), rate(_PROMPT_TOKENS, "model_name"))},
    ),
    areas(
        "Tokens saved",
        "Tokens per second that were retrieved instead of prefilled. Each rank counts its own.",
        "short",
        {"{{model_name}} {{tier}}": rate(_RETRIEVED, "model_name", "tier")},
    ),
    lines(
        "Hit ratio by instance",
        "Share of an instance's looked-up tokens that were found. One far below the others gets other prompts, or has "
        "another cache identity.",
        "percentunit",
        {"{{instance_id}}": share(rate(_INSTANCE_MATCHED, "instance_id"), rate(_INSTANCE_TOKENS, "instance_id"))},
    ),
    areas(
        "Prefill saved",
        "Seconds of prefill saved in each second: the tokens that an instance retrieved, divided by the rate at "
        "which it prefills. Nothing is counted while that rate is not known.",
        "short",
        {"{{instance_id}}": rate(_PREFILL_SAVED, "instance_id")},
    ),
    lines(
        "Prefill rate",
        "Tokens of a prompt that an instance computes in a second, as its engine reports or as the depot measures it.",
        "short",
        {"{{instance_id}} {{source}}": total(_PREFILL_RATE, "instance_id", "source")},
    ),
    areas(
        "Tokens in stores",
        "Resident: L1 had them. Refused: no slot became free in time. Tail: less than a chunk, which is never stored.",
        "short",
        {"{{result}}": rate("kvdepot_store_tokens_total{MODEL}", "result")},
    ),
    lines(
        "Operations",
        "Lookups, stores and retrieves, by their outcome.",
        "ops",
        {"{{operation}} {{outcome}}": rate("kvdepot_operations_total{MODEL}", "operation", "outcome")},
    ),
    lines(
        "Operations, p99",
        "From a valid request to its answer. Waits for other stores and for the engine's event are included.",
        "s",
        {"{{operation}}": quantile(0.99, "kvdepot_operation_duration_seconds_bucket{MODEL}", "operation")},
    ),
)
_TRANSFERS = (
    areas(
        "Bytes moved",
        "Between the engines' blocks and chunks. Store: out of the blocks; retrieve: into them.",
        "Bps",
        {"{{direction}} {{backend}}": rate(_TRANSFERRED, "direction", "backend")},
    ),
    heat(
        "Throughput of a transfer",
        "Bytes of a transfer divided by its duration, waits included. Small transfers are slower than large ones.",
        "Bps",
        "kvdepot_transfer_throughput_bytes_per_second_bucket{DEPOT}",
    ),
    lines(
        "Throughput of all transfers",
        "All bytes divided by the time of all transfers. Below 1 GB/s a retrieve may take as long as a prefill.",
        "Bps",
        {
            "{{direction}} {{backend}}": share(
                rate(_TRANSFERRED, "direction", "backend"),
                rate(_TRANSFER.format("sum").replace("}", ', outcome="ok"}'), "direction", "backend"),
            )
        },
    ),
    lines(
        "Duration of a transfer",
        "Waits included.",
        "s",
        {
            "p50 {{direction}}": quantile(0.5, _TRANSFER.format("bucket"), "direction"),
            "p99 {{direction}}": quantile(0.99, _TRANSFER.format("bucket"), "direction"),
        },
    ),
    lines(
        "Phases of a transfer",
        "Average. Wait: for a thread, a stream or the engine. Gather, scatter: between blocks and staging. Copy: to or "
        "from L1. Phases can overlap.",
        "s",
        {
            "{{direction}} {{step}}": share(
                rate(_STEP.format("sum"), "direction", "step"), rate(_STEP.format("count"), "direction", "step")
            )
        },
    ),
    lines(
        "Transfers",
        "Failed: the device or the engine's memory failed. Cancelled: the call was cancelled, or its engine died.",
        "ops",
        {"{{direction}} {{outcome}}": rate(_TRANSFER.format("count"), "direction", "outcome")},
    ),
)
_L1 = (
    lines(
        "L1",
        "Populated: pages that exist. A thread makes them after the start. Stores are slow where pages are missing.",
        "bytes",
        {
            "used": total("kvdepot_l1_used_bytes{DEPOT}"),
            "populated": total("kvdepot_l1_populated_bytes{DEPOT}"),
            "capacity": total("kvdepot_l1_capacity_bytes{DEPOT}"),
        },
    ),
    lines(
        "Chunks stored and removed",
        "Evicted: others needed the slot. Refused: no slot became free in time.",
        "ops",
        {
            "stored": rate(_STORED),
            "evicted": rate("kvdepot_l1_chunks_evicted_total{DEPOT}"),
            "refused": rate(_REFUSED),
            "cleared": rate("kvdepot_l1_chunks_cleared_total{DEPOT}"),
        },
    ),
    lines(
        "Chunks",
        "Protected: leased, read or written. If nearly all are, stores are refused. Adopted: taken over at the start. "
        "Without a record: no later depot can adopt them.",
        "short",
        {
            "resident": total("kvdepot_l1_chunks_resident{DEPOT}"),
            "protected": total("kvdepot_l1_chunks_protected{DEPOT}"),
            "adopted": total("kvdepot_l1_chunks_adopted_total{DEPOT}"),
            "not trusted": total("kvdepot_l1_chunks_not_adopted_total{DEPOT}"),
            "without a record": total("kvdepot_l1_chunks_without_record_total{DEPOT}"),
        },
    ),
    lines(
        "Stored again soon after eviction",
        "Share of the stored chunks that had left L1 shortly before. If many return within minutes, L1 is too small.",
        "percentunit",
        {
            f"within {label}": share(increase(_STORED_AGAIN.format(end)), increase(_STORED))
            for label, end in (("1 min", 60), ("5 min", 300), ("1 h", 3600))
        },
        limit=0.2,
    ),
    lines(
        "Chunks verified and corrupt",
        "At a retrieve, an inline retrieve, or by the scrub. If one is corrupt, test the machine's memory.",
        "ops",
        {
            "verified: {{hop}}": rate("kvdepot_l1_chunks_verified_total{DEPOT}", "hop"),
            "corrupt: {{hop}}": rate("kvdepot_l1_chunks_corrupt_total{DEPOT}", "hop"),
        },
    ),
    lines(
        "Scrub: chunks left",
        "Chunks that the running round of the scrub has not reached. A round begins every four hours.",
        "short",
        {"{{instance}}": total("kvdepot_l1_scrub_waiting{DEPOT}", "instance")},
    ),
    lines(
        "Scrub",
        "Bytes that the scrub reads in the background.",
        "Bps",
        {"{{instance}}": rate("kvdepot_l1_scrub_io_bytes_total{DEPOT}", "instance")},
    ),
    heat(
        "From eviction to being stored again",
        "Short times mean that L1 is too small.",
        "s",
        "kvdepot_l1_chunk_reuse_after_evict_seconds_bucket{MODEL}",
    ),
    heat(
        "Unused before a lookup leased it again",
        "L1 must keep chunks for this long to be hit.",
        "s",
        "kvdepot_l1_chunk_reuse_gap_seconds_bucket{MODEL}",
    ),
    heat(
        "Unused before eviction",
        "How long L1 keeps chunks.",
        "s",
        "kvdepot_l1_chunk_idle_before_evict_seconds_bucket{MODEL}",
    ),
    heat("Life of a chunk", "From store to eviction.", "s", "kvdepot_l1_chunk_lifetime_seconds_bucket{MODEL}"),
    lines(
        "Slots",
        "L1 is cut into slots as models arrive. A free slot fits its size of chunk, until its whole extent is free.",
        "short",
        {"{{state}}": total("kvdepot_l1_slots{DEPOT}", "state")},
    ),
)
_L0 = (
    heat(
        "Life of a block",
        "From the allocation of a block to the loss of its contents. Only sampled blocks count.",
        "s",
        "kvdepot_l0_block_lifetime_seconds_bucket{MODEL}",
    ),
    heat(
        "Unused before eviction",
        "From the release of a block by its last session to the loss of its contents. If this is seconds, the engine's "
        "own prefix cache loses a prompt before its next request, and L1 serves it.",
        "s",
        "kvdepot_l0_block_idle_before_evict_seconds_bucket{MODEL}",
    ),
    heat(
        "Unused before reuse",
        "From the last access of a released block to its reuse.",
        "s",
        "kvdepot_l0_block_reuse_gap_seconds_bucket{MODEL}",
    ),
    areas(
        "Blocks",
        "Reported blocks. Owned: a live session has them. Released: the next session could reuse their contents.",
        "short",
        {"{{state}}": total("kvdepot_l0_blocks{MODEL}", "state")},
    ),
    lines(
        "Changes of blocks",
        "Reuses and shares are hits of the engine's own prefix cache.",
        "ops",
        {
            what: rate(f"kvdepot_l0_block_{what}_total{{MODEL}}")
            for what in ("allocations", "evictions", "reuses", "shares")
        },
    ),
    lines(
        "Evictions by engine",
        "Blocks that lost their contents.",
        "ops",
        {"{{instance_id}}": rate("kvdepot_l0_block_evictions_total{MODEL}", "instance_id")},
    ),
)
_ATTACHMENTS = (
    lines(
        "Attached",
        "An instance is an engine's scheduler. Each of its ranks attaches by itself.",
        "short",
        {
            "ranks": total("kvdepot_attachments_live{DEPOT}"),
            "instances": total("kvdepot_instances_live{DEPOT}"),
        },
    ),
    lines(
        "Attachments that begin and end",
        "Lost: it had work left, as when the engine died. Failed: its device failed. Drained: the depot shut down.",
        "ops",
        {
            "begin": rate("kvdepot_attachments_started_total{MODEL}"),
            "end: {{reason}}": rate("kvdepot_attachments_ended_total{MODEL}", "reason"),
        },
    ),
    lines(
        "Engines' memory that is mapped",
        "Pages that the depot touches first are charged to the depot's cgroup.",
        "bytes",
        {"{{instance}}": total("kvdepot_attachments_mapped_bytes{DEPOT}", "instance")},
    ),
    lines(
        "Sessions",
        "Requests of the engines that use the cache or report their blocks.",
        "short",
        {"live": total("kvdepot_sessions_live{DEPOT}")},
    ),
    lines(
        "Sessions that begin and end",
        "Idle: the engine sent nothing for session_idle_timeout and did not end the session.",
        "ops",
        {
            "begin": rate("kvdepot_sessions_started_total{MODEL}"),
            "end: {{reason}}": rate("kvdepot_sessions_ended_total{MODEL}", "reason"),
        },
    ),
    lines(
        "Leases",
        "Expired: not released in time. Leased chunks are not evicted.",
        "short",
        {
            "live": total("kvdepot_leases_live{DEPOT}"),
            "granted each second": rate("kvdepot_leases_granted_total{DEPOT}"),
            "{{reason}} each second": rate("kvdepot_leases_ended_total{DEPOT}", "reason"),
        },
    ),
    lines(
        "Pinned bytes",
        "What PinPrefix keeps in L1. Pins of a tenant have a bound, and all pins together hold at most half of L1.",
        "bytes",
        {"pinned": total("kvdepot_l1_pinned_bytes{DEPOT}")},
    ),
    lines(
        "Pins",
        "Expired: no lookup matched all of the prompt in time. Lost: its chunks were found corrupt, or a tier failed.",
        "short",
        {
            "live": total("kvdepot_pins_live{DEPOT}"),
            "{{kind}} each second": rate("kvdepot_pins_pinned_total{DEPOT}", "kind"),
            "{{reason}} each second": rate("kvdepot_pins_ended_total{DEPOT}", "reason"),
        },
    ),
    lines(
        "Prefetched chunks",
        "Unused: no lookup matched the chunk within a minute. Failed: it did not come from its tier.",
        "ops",
        {"{{outcome}}": rate("kvdepot_prefetch_chunks_total{DEPOT}", "outcome")},
    ),
)
_RPCS = (
    lines(
        "Calls",
        "Without AttachInstance and WatchEvents, which stay open.",
        "reqps",
        {"{{rpc_method}}": rate(_CALLS, "rpc_method")},
    ),
    lines(
        "Calls that do not end with OK",
        "NOT_FOUND and FAILED_PRECONDITION: the client's fault. UNAVAILABLE: a drain. RESOURCE_EXHAUSTED: a limit.",
        "reqps",
        {"{{rpc_response_status_code}}": rate(_NOT_OK, "rpc_response_status_code")},
    ),
    lines(
        "Calls, p99",
        "Measured in the server. A store or retrieve includes its transfer.",
        "s",
        {"{{rpc_method}}": quantile(0.99, _CALL_BUCKET, "rpc_method")},
    ),
    lines(
        "Calls refused",
        "Every refused call by the reason in its error, including health checks and reflection.",
        "reqps",
        {"{{rpc_method}} {{reason}}": rate(_REFUSED_CALLS, "rpc_method", "reason")},
    ),
    lines(
        "Attaches refused",
        "These engines run without the cache. CallRefused in the log names each with its reason.",
        "reqps",
        {"{{instance}} {{reason}}": rate(_REFUSED_ATTACHES, "instance", "reason")},
    ),
    lines(
        "Stores refused",
        "Whole stores. The row of L1 counts chunks without a slot. CallRefused in the log names caller and reason.",
        "reqps",
        {"{{instance}} {{reason}}": rate(_REFUSED_STORES, "instance", "reason")},
    ),
    heat("Lookup", "Measured in the server.", "s", _LOOKUP_BUCKET),
    lines(
        "Running calls",
        "Calls beyond max_concurrent_rpcs are refused. Streams are attachments and event feeds.",
        "short",
        {"{{kind}}": total("kvdepot_rpcs_running{DEPOT}", "kind")},
    ),
    lines(
        "Event loop lag",
        "How late the event loop runs. All calls share it.",
        "s",
        {f"p{int(q * 100)} {{{{instance}}}}": quantile(q, _LAG_BUCKET, "instance") for q in (0.5, 0.99)},
        limit=0.1,
    ),
)
_EVENTS = (
    lines(
        "Events",
        "Dropped: the queue was full. Events never slow down calls.",
        "ops",
        {
            "published": rate("kvdepot_events_published_total{DEPOT}"),
            "delivered": rate("kvdepot_events_delivered_total{DEPOT}"),
            "dropped: {{event_type}}": rate(_DROPPED, "event_type"),
        },
    ),
    lines(
        "Event queue",
        "Fill of the queue. A full queue drops events.",
        "percentunit",
        {
            "{{instance}}": share(
                total("kvdepot_event_queue_depth{DEPOT}", "instance"),
                total("kvdepot_event_queue_capacity{DEPOT}", "instance"),
            )
        },
        limit=0.8,
    ),
    lines(
        "Errors of subscribers, and malformed block reports",
        "Batches of events that a subscriber failed to handle, and records of an engine that contradict each other.",
        "ops",
        {
            "{{subscriber}}": rate("kvdepot_subscriber_errors_total{DEPOT}", "subscriber"),
            "malformed records": rate("kvdepot_l0_records_malformed_total{DEPOT}"),
        },
    ),
)
_TENANTS = (
    lines(
        "Operations of tenants",
        "Only depots with a file of tenants have these series.",
        "ops",
        {"{{tenant}} {{operation}}": rate("kvdepot_tenant_operations_total{DEPOT}", "tenant", "operation")},
    ),
    areas(
        "Bytes that tenants move",
        "Stored and retrieved.",
        "Bps",
        {"{{tenant}} {{operation}}": rate("kvdepot_tenant_io_bytes_total{DEPOT}", "tenant", "operation")},
    ),
    areas(
        "L1 of tenants",
        "Bytes of the slots that hold a tenant's chunks.",
        "bytes",
        {"{{tenant}}": total("kvdepot_tenant_l1_used_bytes{DEPOT}", "tenant")},
    ),
    lines(
        "Running calls of tenants",
        "Calls beyond a tenant's limit are refused.",
        "short",
        {
            "{{tenant}} {{kind}}": total("kvdepot_tenant_rpcs_running{DEPOT}", "tenant", "kind"),
            "{{tenant}} {{reason}} each second": rate("kvdepot_tenant_rpcs_refused_total{DEPOT}", "tenant", "reason"),
        },
    ),
    lines(
        "Calls denied",
        "Calls without credentials, with wrong ones, or for the resources of another tenant.",
        "reqps",
        {"{{tenant}} {{reason}}": rate("kvdepot_access_denied_total{DEPOT}", "tenant", "reason")},
    ),
    lines(
        "Time left on the certificate",
        "The depot loads new files without a restart.",
        "s",
        {"{{instance}}": "min by (instance) (kvdepot_tls_certificate_time_left_seconds{DEPOT})"},
    ),
)
_PROCESS = (
    lines(
        "CPU",
        "In cores. The event loop uses one at most. Copies use up to transfer_threads in each direction.",
        "short",
        {"{{instance}} {{cpu_mode}}": rate("process_cpu_time_seconds_total{DEPOT}", "instance", "cpu_mode")},
    ),
    lines(
        "Memory",
        "Resident, including L1 and the mapped memory of engines.",
        "bytes",
        {"{{instance}}": total("process_memory_usage_bytes{DEPOT}", "instance")},
    ),
    lines(
        "Uptime",
        "A step down is a start. The row of L1 says what was adopted then.",
        "s",
        {"{{instance}}": total("process_uptime_seconds{DEPOT}", "instance")},
    ),
)

ROWS: Mapping[str, Sequence[Panel]] = {
    "Overview": _OVERVIEW,
    "Hits and misses": _HITS,
    "Transfers between blocks and chunks": _TRANSFERS,
    "L1: the depot's chunks": _L1,
    "What more memory would give": SIZING,
    "L2: the tiers behind L1": TIERS,
    "L0: the engines' blocks": _L0,
    "Attachments, sessions, leases": _ATTACHMENTS,
    "Calls": _RPCS,
    "Tenants and access": _TENANTS,
    "Event bus": _EVENTS,
    "KV events for routers": KV_EVENTS,
    "Process": _PROCESS,
}
"""Panels by the title of their row."""
