"""Decodes messages to plain values, and checks what a request alone can show to be wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from kernels.geometry import CudaIpc, Group, Plane, PlaneKind, PosixShm, ProcessFd, Region
from kernels.plan import MAX_PLANES
from kvdepot.v1 import cache_pb2
from service.depot.values import (
    AttachRequest,
    BlockTable,
    LookupRequest,
    RetrieveInlineRequest,
    RetrieveRequest,
    StoreHeader,
    StoreRequest,
)
from service.l1.keys import MAX_CHUNK_SIZE, Prefix
from service.rpc.limits import MAX_BLOCK_HASHES, MAX_GROUPS, MAX_REGIONS, MAX_TABLES, MAX_TOKEN_IDS
from service.rpc.prefill_rate import prefill_rate
from service.rpc.violations import MAX_ID_BYTES, Violations, WithIds

MAX_NAME_BYTES = 512
MAX_WORLD_SIZE = 4096
HASH_BYTES = range(4, 65)
CUDA_HANDLE_BYTES = 64
PLANE_KINDS = frozenset(map(int, PlaneKind))
MAX_TOKENS = 2**31 - 1
WAIT_SHARE = 0.8
"""The share of a retrieve's time that it may wait for tiers. The rest is for the last copy and for the answer."""
_DTYPE_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_")


def attach_request(message: cache_pb2.AttachInstanceRequest, *, peer_is_known: bool) -> AttachRequest:
    """Return the request. `peer_is_known` is described at `AttachRequest`.

    Raises: InvalidRequest.
    """
    wrong = Violations()
    wrong.check_text("instance_id", message.instance_id, max_bytes=MAX_ID_BYTES)
    wrong.check_text("model_name", message.model_name, max_bytes=MAX_NAME_BYTES)
    wrong.check_text("model_revision", message.model_revision, max_bytes=MAX_ID_BYTES, required=False)
    wrong.check_text("block_hash_seed", message.block_hash_seed, max_bytes=MAX_ID_BYTES, required=False)
    if not 1 <= message.world_size <= MAX_WORLD_SIZE:
        wrong.add("world_size", f"is {message.world_size}, not 1 to {MAX_WORLD_SIZE}")
    if message.rank >= max(1, message.world_size):
        wrong.add("rank", f"is not below world_size {message.world_size}")
    if not 1 <= len(message.groups) <= MAX_GROUPS:
        wrong.add("groups", f"has {len(message.groups)}, not 1 to {MAX_GROUPS}")
    wrong.check_length("regions", message.regions, MAX_REGIONS)
    num_planes = sum(len(group.planes) for group in message.groups[:MAX_GROUPS])
    if num_planes > MAX_PLANES:
        wrong.add("groups", f"have {num_planes} planes, more than {MAX_PLANES}")
    if message.chunk_size > MAX_CHUNK_SIZE:
        wrong.add("chunk_size", f"is {message.chunk_size}, more than {MAX_CHUNK_SIZE}")
    rate = prefill_rate(wrong, message)
    wrong.raise_any()
    regions = tuple(_region(wrong, f"regions[{n}]", region) for n, region in enumerate(message.regions))
    groups = tuple(_group(wrong, f"groups[{n}]", group) for n, group in enumerate(message.groups))
    wrong.raise_any()
    return AttachRequest(
        instance_id=message.instance_id,
        model_name=message.model_name,
        world_size=message.world_size,
        rank=message.rank,
        groups=groups,
        regions=tuple(region for region in regions if region is not None),
        peer_is_known=peer_is_known,
        prefill_tokens_per_second=rate,
        model_revision=message.model_revision,
        block_hash_seed=message.block_hash_seed,
        chunk_size=message.chunk_size,
    )


def _group(wrong: Violations, field: str, message: cache_pb2.KvGroup) -> Group:
    if not (1 <= len(message.dtype) <= 64 and _DTYPE_LETTERS.issuperset(message.dtype)):
        wrong.add(f"{field}.dtype", "is not a name of 1 to 64 lower case letters, digits and _")
    planes = []
    for n, plane in enumerate(message.planes):
        is_known = plane.kind in PLANE_KINDS
        if not is_known:
            wrong.add(f"{field}.planes[{n}].kind", "is not K, V, LATENT or KV")
        kind = PlaneKind(plane.kind) if is_known else PlaneKind.K
        planes.append(Plane(layer=plane.layer, kind=kind, region=plane.region, offset_bytes=plane.offset_bytes))
    return Group(
        num_layers=message.num_layers,
        num_blocks=message.num_blocks,
        block_size=message.block_size,
        num_heads=message.num_heads,
        head_bytes=message.head_bytes,
        dtype=message.dtype,
        block_stride_bytes=message.block_stride_bytes,
        token_stride_bytes=message.token_stride_bytes,
        head_stride_bytes=message.head_stride_bytes,
        planes=tuple(planes),
        holds_state=message.holds_state,
    )


