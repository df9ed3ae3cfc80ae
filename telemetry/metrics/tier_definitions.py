"""The definitions of the metrics of the tiers behind L1."""

from __future__ import annotations

from telemetry.metrics.boundaries import TIER_SECONDS
from telemetry.metrics.metric import Attribute, Metric, counter, gauge, histogram

NAME = Attribute("tier", "its name: the settings name each tier behind L1")
KIND = Attribute(
    "kind",
    "what keeps the chunks: how the tier's address begins",
    ("disk", "s3", "valkey", "valkeys", "redis", "rediss", "mooncake"),
)
STATE = Attribute(
    "state",
    "opening: not open yet; failing: it failed several times, and is tried again now and then; unusable: it can't be "
    "opened as the settings describe it",
    ("opening", "available", "failing", "unusable"),
)
WAY = Attribute("operation", "read: into L1; write: out of L1", ("read", "write"))
ASK_OUTCOME = Attribute("outcome", "whether the answer came", ("ok", "late", "failed"))
READ_OUTCOME = Attribute(
    "outcome",
    "absent: the tier does not have it; damaged: it has wrong bytes, which the depot deletes there; late: it took too "
    "long; unwanted: no call waited for it any more",
    ("arrived", "absent", "damaged", "late", "failed", "unwanted"),
)
WRITE_OUTCOME = Attribute(
    "outcome",
    "full: the tier has no space; late: it took too long; corrupt: the bytes in L1 are wrong, and are not written",
    ("ok", "full", "late", "failed", "corrupt"),
)
DROP_REASON = Attribute(
    "reason",
    "queue full: newer chunks waited; budget: the tier's bytes of the day are written; evicted: it left L1 first",
    ("queue full", "budget", "evicted", "tier unavailable", "shutdown"),
)
ROLE = Attribute("role", "what the process does", ("ask", "read", "write", "own"))
END_REASON = Attribute(
    "reason",
    "deadline: the depot killed it because a job took too long; crash: it ended by itself; protocol: it answered what "
    "can't be understood",
    ("deadline", "crash", "protocol"),
)


def duration(name: str, description: str, *attributes: Attribute) -> Metric:
    """Define a histogram of times that a tier takes."""
    return histogram(name, "s", description, NAME, *attributes, boundaries=TIER_SECONDS)


TIER_STATE = gauge("kvdepot.tier.state", "", "1 for the state of the tier, 0 for the others.", NAME, KIND, STATE)
TIER_USED = gauge(
    "kvdepot.tier.used", "By", "Bytes of the tier that hold chunks. Exists where the depot knows them.", NAME
)
TIER_CAPACITY = gauge(
    "kvdepot.tier.capacity", "By", "Bytes that the tier may use. Exists where the depot knows them.", NAME
)
TIER_RESIDENT = gauge(
    "kvdepot.tier.chunks.resident", "{chunk}", "Chunks in the tier. Exists where the depot knows them.", NAME
)
TIER_EVICTED = counter(
    "kvdepot.tier.chunks.evicted", "{chunk}", "Chunks that the depot evicted from the tier for others.", NAME
)
TIER_ASKED = counter("kvdepot.tier.chunks.asked", "{chunk}", "Chunks that lookups wanted from the tier.", NAME)
TIER_FOUND = counter("kvdepot.tier.chunks.found", "{chunk}", "Part of these that the tier has.", NAME)
TIER_READ = counter(
    "kvdepot.tier.chunks.read", "{chunk}", "Chunks that were to be read into L1, by how that ended.", NAME, READ_OUTCOME
)
TIER_WRITTEN = counter(
    "kvdepot.tier.chunks.written",
    "{chunk}",
    "Chunks that were to be written to the tier, by how that ended.",
    *(NAME, WRITE_OUTCOME),
)
TIER_DROPPED = counter(
    "kvdepot.tier.chunks.dropped", "{chunk}", "Chunks that were not written to the tier.", NAME, DROP_REASON
)
TIER_IO = counter("kvdepot.tier.io", "By", "Bytes of chunks that arrived in L1 or in the tier.", NAME, WAY)
TIER_RATE = gauge(
    "kvdepot.tier.throughput",
    "By/s",
    "How fast the tier reads or writes, as the depot measured it lately. Exists after the first one.",
    *(NAME, WAY),
)
TIER_QUEUED = gauge("kvdepot.tier.queue.chunks", "{chunk}", "Chunks that wait for an I/O worker.", NAME, WAY)
TIER_QUEUED_BYTES = gauge("kvdepot.tier.queue.size", "By", "Bytes of chunks that wait to be written.", NAME)
TIER_ASK_DURATION = duration(
    "kvdepot.tier.ask.duration",
    "Time that a lookup waited until the tier said what it has. Tiers of this machine are not asked.",
    ASK_OUTCOME,
)
TIER_WAIT = duration(
    "kvdepot.tier.wait.duration", "Time that a chunk waited until an I/O worker began to read or write it.", WAY
)
TIER_READ_DURATION = duration(
    "kvdepot.tier.read.duration", "Time that it took to read a chunk, without the wait.", READ_OUTCOME
)
TIER_WRITE_DURATION = duration(
    "kvdepot.tier.write.duration", "Time that it took to write a chunk, without the wait.", WRITE_OUTCOME
)
IO_WORKERS = gauge("kvdepot.tier.io_workers", "{process}", "I/O workers that run.", NAME)
IO_WORKERS_ENDED = counter(
    "kvdepot.tier.io_workers.ended", "{process}", "I/O workers that ended unexpectedly.", NAME, ROLE, END_REASON
)

TIER_METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""In the order in which they stand above."""
