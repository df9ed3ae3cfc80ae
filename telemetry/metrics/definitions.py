"""The definition of every metric. Those of hits, tiers, recordings, KV events and sizing have files of their own."""

from __future__ import annotations

from telemetry.metrics import attributes as by
from telemetry.metrics import boundaries
from telemetry.metrics.hit_definitions import HIT_METRICS
from telemetry.metrics.kv_event_definitions import KV_EVENT_METRICS
from telemetry.metrics.metric import Attribute, Metric, counter, gauge, histogram
from telemetry.metrics.recording_definitions import RECORDING_METRICS
from telemetry.metrics.sizing_definitions import SIZING_METRICS
from telemetry.metrics.tier_definitions import TIER_METRICS


def lifecycle(name: str, description: str, *attributes: Attribute) -> Metric:
    """Define a histogram of times in the life of a chunk or a block."""
    return histogram(name, "s", description, *attributes, boundaries=boundaries.LIFECYCLE_SECONDS)


def call_duration(name: str, description: str, *attributes: Attribute) -> Metric:
    """Define a histogram of times that calls took."""
    return histogram(name, "s", description, *attributes, boundaries=boundaries.CALL_SECONDS)


# Operations

OPERATIONS = counter("kvdepot.operations", "{operation}", "Operations that ended.", by.OPERATION, by.OUTCOME, by.MODEL)
OPERATION_DURATION = call_duration(
    "kvdepot.operation.duration",
    "Time that operations took, from a valid request to its answer, waits included.",
    *(by.OPERATION, by.OUTCOME, by.MODEL),
)
OPERATION_IO = counter(
    "kvdepot.operation.io", "By", "Bytes of the chunks that were stored and retrieved.", by.MOVE, by.MODEL
)
LOOKUP_TOKENS = counter("kvdepot.lookup.tokens", "{token}", "Tokens that were looked up.", by.MODEL)
LOOKUP_MATCHED = counter("kvdepot.lookup.matched_tokens", "{token}", "Tokens that a lookup found.", by.TIER, by.MODEL)
LOOKUP_MISSED = counter(
    "kvdepot.lookup.missed_tokens",
    "{token}",
    "Tokens that a lookup did not find, by the reason that the match is not longer. No answer: the lookup failed.",
    *(by.MISS_REASON, by.MODEL),
)
STORE_TOKENS = counter("kvdepot.store.tokens", "{token}", "Tokens that engines sent to be stored.", by.RESULT, by.MODEL)
STORE_REFUSALS = counter(
    "kvdepot.store.refusals", "{operation}", "Stores with refused chunks.", by.REFUSAL_REASON, by.MODEL
)
RETRIEVE_TOKENS = counter("kvdepot.retrieve.tokens", "{token}", "Tokens that were retrieved.", by.TIER, by.MODEL)

# Transfers

TRANSFER_DURATION = call_duration(
    "kvdepot.transfer.duration",
    "Time that transfers between blocks and chunks took, waits included.",
    *(by.DIRECTION, by.BACKEND, by.OUTCOME),
)
TRANSFER_STEP_DURATION = call_duration(
    "kvdepot.transfer.step.duration",
    "Time from the first start to the last end of one kind of work within a transfer.",
    *(by.DIRECTION, by.BACKEND, by.STEP),
)
TRANSFER_THROUGHPUT = histogram(
    "kvdepot.transfer.throughput",
    "By/s",
    "Bytes of a successful transfer divided by its duration.",
    *(by.DIRECTION, by.BACKEND),
    boundaries=boundaries.THROUGHPUT,
)
TRANSFER_IO = counter("kvdepot.transfer.io", "By", "Bytes that successful transfers moved.", by.DIRECTION, by.BACKEND)

# L1