def _region(wrong: Violations, field: str, message: cache_pb2.MemoryRegion) -> Region | None:
    if not message.size_bytes:
        wrong.add(f"{field}.size_bytes", "is 0")
    match message.WhichOneof("handle"):
        case "posix_shm":
            return Region(message.size_bytes, PosixShm(message.posix_shm.name))
        case "process_fd":
            if message.process_fd.pid <= 0:
                wrong.add(f"{field}.process_fd.pid", "is 0")
            return Region(message.size_bytes, ProcessFd(message.process_fd.pid, message.process_fd.fd))
        case "cuda_ipc":
            ipc = message.cuda_ipc
            if len(ipc.handle) != CUDA_HANDLE_BYTES:
                wrong.add(f"{field}.cuda_ipc.handle", f"has {len(ipc.handle)} bytes, not {CUDA_HANDLE_BYTES}")
            if not ipc.device_uuid:
                wrong.add(f"{field}.cuda_ipc.device_uuid", "is missing")
            return Region(message.size_bytes, CudaIpc(ipc.handle, ipc.offset_bytes, ipc.device_uuid))
        case _:
            wrong.add(f"{field}.handle", "is missing")
            return None


def lookup_request(message: cache_pb2.LookupRequest) -> LookupRequest:
    """Return the request of a lookup.

    Raises: InvalidRequest.
    """
    wrong = Violations()
    wrong.check_ids(message)
    prefix = prefix_of(wrong, "prefix", message.prefix)
    max_wait_seconds = message.max_wait.seconds + message.max_wait.nanos / 1e9
    if max_wait_seconds < 0:
        wrong.add("max_wait", "is negative")
    rate = prefill_rate(wrong, message)
    wrong.raise_any()
    return LookupRequest(
        instance_id=message.instance_id,
        session_id=message.session_id,
        prefix=prefix,
        computed_tokens=message.computed_tokens,
        max_wait_seconds=max_wait_seconds,
        prefill_tokens_per_second=rate,
        will_continue=_will_continue(message),
    )


def store_request(message: cache_pb2.StoreRequest) -> StoreRequest:
    """Return the request of a store.

    Raises: InvalidRequest.
    """
    wrong = Violations()
    _ready_event(wrong, message.ready_event)
    wrong.check_length("block_tables", message.block_tables, MAX_TABLES)
    header = store_header(message, wrong=wrong)
    return StoreRequest(header=header, block_tables=_tables(message.block_tables), ready_event=message.ready_event)


def store_header(
    message: cache_pb2.StoreRequest | cache_pb2.StoreInlineHeader, path: str = "", wrong: Violations | None = None
) -> StoreHeader:
    """Return the header. `path` precedes the names of its fields, and `wrong` has earlier violations.

    Raises: InvalidRequest.
    """
    wrong = wrong or Violations()
    wrong.check_ids(message, path)
    prefix = prefix_of(wrong, f"{path}prefix", message.prefix)
    wrong.raise_any()
    return StoreHeader(
        instance_id=message.instance_id,
        rank=message.rank,
        session_id=message.session_id,
        prefix=prefix,
        start_token=message.start_token,
        path=path,
        will_continue=_will_continue(message),
    )


def _will_continue(
    message: cache_pb2.LookupRequest | cache_pb2.StoreRequest | cache_pb2.StoreInlineHeader,
) -> bool | None:
    return message.will_continue if message.HasField("will_continue") else None


def retrieve_request(message: cache_pb2.RetrieveRequest, remaining_seconds: float | None) -> RetrieveRequest:
    """Return the request of a retrieve, whose caller waits for so long. None: it sets no limit.

    Raises: InvalidRequest.
    """
    wrong = Violations()
    wrong.check_ids(message)
    wrong.check_text("lease_id", message.lease_id, max_bytes=MAX_ID_BYTES)
    _ready_event(wrong, message.ready_event)
    wrong.check_length("block_tables", message.block_tables, MAX_TABLES)
    wrong.raise_any()
    return RetrieveRequest(
        instance_id=message.instance_id,
        rank=message.rank,
        session_id=message.session_id,
        lease_id=message.lease_id,
        block_tables=_tables(message.block_tables),
        skip_tokens=message.skip_tokens,
        ready_event=message.ready_event,
        accept_partial=message.accept_partial,
        longest_wait_seconds=math.inf if remaining_seconds is None else WAIT_SHARE * remaining_seconds,
    )


