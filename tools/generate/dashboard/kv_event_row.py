"""The row of the dashboard that shows the KV events for routers."""

from __future__ import annotations

from tools.generate.dashboard.panels import areas, lines
from tools.generate.dashboard.queries import rate, total

KV_EVENTS = (
    lines(
        "Readers of KV events",
        "Subscriptions of connected readers. Fewer than the routers have: look at the network policy.",
        "short",
        {"{{instance}}": total("kvdepot_kv_events_subscriptions{DEPOT}", "instance")},
    ),
    areas(
        "KV events",
        "Events that were published. An event has the blocks of one chunk.",
        "ops",
        {"{{type}} {{medium}}": rate("kvdepot_kv_events_events_total{DEPOT}", "type", "medium")},
    ),
    lines(
        "Batches",
        "Messages that were published. Some events share one.",
        "ops",
        {"{{instance}}": rate("kvdepot_kv_events_batches_total{DEPOT}", "instance")},
    ),
    lines(
        "Readers that lost something",
        "Retold: readers had to forget all and were told all again, after a gap in the depot's queue of events, or "
        "for a reader that came. Replay: a reader asked for lost batches.",
        "ops",
        {
            "retold: {{reason}}": rate("kvdepot_kv_events_retold_total{DEPOT}", "reason"),
            "replay: {{outcome}}": rate("kvdepot_kv_events_replays_total{DEPOT}", "outcome"),
        },
    ),
    lines(
        "Chunks with a name",
        "Chunks whose blocks events can name. Those that expire in each second are in the cache, and readers have to "
        "forget them: kv_events_memory is too small.",
        "short",
        {
            "{{instance}}": total("kvdepot_kv_events_chunks{DEPOT}", "instance"),
            "{{instance}} expire": rate("kvdepot_kv_events_expired_total{DEPOT}", "instance"),
        },
    ),
    lines(
        "Memory of KV events",
        "Names of chunks, up to kv_events_memory, and batches for replays, up to kv_events_replay_size.",
        "bytes",
        {
            "{{instance}} names": total("kvdepot_kv_events_memory_bytes{DEPOT}", "instance"),
            "{{instance}} replays": total("kvdepot_kv_events_replay_memory_bytes{DEPOT}", "instance"),
        },
    ),
)
