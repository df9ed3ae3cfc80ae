"""A trace of requests in Mooncake's format: the blocks that each prompt is made of.

Each line is a JSON object. `hash_ids` has one id per block of 512 tokens of the prompt. An id stands for its block and
for all blocks before it, so that equal ids mean equal prefixes. See https://github.com/kvcache-ai/Mooncake.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

BLOCK_TOKENS = 512
VOCABULARY_SIZE = 128_000
"""Token ids are below this, as in a real model. The two that spell a block's id may be larger."""
MAX_HASH_ID = 2**62 - 1


class BadTrace(ValueError):
    """A line that is not a request, which the message names, or a file without requests."""


def read_trace(path: Path, max_requests: int | None = None) -> list[tuple[int, ...]]:
    """Return the block ids of every request, in order.

    Raises: BadTrace, OSError.
    """
    requests: list[tuple[int, ...]] = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if max_requests is not None and len(requests) >= max_requests:
                    break
                if line.strip():
                    requests.append(_parse_request(line, f"{path}:{number}"))
    except UnicodeDecodeError as error:
        raise BadTrace(f"{path}: not a text file: {error}") from error
    if not requests:
        raise BadTrace(f"{path}: no requests in it")
    return requests


def _parse_request(line: str, where: str) -> tuple[int, ...]:
    try:
        request = json.loads(line)
    except json.JSONDecodeError as error:
        raise BadTrace(f"{where}: not JSON: {error}") from error
    hash_ids = request.get("hash_ids") if isinstance(request, dict) else None
    if not isinstance(hash_ids, list):
        raise BadTrace(f'{where}: expected an object with a list "hash_ids"')
    for hash_id in hash_ids:
        if type(hash_id) is not int or not 0 <= hash_id <= MAX_HASH_ID:
            raise BadTrace(f"{where}: {hash_id!r} in hash_ids is not an integer from 0 to 2^62 - 1")
    return tuple(hash_ids)


def token_ids(hash_ids: tuple[int, ...]) -> list[int]:
    """Return the token ids of a prompt: 512 for each block, which differ for different ids.

    The first two tokens of a block spell its id, the others only fill it.
    """
    ids = np.array(hash_ids, dtype=np.int64)[:, np.newaxis]
    tokens = (ids * 31 + np.arange(BLOCK_TOKENS, dtype=np.int64) * 7919) % VOCABULARY_SIZE
    tokens[:, :1] = ids & 0x7FFF_FFFF
    tokens[:, 1:2] = ids >> 31
    flat: list[int] = tokens.ravel().tolist()
    return flat
