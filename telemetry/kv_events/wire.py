"""The bytes of KV events: maps as vLLM sends them now, or arrays as its earlier versions do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from telemetry.kv_events.named_chunk import MEDIUM_NAMES, EventType, Medium, NamedChunk

END_OF_REPLAY = (-1).to_bytes(8, "big", signed=True)


class Wire:
    """Encodes events and batches of them. Without `as_maps` an event is an array that begins with its type.

    The fields, their order and their names are those of `vllm.distributed.kv_events`.
    """

    def __init__(self, *, as_maps: bool) -> None:
        self._as_maps = as_maps
        self._encode = msgspec.msgpack.Encoder().encode
        self.cleared = self._event({"type": EventType.CLEARED.value})

    def stored(self, chunk: NamedChunk, medium: Medium) -> bytes:
        """Encode that the blocks of a chunk are in a medium. The last block of the chunk before it is their parent."""
        event: dict[str, Any] = {
            "type": EventType.STORED.value,
            "block_hashes": msgspec.Raw(chunk.block_hashes),
            "parent_block_hash": None if chunk.parent_hash is None else msgspec.Raw(chunk.parent_hash),
            "token_ids": msgspec.Raw(chunk.token_ids) if chunk.token_ids else (),
            "block_size": chunk.block_size,
            "lora_id": None,
            "medium": MEDIUM_NAMES[medium],
            "lora_name": chunk.adapter or None,
        }
        if chunk.adapter or chunk.cache_salt:
            event["extra_keys"] = _extra_keys(chunk)
        return self._event(event)

    def removed(self, block_hashes: bytes, medium: Medium) -> bytes:
        """Encode that blocks left a medium."""
        event = {
            "type": EventType.REMOVED.value,
            "block_hashes": msgspec.Raw(block_hashes),
            "medium": MEDIUM_NAMES[medium],
        }
        return self._event(event)

    def batch(self, time: float, events: Iterable[bytes]) -> bytes:
        """Encode a batch of encoded events: the time in seconds since the epoch, the events, no data-parallel rank."""
        return self._encode((time, [msgspec.Raw(event) for event in events], None))

    def _event(self, event: dict[str, Any]) -> bytes:
        return self._encode(event if self._as_maps else list(event.values()))


def _extra_keys(chunk: NamedChunk) -> list[list[str] | None]:
    """Return what is in the hash of each block beside its tokens: the adapter, and in a prompt's first one the salt."""
    of_adapter = [chunk.adapter] if chunk.adapter else []
    first = [*of_adapter, chunk.cache_salt] if chunk.cache_salt and not chunk.parent_name else of_adapter
    return [first or None, *[of_adapter or None] * (chunk.num_blocks - 1)]
