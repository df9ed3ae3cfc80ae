"""The client of kvdepot, a node-local depot for the KV cache of inference engines.

    shared = SharedRegions()
    group = layouts.NL_X_TWO_NB_BS_NH_HS.from_tensors(kv_caches, shared)
    with DepotClient("unix:/run/kvdepot/kvdepot.sock") as client, client.attach(
        instance_id=pod_name, model_name=model, groups=[group], regions=shared.regions
    ) as attachment:
        found = attachment.lookup(request_id, token_ids)
        if found.HasField("lease"):
            attachment.retrieve(request_id, found.lease, [block_ids[: found.matched_tokens // block_size]])
        ...  # prefill what was not found
        attachment.store(request_id, token_ids, [block_ids])
        attachment.end_session(request_id)

On a GPU it is `cuda.CudaRegions` instead of `SharedRegions`, and `ready_event=cuda.ready_event(event)`.
`AsyncDepotClient` is the same for an event loop. The messages that methods take and return are in `kvdepot.v1`; the
comments of the .proto files are their manual. torch is never imported: only tensors that a caller passes are used.
"""

from __future__ import annotations

from kvdepot.aio.attachment import AsyncAttachment
from kvdepot.aio.client import AsyncDepotClient
from kvdepot.credentials import Credentials
from kvdepot.errors import DepotError, FieldViolation
from kvdepot.layout import layouts
from kvdepot.layout.shape import KvShape
from kvdepot.memory import cuda
from kvdepot.memory.shared_buffer import SharedBuffer
from kvdepot.memory.shared_regions import SharedRegions
from kvdepot.requests import allocation_record, block_table, hash_prefix, token_prefix
from kvdepot.sync.attachment import Attachment
from kvdepot.sync.client import DepotClient

__all__ = [
    "AsyncAttachment",
    "AsyncDepotClient",
    "Attachment",
    "Credentials",
    "DepotClient",
    "DepotError",
    "FieldViolation",
    "KvShape",
    "SharedBuffer",
    "SharedRegions",
    "allocation_record",
    "block_table",
    "cuda",
    "hash_prefix",
    "layouts",
    "token_prefix",
]