L1_USED = gauge("kvdepot.l1.used", "By", "Bytes of the slots that hold chunks.")
L1_CAPACITY = gauge("kvdepot.l1.capacity", "By", "Bytes that L1 has.")
L1_POPULATED = gauge("kvdepot.l1.populated", "By", "Bytes of L1 whose memory pages exist.")
L1_SLOTS = gauge("kvdepot.l1.slots", "{slot}", "Slots that L1 is cut into so far.", by.SLOT_STATE)
L1_RESIDENT = gauge("kvdepot.l1.chunks.resident", "{chunk}", "Chunks that a lookup can find.")
L1_PROTECTED = gauge(
    "kvdepot.l1.chunks.protected",
    "{chunk}",
    "Chunks that can't be evicted: leased, pinned, being read or being written.",
)
L1_PINNED_CHUNKS = gauge("kvdepot.l1.chunks.pinned", "{chunk}", "Chunks that pins protect.")
L1_PINNED = gauge("kvdepot.l1.pinned", "By", "Bytes of the slots of chunks that pins protect.")
L1_STORED = counter("kvdepot.l1.chunks.stored", "{chunk}", "Chunks that were stored.", by.MODEL)
L1_EVICTED = counter("kvdepot.l1.chunks.evicted", "{chunk}", "Chunks that were evicted for others.")
L1_REFUSED = counter("kvdepot.l1.chunks.refused", "{chunk}", "Chunks that were to be stored and were refused.")
L1_CLEARED = counter("kvdepot.l1.chunks.cleared", "{chunk}", "Chunks that ClearCache removed.")
L1_VERIFIED = counter("kvdepot.l1.chunks.verified", "{chunk}", "Comparisons that found a chunk's bytes right.", by.HOP)
L1_CORRUPT = counter("kvdepot.l1.chunks.corrupt", "{chunk}", "Chunks that were dropped for wrong bytes.", by.HOP)
SCRUB_IO = counter("kvdepot.l1.scrub.io", "By", "Bytes of L1 that the scrub read.")
SCRUB_WAITING = gauge("kvdepot.l1.scrub.waiting", "{chunk}", "Chunks that are left of the scrub's running round.")
SCRUB_AGE = gauge(
    "kvdepot.l1.scrub.age", "s", "Since the end of the last complete round of the scrub. Exists after the first round."
)
L1_ADOPTED = counter("kvdepot.l1.chunks.adopted", "{chunk}", "Chunks that the depot took over when it started.")
L1_NOT_ADOPTED = counter(
    "kvdepot.l1.chunks.not_adopted",
    "{chunk}",
    "Records of chunks that the depot found when it started and did not trust.",
    by.ADOPTION_DOUBT,
)
L1_WITHOUT_RECORD = counter(
    "kvdepot.l1.chunks.without_record",
    "{chunk}",
    "Chunks that were stored without a record, because the tables of L1 are full: no later depot can adopt them.",
)
L1_UNZEROED = gauge(
    "kvdepot.l1.unzeroed", "By", "Bytes of removed tenants that are not zeros yet. Their slots are taken."
)
L1_IN_FILE = gauge("kvdepot.l1.in_file", "", "1 if L1 is in a named file, which outlives the depot; else 0.")
CHUNK_LIFETIME = lifecycle("kvdepot.l1.chunk.lifetime", "From the store of a chunk to its eviction.", by.MODEL, by.TIER)
CHUNK_IDLE = lifecycle(
    "kvdepot.l1.chunk.idle_before_evict", "From the last use of a chunk to its eviction.", by.MODEL, by.TIER
)
CHUNK_REUSE_GAP = lifecycle(
    "kvdepot.l1.chunk.reuse_gap",
    "How long a chunk without a lease was unused when a lookup leased it.",
    *(by.MODEL, by.TIER),
)
CHUNK_REUSE_AFTER_EVICT = lifecycle(
    "kvdepot.l1.chunk.reuse_after_evict",
    "From the eviction of a chunk to its next store. Short times mean that L1 is too small.",
    *(by.MODEL, by.TIER),
)

# Leases, pins, sessions, attachments

