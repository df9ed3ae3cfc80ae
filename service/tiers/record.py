"""The record of a chunk in a tier: 128 bytes that say what the chunk's bytes are, wherever they are.

A record travels with its bytes: in front of them in one value or object, or in the table of a disk. It binds the key,
the length and the checksum. So a reader needs no trust in the store: bytes that were lost, torn, mixed up or changed do
not match their record, and any mismatch is a miss.

| bytes | field |
|---|---|
| 8 | magic, with the version of the format |
| 32 | key |
| 8 | chunk_bytes |
| 8 | checksum, kvsum64 of the chunk's bytes |
| 8 | store_time_ns, since the epoch |
| 8 each | tenant, model and salt, as the first bytes of their BLAKE3 |
| 16 | absent tokens of the groups |
| 8 | generation: of two records of one key, the higher one is right |
| 16 | the record's own sum |

All numbers are little-endian. The own sum is BLAKE3 over a seed and all that precedes the sum. With a secret it is
BLAKE3 with a key of the tenant, and also covers the chunk's bytes. That key is BLAKE3 of the tenant's 8 bytes, keyed
with the secret. So nobody without the secret can make a chunk.
"""

from __future__ import annotations

import hmac
import struct
from functools import lru_cache
from typing import NamedTuple

from blake3 import blake3

from service.l1.absent import pack_absent, unpack_absent

RECORD_BYTES = 128
SUM_BYTES = 16
TAG_BYTES = 8
_MAGIC = b"kvdrec\0\1"
_BODY = struct.Struct("<8s32sQQQ8s8s8s16sQ")
_TENANT = slice(64, 64 + TAG_BYTES)


class Owner(NamedTuple):
    """Whose a chunk is: what an operator names to clear chunks, and what quotas count."""

    tenant: str
    model_name: str
    cache_salt: str


class OwnerTag(NamedTuple):
    """An owner as records have it: 8 bytes for each name."""

    tenant: bytes
    model: bytes
    salt: bytes


class ChunkRecord(NamedTuple):
    """What the bytes of one chunk are. `absent_tokens` is empty if the chunk is whole."""

    key: bytes
    chunk_bytes: int
    checksum: int
    store_time_ns: int
    owner: OwnerTag
    absent_tokens: tuple[int, ...] = ()
    generation: int = 0

    def pack(self, seed: bytes = b"", *, secret: bytes = b"", data: memoryview | bytes = b"") -> bytes:
        """Return the 128 bytes. `seed` is what the place of the record adds to its sum.

        `secret` has 32 bytes or none. With a secret, `data` has the chunk's bytes, which the sum covers as well.

        Raises: ValueError: the absent tokens of so many groups do not fit.
        """
        body = _BODY.pack(
            _MAGIC,
            self.key,
            self.chunk_bytes,
            self.checksum,
            self.store_time_ns,
            *self.owner,
            pack_absent(self.absent_tokens),
            self.generation,
        )
        return body + _own_sum(body, seed, secret, data)

    @classmethod
    def unpack(
        cls, packed: bytes, seed: bytes = b"", *, secret: bytes = b"", data: memoryview | bytes = b""
    ) -> ChunkRecord | None:
        """Return the record of 128 bytes. None: they are no record, or one of another format, place or secret."""
        record = cls.unpack_any(packed)
        if record is None:
            return None
        own_sum = _own_sum(packed[: _BODY.size], seed, secret, data)
        return record if hmac.compare_digest(own_sum, packed[_BODY.size :]) else None

    @classmethod
    def unpack_any(cls, packed: bytes) -> ChunkRecord | None:
        """Return the record of 128 bytes, whose own sum may be wrong. None: they are no record of this format."""
        if len(packed) != RECORD_BYTES or not packed.startswith(_MAGIC):
            return None
        return cls.unpack_verified(packed)

    @classmethod
    def unpack_verified(cls, packed: bytes) -> ChunkRecord:
        """Return the record of 128 bytes whose own sum was compared already."""
        _, key, chunk_bytes, checksum, store_time_ns, tenant, model, salt, absent, generation = _BODY.unpack_from(
            packed
        )
        return cls(
            key=key,
            chunk_bytes=chunk_bytes,
            checksum=checksum,
            store_time_ns=store_time_ns,
            owner=OwnerTag(tenant, model, salt),
            absent_tokens=unpack_absent(absent) if any(absent) else (),
            generation=generation,
        )


@lru_cache(1024)
def tag_of(owner: Owner) -> OwnerTag:
    """Return an owner as records have it."""
    return OwnerTag(*(name_tag(name) for name in owner))


def name_tag(name: str) -> bytes:
    """Return the 8 bytes that stand for a tenant, a model or a salt."""
    return blake3(name.encode()).digest(TAG_BYTES)


def _own_sum(body: bytes, seed: bytes, secret: bytes, data: memoryview | bytes) -> bytes:
    if not secret:
        return blake3(seed + body).digest(SUM_BYTES)
    keyed = blake3(seed + body, key=_tenant_key(secret, body[_TENANT]))
    keyed.update(data)
    return keyed.digest(SUM_BYTES)


@lru_cache(1024)
def _tenant_key(secret: bytes, tenant_tag: bytes) -> bytes:
    return blake3(tenant_tag, key=secret).digest()
