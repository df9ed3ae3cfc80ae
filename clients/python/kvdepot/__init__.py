"""The client of kvdepot, a node-local depot for the KV cache of inference engines.

    shared = SharedRegions()
    group = layouts.NL_X_TWO_NB_BS_NH_HS.from_tensors(kv_caches, shared)
    with DepotClient("unix:/run/kvdepot/kvdepot.sock") as client, client.attach(
        instance_id=pod_name, model_name=model, model_revision=commit, groups=[group], regions=shared.regions
    ) as attachment:
        with attachment.session(request_id) as session:
            found = session.lookup(token_ids)
            num_ready = session.retrieve(found, [block_ids])  # 0 after a miss
            ...  # prefill token_ids[num_ready:]
            session.store(token_ids, [block_ids], start_token=num_ready)

On a GPU it is `cuda.CudaRegions` instead of `SharedRegions`, and `ready_event=cuda.ready_event(event)`.
`AsyncDepotClient` is the same for an event loop. The messages that methods take and return are in `kvdepot.v1`; the
comments of the .proto files are their manual. torch is never imported: only tensors that a caller passes are used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from kvdepot.version import __version__

if TYPE_CHECKING:
    from kvdepot.aio.attachment import AsyncAttachment
    from kvdepot.aio.client import AsyncDepotClient
    from kvdepot.aio.session import AsyncSession
    from kvdepot.credentials import Credentials
    from kvdepot.engine_under_test import EngineUnderTest
    from kvdepot.errors import ChunkCorrupt, ChunkLost, Closed, DepotError, FieldViolation, InvalidArgument
    from kvdepot.layout import layouts
    from kvdepot.layout.shape import KvShape
    from kvdepot.memory import cuda
    from kvdepot.memory.shared_buffer import SharedBuffer
    from kvdepot.memory.shared_regions import SharedRegions
    from kvdepot.requests import allocation_record, block_table, hash_prefix, token_prefix
    from kvdepot.sync.attachment import Attachment
    from kvdepot.sync.client import DepotClient
    from kvdepot.sync.session import Session

# Imported when first used, so that a command which needs little of this starts quickly.
_MODULES = {
    "allocation_record": "kvdepot.requests",
    "AsyncAttachment": "kvdepot.aio.attachment",
    "AsyncDepotClient": "kvdepot.aio.client",
    "AsyncSession": "kvdepot.aio.session",
    "Attachment": "kvdepot.sync.attachment",
    "block_table": "kvdepot.requests",
    "ChunkCorrupt": "kvdepot.errors",
    "ChunkLost": "kvdepot.errors",
    "Closed": "kvdepot.errors",
    "Credentials": "kvdepot.credentials",
    "cuda": "kvdepot.memory.cuda",
    "DepotClient": "kvdepot.sync.client",
    "DepotError": "kvdepot.errors",
    "EngineUnderTest": "kvdepot.engine_under_test",
    "FieldViolation": "kvdepot.errors",
    "hash_prefix": "kvdepot.requests",
    "InvalidArgument": "kvdepot.errors",
    "KvShape": "kvdepot.layout.shape",
    "layouts": "kvdepot.layout.layouts",
    "Session": "kvdepot.sync.session",
    "SharedBuffer": "kvdepot.memory.shared_buffer",
    "SharedRegions": "kvdepot.memory.shared_regions",
    "token_prefix": "kvdepot.requests",
}

__all__ = [
    "AsyncAttachment",
    "AsyncDepotClient",
    "AsyncSession",
    "Attachment",
    "ChunkCorrupt",
    "ChunkLost",
    "Closed",
    "Credentials",
    "DepotClient",
    "DepotError",
    "EngineUnderTest",
    "FieldViolation",
    "InvalidArgument",
    "KvShape",
    "Session",
    "SharedBuffer",
    "SharedRegions",
    "__version__",
    "allocation_record",
    "block_table",
    "cuda",
    "hash_prefix",
    "layouts",
    "token_prefix",
]


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_MODULES[name])
    found = module if module.__name__.endswith(f".{name}") else getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