LEASES_LIVE = gauge("kvdepot.leases.live", "{lease}", "Leases that protect chunks.")
LEASES_GRANTED = counter("kvdepot.leases.granted", "{lease}", "Leases that were granted.")
LEASES_ENDED = counter("kvdepot.leases.ended", "{lease}", "Leases that ended.", by.LEASE_END)
PINS_LIVE = gauge("kvdepot.pins.live", "{pin}", "Pins that protect chunks.")
PINS_PINNED = counter("kvdepot.pins.pinned", "{call}", "Calls of PinPrefix that pinned chunks.", by.PIN_KIND)
PINS_ENDED = counter("kvdepot.pins.ended", "{pin}", "Pins that ended.", by.PIN_END)
PREFETCHED = counter(
    "kvdepot.prefetch.chunks",
    "{chunk}",
    "Chunks that prefetches loaded, once it is clear what became of them.",
    by.PREFETCH_OUTCOME,
)
SESSIONS_LIVE = gauge("kvdepot.sessions.live", "{session}", "Sessions that have not ended.")
SESSIONS_STARTED = counter("kvdepot.sessions.started", "{session}", "Sessions that began.", by.MODEL)
SESSIONS_ENDED = counter("kvdepot.sessions.ended", "{session}", "Sessions that ended.", by.SESSION_END, by.MODEL)
INSTANCES_LIVE = gauge("kvdepot.instances.live", "{instance}", "Instances with an attached rank.")
ATTACHMENTS_LIVE = gauge("kvdepot.attachments.live", "{attachment}", "Ranks that are attached.")
ATTACHMENTS_STARTED = counter(
    "kvdepot.attachments.started", "{attachment}", "Ranks that attached.", by.BACKEND, by.MODEL
)
ATTACHMENTS_ENDED = counter(
    "kvdepot.attachments.ended", "{attachment}", "Ranks that detached.", by.DETACH_REASON, by.MODEL
)
ATTACHMENTS_MAPPED = gauge("kvdepot.attachments.mapped", "By", "Bytes of the engines' memory that are mapped.")

# The engines' blocks

BLOCKS = gauge(
    "kvdepot.l0.blocks",
    "{block}",
    "Blocks of the engines that the engines reported.",
    *(by.INSTANCE, by.MODEL, by.BLOCK_STATE),
)
BLOCK_ALLOCATIONS = counter(
    "kvdepot.l0.block.allocations", "{block}", "Blocks that got new contents.", by.INSTANCE, by.MODEL
)
BLOCK_REUSES = counter(
    "kvdepot.l0.block.reuses",
    "{block}",
    "Blocks without an owner whose contents were used again.",
    *(by.INSTANCE, by.MODEL),
)
BLOCK_SHARES = counter(
    "kvdepot.l0.block.shares", "{block}", "Blocks that got one more owner while they had one.", by.INSTANCE, by.MODEL
)
BLOCK_EVICTIONS = counter(
    "kvdepot.l0.block.evictions", "{block}", "Blocks whose contents were replaced.", by.INSTANCE, by.MODEL
)
BLOCK_LIFETIME = lifecycle(
    "kvdepot.l0.block.lifetime", "From the allocation of a block to the loss of its contents.", by.INSTANCE, by.MODEL
)
BLOCK_IDLE = lifecycle(
    "kvdepot.l0.block.idle_before_evict",
    "From the release of a block by its last session to the loss of its contents.",
    *(by.INSTANCE, by.MODEL),
)
BLOCK_REUSE_GAP = lifecycle(
    "kvdepot.l0.block.reuse_gap", "From the last access of a released block to its reuse.", by.INSTANCE, by.MODEL
)
MALFORMED_RECORDS = counter(
    "kvdepot.l0.records.malformed", "{record}", "Records of block reports that could not be followed to their end."
)

# Tenants and access. The metrics of tenants exist where the depot has tenants.

TENANT_OPERATIONS = counter(
    "kvdepot.tenant.operations", "{operation}", "Operations that ended.", by.OPERATION, by.OUTCOME, by.TENANT
)
TENANT_IO = counter(
    "kvdepot.tenant.io", "By", "Bytes of the chunks that were stored and retrieved.", by.MOVE, by.TENANT
)
TENANT_L1_USED = gauge("kvdepot.tenant.l1.used", "By", "Bytes of the slots that its chunks are in.", by.TENANT)
TENANT_PINNED_CHUNKS = gauge("kvdepot.tenant.l1.chunks.pinned", "{chunk}", "Chunks that its pins protect.", by.TENANT)
TENANT_PINNED = gauge(
    "kvdepot.tenant.l1.pinned", "By", "Bytes of the slots of chunks that its pins protect.", by.TENANT
)
TENANT_SESSIONS = gauge("kvdepot.tenant.sessions.live", "{session}", "Sessions that have not ended.", by.TENANT)
TENANT_RPCS = gauge("kvdepot.tenant.rpcs.running", "{call}", "Calls that run.", by.RPC_KIND, by.TENANT)
TENANT_IN_FLIGHT = gauge("kvdepot.tenant.in_flight", "By", "Bytes that move.", by.TENANT)
TENANT_REFUSED = counter(
    "kvdepot.tenant.rpcs.refused", "{call}", "Calls that a limit refused.", by.LIMIT_REASON, by.TENANT
)
DENIED = counter(
    "kvdepot.access.denied", "{call}", "Calls that their caller may not make.", by.DENIED_REASON, by.CALLER
)
FILES_READ = counter("kvdepot.files.read", "{read}", "Reads of a changed file.", by.FILE, by.READ_RESULT)
FILES_BROKEN = gauge(
    "kvdepot.files.broken",
    "{file}",
    "1 while the new content of a file can't be used and the content before it stays in use.",
    by.FILE,
)
CERTIFICATE_TIME_LEFT = gauge(
    "kvdepot.tls.certificate.time_left",
    "s",
    "Until the server's certificate ends. Exists where TCP is served with TLS.",
)