def retrieve_inline_request(message: cache_pb2.RetrieveInlineRequest) -> RetrieveInlineRequest:
    """Return the request of an inline retrieve.

    Raises: InvalidRequest.
    """
    wrong = Violations()
    wrong.check_ids(message)
    wrong.check_text("lease_id", message.lease_id, max_bytes=MAX_ID_BYTES)
    wrong.raise_any()
    return RetrieveInlineRequest(
        instance_id=message.instance_id,
        rank=message.rank,
        session_id=message.session_id,
        lease_id=message.lease_id,
        skip_tokens=message.skip_tokens,
    )


def instance_id(message: cache_pb2.DetachInstanceRequest) -> str:
    """Return the instance id.

    Raises: InvalidRequest.
    """
    wrong = Violations()
    wrong.check_text("instance_id", message.instance_id, max_bytes=MAX_ID_BYTES)
    wrong.raise_any()
    return message.instance_id


def session_ids(message: WithIds) -> tuple[str, str]:
    """Return the instance id and the session id.

    Raises: InvalidRequest.
    """
    wrong = Violations()
    wrong.check_ids(message)
    wrong.raise_any()
    return message.instance_id, message.session_id


def prefix_of(wrong: Violations, field: str, message: cache_pb2.Prefix) -> Prefix:
    """Return the prefix. It is not usable if a violation was noted."""
    num_tokens, num_hashes = len(message.token_ids), len(message.block_hashes)
    wrong.check_length(f"{field}.token_ids", message.token_ids, MAX_TOKEN_IDS)
    wrong.check_length(f"{field}.block_hashes", message.block_hashes, MAX_BLOCK_HASHES)
    block_hashes = tuple(message.block_hashes) if 0 < num_hashes <= MAX_BLOCK_HASHES else ()
    if not num_tokens and not num_hashes:
        wrong.add(field, "has neither token_ids nor block_hashes")
    if num_hashes:
        if 0 < num_tokens < num_hashes * message.hash_block_size:
            wanted = num_hashes * message.hash_block_size
            wrong.add(f"{field}.token_ids", f"has {num_tokens} tokens, and the block_hashes are of {wanted}")
        _check_hashes(wrong, field, block_hashes, num_hashes, message.hash_block_size)
    elif message.hash_block_size:
        wrong.add(f"{field}.hash_block_size", "is set without block_hashes")
    if message.cache_salt or message.adapter:
        wrong.check_text(f"{field}.cache_salt", message.cache_salt, max_bytes=MAX_ID_BYTES, required=False)
        wrong.check_text(f"{field}.adapter", message.adapter, max_bytes=MAX_NAME_BYTES, required=False)
    return Prefix(
        token_ids=np.array(message.token_ids, dtype=np.uint32),
        block_hashes=block_hashes,
        hash_block_size=message.hash_block_size,
        cache_salt=message.cache_salt,
        adapter=message.adapter,
    )


def _check_hashes(
    wrong: Violations, field: str, block_hashes: Sequence[bytes], num_hashes: int, hash_block_size: int
) -> None:
    if not hash_block_size:
        wrong.add(f"{field}.hash_block_size", "is missing")
    if not all(length in HASH_BYTES for length in set(map(len, block_hashes))):
        description = f"has a hash that is not {HASH_BYTES.start} to {HASH_BYTES.stop - 1} bytes long"
        wrong.add(f"{field}.block_hashes", description)
    if num_hashes * hash_block_size > MAX_TOKENS:
        wrong.add(f"{field}.hash_block_size", f"makes the prompt longer than {MAX_TOKENS} tokens")


def _tables(messages: Iterable[cache_pb2.BlockTable]) -> Sequence[BlockTable]:
    return [
        BlockTable(absent_blocks=message.absent_blocks, block_ids=np.array(message.block_ids, dtype=np.int64))
        for message in messages
    ]


def _ready_event(wrong: Violations, ready_event: bytes) -> None:
    if len(ready_event) not in (0, CUDA_HANDLE_BYTES):
        wrong.add("ready_event", f"has {len(ready_event)} bytes, not {CUDA_HANDLE_BYTES}, nor is it empty")
