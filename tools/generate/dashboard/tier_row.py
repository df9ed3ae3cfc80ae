"""The row of the dashboard that shows the tiers behind L1."""

from __future__ import annotations

from tools.generate.dashboard.panels import areas, lines
from tools.generate.dashboard.queries import quantile, rate, share, total

_ASKED = "kvdepot_tier_chunks_asked_total{DEPOT}"
_FOUND = "kvdepot_tier_chunks_found_total{DEPOT}"
_READ = "kvdepot_tier_chunks_read_total{DEPOT}"
_WRITTEN = "kvdepot_tier_chunks_written_total{DEPOT}"
_DROPPED = "kvdepot_tier_chunks_dropped_total{DEPOT}"
_IO = 'kvdepot_tier_io_bytes_total{{DEPOT, operation="{}"}}'
_ARRIVED = 'kvdepot_tier_read_duration_seconds_bucket{DEPOT, outcome="arrived"}'
_WRITE_OK = 'kvdepot_tier_write_duration_seconds_bucket{DEPOT, outcome="ok"}'
_WAIT = 'kvdepot_tier_wait_duration_seconds_bucket{{DEPOT, operation="{}"}}'
_ASK = "kvdepot_tier_ask_duration_seconds_bucket{DEPOT}"

TIERS = (
    areas(
        "Tokens hit by tier",
        "l2 is all tiers behind L1 together: L1 had these tokens no more, or another depot had stored them.",
        "short",
        {"{{tier}}": rate("kvdepot_lookup_matched_tokens_total{MODEL}", "tier")},
    ),
    lines(
        "Found",
        "Share of the chunks that a tier has, of those that lookups wanted from it.",
        "percentunit",
        {"{{tier}}": share(rate(_FOUND, "tier"), rate(_ASKED, "tier"))},
    ),
    lines(
        "Tiers that are not used",
        "Depots whose tier is in this state. Failing: it is tried now and then. Unusable: its settings are wrong.",
        "short",
        {"{{tier}} {{state}}": total('kvdepot_tier_state{DEPOT, state!="available"}', "tier", "state")},
    ),
    lines(
        "Bytes read and written",
        "Chunks that arrived in L1 or in the tier.",
        "Bps",
        {f"{way} {{{{tier}}}}": rate(_IO.format(way), "tier") for way in ("read", "write")},
    ),
    lines(
        "Chunks read",
        "Absent: the tier lost it. Damaged: its bytes are wrong, no engine got them. Late, failed: the tier's fault.",
        "ops",
        {"{{tier}} {{outcome}}": rate(_READ, "tier", "outcome")},
    ),
    lines(
        "Chunks written and dropped",
        "Dropped: the tier is slower than the stores, its budget of the day is used up, or it can't be used.",
        "ops",
        {
            "{{tier}} {{outcome}}": rate(_WRITTEN, "tier", "outcome"),
            "{{tier}} dropped: {{reason}}": rate(_DROPPED, "tier", "reason"),
        },
    ),
    lines(
        "Read of a chunk, p95",
        "Wait: until an I/O worker began to read it.",
        "s",
        {
            "{{tier}}": quantile(0.95, _ARRIVED, "tier"),
            "{{tier}} wait": quantile(0.95, _WAIT.format("read"), "tier"),
        },
    ),
    lines(
        "Write of a chunk, p95",
        "Wait: until an I/O worker began to write it. No call waits for a write.",
        "s",
        {
            "{{tier}}": quantile(0.95, _WRITE_OK, "tier"),
            "{{tier}} wait": quantile(0.95, _WAIT.format("write"), "tier"),
        },
    ),
    lines(
        "Question to a tier, p95",
        "Part of each lookup that L1 does not answer alone. Tiers of this machine are not asked.",
        "s",
        {"{{tier}} {{outcome}}": quantile(0.95, _ASK, "tier", "outcome")},
        limit=0.02,
    ),
    lines(
        "I/O workers that ended",
        "Deadline: a read or a write hung, so the depot killed the process that did it. A new one takes its place.",
        "ops",
        {"{{tier}} {{role}} {{reason}}": rate("kvdepot_tier_io_workers_ended_total{DEPOT}", "tier", "role", "reason")},
    ),
    lines(
        "Fill",
        "Tiers of this machine. The depot evicts from a full one.",
        "percentunit",
        {
            "{{instance}} {{tier}}": share(
                total("kvdepot_tier_used_bytes{DEPOT}", "instance", "tier"),
                total("kvdepot_tier_capacity_bytes{DEPOT}", "instance", "tier"),
            )
        },
    ),
    lines(
        "Bytes that wait to be written",
        "A full queue drops the oldest chunks.",
        "bytes",
        {"{{instance}} {{tier}}": total("kvdepot_tier_queue_size_bytes{DEPOT}", "instance", "tier")},
    ),
)
