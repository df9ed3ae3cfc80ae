"""The keys of chunks: each names one token prefix in one namespace.

`chunk_key = blake3(parent_key || the chunk's token ids as little-endian uint32)`. The first parent is the namespace:
blake3 over a canonical encoding of everything that makes KV differ for equal tokens, and of the format of chunks. With
block hashes `chunk_key = blake3(namespace || hash of the chunk's last block)`. Their namespaces also cover the number
of tokens of a hash, and the seed of the hashes. Block size, block count and strides are left out: instances of one
model with different layouts share chunks. A key is computed from the tokens of one call, never from remembered ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NewType

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from kernels.geometry import Group, Plane, PlaneKind

ChunkKey = NewType("ChunkKey", bytes)
Namespace = NewType("Namespace", bytes)

CHUNK_FORMAT = 1
"""Version of what a key covers and of the canonical bytes of a chunk. With another version nothing old is found."""

MAX_CHUNK_SIZE = 1 << 20
"""Tokens of a chunk, at most."""

_STATES = "states"  # in front of the numbers of the groups that hold states; models without them have no such field

NUM_NAMESPACES_KEPT = 1_024
CHUNKS_PER_COPY = 64  # of tokens; a limit, so that the first key of a long prompt costs no more than others


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """A prompt: token ids, shape [num_tokens], or one chained hash for each whole block. The other one is empty."""

    token_ids: npt.NDArray[np.uint32]
    block_hashes: Sequence[bytes] = ()
    hash_block_size: int = 0
    cache_salt: str = ""
    adapter: str = ""

    @property
    def num_tokens(self) -> int:
        """The tokens of the prompt; with block hashes, those of whole blocks."""
        return len(self.block_hashes) * self.hash_block_size if self.hash_block_size else len(self.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankIdentity:
    """The part of a namespace that one rank's attachment fixes, encoded once. `hash_seed` is for block hashes only.

    `chunk_size` is the number of tokens of a chunk.
    """

    head: bytes
    geometry: bytes
    hash_seed: bytes
    chunk_size: int

    @classmethod
    def of(
        cls,
        model_name: str,
        world_size: int,
        rank: int,
        groups: Sequence[Group],
        chunk_size: int,
        tenant: str = "",
        *,
        model_revision: str = "",
        block_hash_seed: str = "",
        cache_epoch: int = 0,
    ) -> RankIdentity:
        """Encode the rank, its model, its geometry and its tenant, if any. Each field has its length in front.

        So no two identities have the same encoding. `chunk_size` is encoded in the namespace.
        """
        geometry = [_encode(len(groups))]
        for group in groups:
            kinds = sorted({plane.kind for plane in group.planes})
            sizes = [group.num_layers, group.num_heads, group.head_bytes]
            geometry += [*map(_encode, sizes), _encode(group.dtype), _encode(len(kinds)), *map(_encode, kinds)]
        if states := [number for number, group in enumerate(groups) if group.holds_state]:
            geometry += [_encode(_STATES), _encode(len(states)), *map(_encode, states)]
        if tenant:
            geometry += [_encode("tenant"), _encode(tenant)]
        head: list[str | int] = [CHUNK_FORMAT, cache_epoch, model_name, model_revision, world_size, rank]
        return cls(
            head=b"".join(map(_encode, head)),
            geometry=b"".join(geometry),
            hash_seed=_encode(block_hash_seed),
            chunk_size=chunk_size,
        )

    def namespace(self, prefix: Prefix) -> Namespace:
        """Return the first parent of the prefix's keys."""
        return _namespace(self, prefix.hash_block_size, prefix.cache_salt, prefix.adapter)


def groups_of(geometry: bytes) -> tuple[Group, ...]:
    """Return the groups of a `RankIdentity.geometry`, with the fields that it covers. All other fields are 0.

    Raises: ValueError.
    """
    fields = _fields(geometry)
    try:
        groups = [_group_of(fields) for _ in range(_number(next(fields, b"")))]
        if next(fields, b"") == _STATES.encode():
            for _ in range(_number(next(fields))):
                number = _number(next(fields))
                groups[number] = replace(groups[number], holds_state=True)
    except (StopIteration, IndexError):
        raise ValueError("the geometry is cut off") from None
    return tuple(groups)


def _group_of(fields: Iterator[bytes]) -> Group:
    num_layers, num_heads, head_bytes = [_number(next(fields)) for _ in range(3)]
    dtype = next(fields).decode()
    kinds = [PlaneKind(_number(next(fields))) for _ in range(_number(next(fields)))]
    return Group(
        num_layers=num_layers,
        num_blocks=0,
        block_size=0,
        num_heads=num_heads,
        head_bytes=head_bytes,
        dtype=dtype,
        block_stride_bytes=0,
        token_stride_bytes=0,
        head_stride_bytes=0,
        planes=tuple(Plane(layer=0, kind=kind, region=0, offset_bytes=0) for kind in kinds),
    )


def _fields(encoded: bytes) -> Iterator[bytes]:
    """Yield the fields that `_encode` has made."""
    position = 0
    while position < len(encoded):
        length = _number(encoded[position : position + 4])
        yield encoded[position + 4 : position + 4 + length]
        position += 4 + length


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")


@lru_cache(maxsize=NUM_NAMESPACES_KEPT)
def _namespace(identity: RankIdentity, hash_block_size: int, cache_salt: str, adapter: str) -> Namespace:
    """Compute a namespace; cached."""
    of_hashes = _encode("block hashes") + _encode(hash_block_size) + identity.hash_seed
    kind = of_hashes if hash_block_size else _encode("token ids")
    rest = _encode(identity.chunk_size) + _encode(cache_salt) + _encode(adapter) + identity.geometry
    return Namespace(blake3(identity.head + kind + rest).digest())


def chunk_keys(
    namespace: Namespace, prefix: Prefix, chunk_size: int, before: Sequence[ChunkKey] = ()
) -> Iterator[ChunkKey]:
    """Yield the keys of the prefix's whole chunks, from token 0. A lookup stops at its first miss.

    `before` has the keys of the first chunks, which are not computed again.
    """
    if prefix.hash_block_size:
        blocks_per_chunk = chunk_size // prefix.hash_block_size
        for end in range((len(before) + 1) * blocks_per_chunk, len(prefix.block_hashes) + 1, blocks_per_chunk):
            yield ChunkKey(blake3(namespace + prefix.block_hashes[end - 1]).digest())
        return
    chunk_token_bytes = 4 * chunk_size
    parent: bytes = before[-1] if before else namespace
    num_tokens = len(prefix.token_ids) // chunk_size * chunk_size
    tokens_per_copy = CHUNKS_PER_COPY * chunk_size
    for first in range(len(before) * chunk_size, num_tokens, tokens_per_copy):
        token_ids = prefix.token_ids[first : min(first + tokens_per_copy, num_tokens)]
        token_bytes = token_ids.astype("<u4", copy=False).tobytes()
        for start in range(0, len(token_bytes), chunk_token_bytes):
            parent = blake3(parent + token_bytes[start : start + chunk_token_bytes]).digest()
            yield parent  # type: ignore[misc]  # a ChunkKey, without the cost of a call that says so


def _encode(value: str | int) -> bytes:
    data = value.encode() if isinstance(value, str) else value.to_bytes(8, "little")
    return len(data).to_bytes(4, "little") + data
