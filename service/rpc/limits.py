"""Limits on the length of each field of a message. Engines need less, and so much can be checked quickly."""

from __future__ import annotations

from google.protobuf.descriptor import FieldDescriptor

from kernels.plan import MAX_PLANES

MAX_GROUPS = 256
MAX_REGIONS = MAX_PLANES  # each region has a plane at least
MAX_TABLES = MAX_GROUPS
MAX_TOKEN_IDS = 1 << 22  # 4 Mi tokens
MAX_BLOCK_HASHES = 1 << 18  # 4 Mi tokens in blocks of 16
MAX_RECORDS = 1 << 14  # an engine schedules hundreds of requests in a step
MAX_EVENT_TYPES = 256
MAX_FIELDS = 1 << 19
"""Fields of a whole message at any depth. Protobuf parses so many in 30 ms, in which the event loop stands still."""

MAX_UNKNOWN = 1 << 16  # repetitions of a field that only newer clients know
MAX_REPETITIONS = 1 << 10  # of a field that is not repeated: protobuf takes the last one

_MAX_COUNTS = {
    "kvdepot.v1.AttachInstanceRequest.groups": MAX_GROUPS,
    "kvdepot.v1.AttachInstanceRequest.regions": MAX_REGIONS,
    "kvdepot.v1.KvGroup.planes": MAX_PLANES,
    "kvdepot.v1.Prefix.token_ids": MAX_TOKEN_IDS,
    "kvdepot.v1.Prefix.block_hashes": MAX_BLOCK_HASHES,
    "kvdepot.v1.StoreRequest.block_tables": MAX_TABLES,
    "kvdepot.v1.RetrieveRequest.block_tables": MAX_TABLES,
    "kvdepot.v1.ReportBlockAllocationRequest.records": MAX_RECORDS,
    "kvdepot.v1.WatchEventsRequest.event_types": MAX_EVENT_TYPES,
}


def max_count(field: FieldDescriptor | None) -> int:
    """Return how often a field may occur in a message. None is an unknown field."""
    if field is None:
        return MAX_UNKNOWN
    return _MAX_COUNTS.get(field.full_name, MAX_FIELDS) if field.is_repeated else MAX_REPETITIONS
