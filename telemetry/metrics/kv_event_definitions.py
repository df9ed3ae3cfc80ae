"""The definitions of the metrics of KV events for routers. They exist with the setting kv_events."""

from __future__ import annotations

from telemetry.metrics.metric import Attribute, Metric, counter, gauge

TYPE = Attribute("type", "of the KV event", ("BlockStored", "BlockRemoved", "AllBlocksCleared"))
MEDIUM = Attribute(
    "medium", "where the blocks are or were; empty for AllBlocksCleared", ("CPU_PINNED", "DISK", "EXTERNAL", "")
)
REASON = Attribute(
    "reason",
    "gap: the depot's queue of events was full; reader: one came, or had lost more than could be replayed",
    ("gap", "reader"),
)
OUTCOME = Attribute(
    "outcome",
    "whole: all that was asked for; too old: some of it was gone; abandoned: the reader took too long",
    ("whole", "too old", "abandoned"),
)

BATCHES = counter("kvdepot.kv_events.batches", "{batch}", "Batches of KV events that were published.")
EVENTS = counter("kvdepot.kv_events.events", "{event}", "KV events that were published.", TYPE, MEDIUM)
RETOLD = counter(
    "kvdepot.kv_events.retold", "{time}", "Times that readers had to forget all blocks and were told all again.", REASON
)
REPLAYS = counter("kvdepot.kv_events.replays", "{request}", "Requests of readers for batches that they lost.", OUTCOME)
SUBSCRIPTIONS = gauge("kvdepot.kv_events.subscriptions", "{subscription}", "Subscriptions of connected readers.")
CHUNKS = gauge("kvdepot.kv_events.chunks", "{chunk}", "Chunks whose blocks KV events can name.")
MEMORY = gauge("kvdepot.kv_events.memory", "By", "Memory of the hashes and tokens of these blocks.")
REPLAY_MEMORY = gauge("kvdepot.kv_events.replay_memory", "By", "Bytes of the batches that can be replayed.")
EXPIRED = counter(
    "kvdepot.kv_events.expired",
    "{chunk}",
    "Chunks whose blocks readers had to forget because kv_events_memory was used up.",
)

KV_EVENT_METRICS: tuple[Metric, ...] = (
    BATCHES,
    EVENTS,
    RETOLD,
    REPLAYS,
    SUBSCRIPTIONS,
    CHUNKS,
    MEMORY,
    REPLAY_MEMORY,
    EXPIRED,
)
