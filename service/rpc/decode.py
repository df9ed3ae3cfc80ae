"""Messages to plain values. What is wrong with a request by itself, whoever is attached, is found here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from typing import Protocol

import numpy as np

from kernels.geometry import CudaIpc, Group, Plane, PlaneKind, PosixShm, ProcessFd, Region
from kernels.plan import MAX_PLANES
from kvdepot.v1 import cache_pb2, observability_pb2
from service.depot.values import (
    AttachRequest,
    BlockTable,
    LookupRequest,
    RetrieveInlineRequest,
    RetrieveRequest,
    StoreHeader,
    StoreRequest,
)
from service.errors import FieldViolation, InvalidRequest
from service.l1.keys import Prefix
from service.rpc.limits import (
    MAX_BLOCK_HASHES,
    MAX_GROUPS,
    MAX_RECORDS,
    MAX_REGIONS,
    MAX_TABLES,
    MAX_TOKEN_IDS,
)

MAX_UTF8_BYTES = 4  # of a character
MAX_ID_BYTES = 256
MAX_NAME_BYTES = 512
MAX_WORLD_SIZE = 4096
HASH_BYTES = range(4, 65)
CUDA_HANDLE_BYTES = 64
PLANE_KINDS = frozenset(map(int, PlaneKind))
MAX_TOKENS = 2**31 - 1
_DTYPE_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_")


class Violations:
    """Collects what is wrong with a request, so that a client is told all of it at once."""

    def __init__(self) -> None:
        self._violations: list[FieldViolation] = []

    def expect(self, holds: bool, field: str, description: str) -> None:
        """Note a violation of `field` unless something holds."""
        if not holds:
            self._violations.append(FieldViolation(field, description))

    def text(self, field: str, value: str, *, most_bytes: int, required: bool = True) -> None:
        """A string that is there and not too long."""
        if 0 < len(value) <= most_bytes // MAX_UTF8_BYTES:
            return
        self.expect(bool(value) or not required, field, "is missing")
        self.expect(len(value.encode()) <= most_bytes, field, f"is longer than {most_bytes} bytes")

    def at_most(self, most: int, field: str, values: Sized) -> None:
        """A field that is not there too often: to be expected before it is looked at."""
        self.expect(len(values) <= most, field, f"has {len(values)}, more than {most}")

    def raise_any(self) -> None:
        """Raise InvalidRequest if anything was noted."""
        if self._violations:
            raise InvalidRequest(*self._violations)


def attach_request(message: cache_pb2.AttachInstanceRequest, *, peer_is_known: bool) -> AttachRequest:
    """Raises: InvalidRequest."""
    wrong = Violations()
    wrong.text("instance_id", message.instance_id, most_bytes=MAX_ID_BYTES)
    wrong.text("model_name", message.model_name, most_bytes=MAX_NAME_BYTES)
    wrong.expect(
        1 <= message.world_size <= MAX_WORLD_SIZE, "world_size", f"is {message.world_size}, not 1 to {MAX_WORLD_SIZE}"
    )
    wrong.expect(message.rank < max(1, message.world_size), "rank", f"is not below world_size {message.world_size}")
    wrong.expect(1 <= len(message.groups) <= MAX_GROUPS, "groups", f"has {len(message.groups)}, not 1 to {MAX_GROUPS}")
    wrong.at_most(MAX_REGIONS, "regions", message.regions)
    num_planes = sum(len(group.planes) for group in message.groups[:MAX_GROUPS])
    wrong.expect(num_planes <= MAX_PLANES, "groups", f"have {num_planes} planes, more than {MAX_PLANES}")
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
    )


def _group(wrong: Violations, field: str, message: cache_pb2.KvGroup) -> Group:
    wrong.expect(
        1 <= len(message.dtype) <= 64 and _DTYPE_LETTERS.issuperset(message.dtype),
        f"{field}.dtype",
        "is not a name of 1 to 64 lower case letters, digits and _",
    )
    planes = []
    for n, plane in enumerate(message.planes):
        known = plane.kind in PLANE_KINDS
        wrong.expect(known, f"{field}.planes[{n}].kind", "is not K, V, LATENT or KV")
        kind = PlaneKind(plane.kind) if known else PlaneKind.K
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
    )


def _region(wrong: Violations, field: str, message: cache_pb2.MemoryRegion) -> Region | None:
    wrong.expect(message.size_bytes > 0, f"{field}.size_bytes", "is 0")
    match message.WhichOneof("handle"):
        case "posix_shm":
            return Region(message.size_bytes, PosixShm(message.posix_shm.name))
        case "process_fd":
            wrong.expect(message.process_fd.pid > 0, f"{field}.process_fd.pid", "is 0")
            return Region(message.size_bytes, ProcessFd(message.process_fd.pid, message.process_fd.fd))
        case "cuda_ipc":
            ipc = message.cuda_ipc
            wrong.expect(
                len(ipc.handle) == CUDA_HANDLE_BYTES,
                f"{field}.cuda_ipc.handle",
                f"has {len(ipc.handle)} bytes, not {CUDA_HANDLE_BYTES}",
            )
            wrong.expect(bool(ipc.device_uuid), f"{field}.cuda_ipc.device_uuid", "is missing")
            return Region(message.size_bytes, CudaIpc(ipc.handle, ipc.offset_bytes, ipc.device_uuid))
        case _:
            wrong.expect(False, f"{field}.handle", "is missing")
            return None


def lookup_request(message: cache_pb2.LookupRequest) -> LookupRequest:
    """Raises: InvalidRequest."""
    wrong = Violations()
    _ids(wrong, message)
    prefix = _prefix(wrong, "prefix", message.prefix)
    max_wait_seconds = message.max_wait.seconds + message.max_wait.nanos / 1e9
    wrong.expect(max_wait_seconds >= 0, "max_wait", "is negative")
    wrong.raise_any()
    return LookupRequest(
        instance_id=message.instance_id,
        session_id=message.session_id,
        prefix=prefix,
        computed_tokens=message.computed_tokens,
        max_wait_seconds=max_wait_seconds,
    )


def store_request(message: cache_pb2.StoreRequest) -> StoreRequest:
    """Raises: InvalidRequest."""
    wrong = Violations()
    _ready_event(wrong, message.ready_event)
    wrong.at_most(MAX_TABLES, "block_tables", message.block_tables)
    header = store_header(message, wrong=wrong)
    return StoreRequest(header=header, block_tables=_tables(message.block_tables), ready_event=message.ready_event)


def store_header(
    message: cache_pb2.StoreRequest | cache_pb2.StoreInlineHeader, path: str = "", wrong: Violations | None = None
) -> StoreHeader:
    """Raises: InvalidRequest, with fields that are named from `path` on, and with what is `wrong` already."""
    wrong = wrong or Violations()
    _ids(wrong, message, path)
    prefix = _prefix(wrong, f"{path}prefix", message.prefix)
    wrong.raise_any()
    return StoreHeader(
        instance_id=message.instance_id,
        rank=message.rank,
        session_id=message.session_id,
        prefix=prefix,
        start_token=message.start_token,
        path=path,
    )


def retrieve_request(message: cache_pb2.RetrieveRequest) -> RetrieveRequest:
    """Raises: InvalidRequest."""
    wrong = Violations()
    _ids(wrong, message)
    wrong.text("lease_id", message.lease_id, most_bytes=MAX_ID_BYTES)
    _ready_event(wrong, message.ready_event)
    wrong.at_most(MAX_TABLES, "block_tables", message.block_tables)
    wrong.raise_any()
    return RetrieveRequest(
        instance_id=message.instance_id,
        rank=message.rank,
        session_id=message.session_id,
        lease_id=message.lease_id,
        block_tables=_tables(message.block_tables),
        skip_tokens=message.skip_tokens,
        ready_event=message.ready_event,
    )


def retrieve_inline_request(message: cache_pb2.RetrieveInlineRequest) -> RetrieveInlineRequest:
    """Raises: InvalidRequest."""
    wrong = Violations()
    _ids(wrong, message)
    wrong.text("lease_id", message.lease_id, most_bytes=MAX_ID_BYTES)
    wrong.raise_any()
    return RetrieveInlineRequest(
        instance_id=message.instance_id,
        rank=message.rank,
        session_id=message.session_id,
        lease_id=message.lease_id,
        skip_tokens=message.skip_tokens,
    )


class _WithIds(Protocol):
    @property
    def instance_id(self) -> str: ...
    @property
    def session_id(self) -> str: ...


def instance_id(message: cache_pb2.DetachInstanceRequest) -> str:
    """The instance. Raises: InvalidRequest."""
    wrong = Violations()
    wrong.text("instance_id", message.instance_id, most_bytes=MAX_ID_BYTES)
    wrong.raise_any()
    return message.instance_id


def session_ids(message: _WithIds) -> tuple[str, str]:
    """The instance and the session. Raises: InvalidRequest."""
    wrong = Violations()
    _ids(wrong, message)
    wrong.raise_any()
    return message.instance_id, message.session_id


def _ids(wrong: Violations, message: _WithIds, path: str = "") -> None:
    wrong.text(f"{path}instance_id", message.instance_id, most_bytes=MAX_ID_BYTES)
    wrong.text(f"{path}session_id", message.session_id, most_bytes=MAX_ID_BYTES)


def _prefix(wrong: Violations, field: str, message: cache_pb2.Prefix) -> Prefix:
    """The prefix, which is worth nothing if anything is wrong with it."""
    num_tokens, num_hashes = len(message.token_ids), len(message.block_hashes)
    wrong.at_most(MAX_TOKEN_IDS, f"{field}.token_ids", message.token_ids)
    wrong.at_most(MAX_BLOCK_HASHES, f"{field}.block_hashes", message.block_hashes)
    block_hashes = tuple(message.block_hashes) if 0 < num_hashes <= MAX_BLOCK_HASHES else ()
    wrong.expect(bool(num_tokens or num_hashes), field, "has neither token_ids nor block_hashes")
    wrong.expect(not (num_tokens and num_hashes), field, "has both token_ids and block_hashes")
    if num_hashes:
        wrong.expect(message.hash_block_size > 0, f"{field}.hash_block_size", "is missing")
        wrong.expect(
            all(length in HASH_BYTES for length in set(map(len, block_hashes))),
            f"{field}.block_hashes",
            f"has a hash that is not {HASH_BYTES.start} to {HASH_BYTES.stop - 1} bytes long",
        )
        wrong.expect(
            num_hashes * message.hash_block_size <= MAX_TOKENS,
            f"{field}.hash_block_size",
            f"makes the prompt longer than {MAX_TOKENS} tokens",
        )
    else:
        wrong.expect(message.hash_block_size == 0, f"{field}.hash_block_size", "is set without block_hashes")
    if message.cache_salt or message.adapter:
        wrong.text(f"{field}.cache_salt", message.cache_salt, most_bytes=MAX_ID_BYTES, required=False)
        wrong.text(f"{field}.adapter", message.adapter, most_bytes=MAX_NAME_BYTES, required=False)
    return Prefix(
        token_ids=np.array(message.token_ids, dtype=np.uint32),
        block_hashes=block_hashes,
        hash_block_size=message.hash_block_size,
        cache_salt=message.cache_salt,
        adapter=message.adapter,
    )


def _tables(messages: Iterable[cache_pb2.BlockTable]) -> Sequence[BlockTable]:
    return [
        BlockTable(absent_blocks=message.absent_blocks, block_ids=np.array(message.block_ids, dtype=np.int64))
        for message in messages
    ]


def _ready_event(wrong: Violations, ready_event: bytes) -> None:
    wrong.expect(
        len(ready_event) in (0, CUDA_HANDLE_BYTES),
        "ready_event",
        f"has {len(ready_event)} bytes, not {CUDA_HANDLE_BYTES}, nor is it empty",
    )


def check_block_report(message: observability_pb2.ReportBlockAllocationRequest) -> None:
    """Raises: InvalidRequest."""
    wrong = Violations()
    wrong.text("instance_id", message.instance_id, most_bytes=MAX_ID_BYTES)
    wrong.text("model_name", message.model_name, most_bytes=MAX_NAME_BYTES)
    wrong.expect(message.block_size > 0, "block_size", "is 0")
    wrong.at_most(MAX_RECORDS, "records", message.records)
    wrong.raise_any()
    for n, record in enumerate(message.records):
        wrong.text(f"records[{n}].session_id", record.session_id, most_bytes=MAX_ID_BYTES)
    wrong.raise_any()