# The server

BUILD = gauge(
    "kvdepot.build_info",
    "",
    "1. Its attributes say what runs.",
    *(by.VERSION, by.PYTHON_VERSION, by.GRPC_VERSION, by.BACKENDS),
)
RPC_DURATION = call_duration(
    "rpc.server.call.duration",
    "Time that calls took in the server, without AttachInstance and WatchEvents, which stay open.",
    *(by.RPC_SYSTEM, by.RPC_METHOD, by.RPC_STATUS),
)
RPCS_RUNNING = gauge("kvdepot.rpcs.running", "{call}", "Calls of the depot's methods that run.", by.RPC_KIND)
RPCS_REFUSED = counter(
    "kvdepot.rpcs.refused",
    "{call}",
    "Calls that were refused, streams that stay open included.",
    *(by.REFUSED_METHOD, by.REFUSED_REASON),
)
DRAINING = gauge("kvdepot.draining", "", "1 while the depot finishes its work and takes no new work; else 0.")
EVENT_LOOP_LAG = histogram(
    "kvdepot.event_loop.lag",
    "s",
    "How late a timer ran that is due ten times a second.",
    boundaries=boundaries.LAG_SECONDS,
)
QUEUE_DEPTH = gauge("kvdepot.event_queue.depth", "{event}", "Events that wait for a subscriber.")
QUEUE_CAPACITY = gauge("kvdepot.event_queue.capacity", "{event}", "Events that may wait. More are dropped.")
QUEUE_LAG = gauge("kvdepot.event_queue.lag", "s", "Age of the oldest event that waits. 0 if none waits.")
EVENTS_PUBLISHED = counter("kvdepot.events.published", "{event}", "Events that were accepted.")
EVENTS_DELIVERED = counter("kvdepot.events.delivered", "{event}", "Events that every subscriber received.")
EVENTS_DROPPED = counter(
    "kvdepot.events.dropped",
    "{event}",
    "Events that were dropped because too many waited. Counts made from events lack them.",
    by.EVENT_TYPE,
)
SUBSCRIBER_ERRORS = counter(
    "kvdepot.subscriber.errors", "{error}", "Batches of events that a subscriber failed to handle.", by.SUBSCRIBER
)
LOG_LINES_DROPPED = counter(
    "kvdepot.log.lines.dropped",
    "{line}",
    "Lines of the log and of other output that were dropped: their reader was too slow, or the write failed.",
    by.STREAM,
)
PROCESS_CPU_TIME = counter("process.cpu.time", "s", "CPU time that the process used.", by.CPU_MODE)
PROCESS_MEMORY_USAGE = gauge("process.memory.usage", "By", "Bytes of resident memory, with L1.")
# Prometheus keeps _count for histograms.
PROCESS_OPEN_FILES = gauge(
    "process.open_file_descriptor.count",
    "{file_descriptor}",
    "Open file descriptors.",
    prometheus_stem="process.open_file_descriptors",
)
PROCESS_THREADS = gauge(
    "process.thread.count", "{thread}", "Threads of the process.", prometheus_stem="process.threads"
)
PROCESS_UPTIME = gauge("process.uptime", "s", "Time since the process was started.")
GC_COLLECTIONS = counter("cpython.gc.collections", "{collection}", "Runs of Python's garbage collector.", by.GENERATION)

_OWN = (value for value in list(globals().values()) if isinstance(value, Metric))
METRICS: tuple[Metric, ...] = (
    *_OWN,
    *HIT_METRICS,
    *RECORDING_METRICS,
    *KV_EVENT_METRICS,
    *TIER_METRICS,
    *SIZING_METRICS,
)
"""In the order in which they stand above, and then those of the other files."""
