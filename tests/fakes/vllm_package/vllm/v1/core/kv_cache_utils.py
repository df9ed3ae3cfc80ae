"""Block hashes as KV events have them, as in vLLM 0.32. Images are left out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def maybe_convert_block_hash(hash_bytes: bytes) -> int:
    return int.from_bytes(hash_bytes[-8:], "big")


def generate_block_hash_extra_keys(
    request: Any, start_token_idx: int, end_token_idx: int, start_mm_idx: int
) -> tuple[tuple[Any, ...] | None, int]:
    keys: list[tuple[str, str]] = []
    if request.lora_request is not None:
        keys.append(("lora", request.lora_request.name))
    if start_token_idx == 0 and request.cache_salt:
        keys.append(("cache_salt", request.cache_salt))
    return tuple(keys) or None, start_mm_idx


def to_event_extra_keys(extra_keys: Iterable[tuple[Any, ...] | None]) -> list[tuple[Any, ...] | None]:
    return [None if keys is None else tuple(key[1] for key in keys) for keys in extra_keys]
