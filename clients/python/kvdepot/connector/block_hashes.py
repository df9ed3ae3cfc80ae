"""Hashes of the whole blocks of a request, for engines without a prefix cache of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from kvdepot.requests import token_prefix

BLOCK_HASH_SEED = "kvdepot blake2b-256"
"""The `CacheIdentity.block_hash_seed` of engines that use `BlockHashes`."""


class BlockHashes:
    """The hashes of one request's whole blocks; each covers all tokens up to the end of its block.

    A hash depends on the tokens alone. So engines with different block sizes have equal hashes at equal tokens. Other
    things that change KV belong to `CacheIdentity` and `RequestTraits`. `block_size` is in tokens.
    """

    def __init__(self, block_size: int) -> None:
        if block_size < 1:
            raise ValueError(f"block_size is {block_size}: it must be at least 1")
        self._block_size = block_size
        self._hash = hashlib.blake2b(digest_size=32)
        self.values: list[bytes] = []

    def __repr__(self) -> str:
        return f"<BlockHashes of {len(self.values)} blocks of {self._block_size} tokens>"

    def update(self, token_ids: Sequence[int]) -> None:
        """Take all tokens of the request so far, from token 0. Those of blocks with a hash are not read again.

        Raises: InvalidArgument: an id is no integer from 0 to 2^32 - 1. No hash was added then.
        """
        start = len(self.values) * self._block_size
        end = len(token_ids) // self._block_size * self._block_size
        if end <= start:
            return
        ids = token_prefix(token_ids[start:end]).token_ids  # refuses what no call can carry
        new = np.asarray(ids, "<u4").tobytes()
        step = 4 * self._block_size
        for offset in range(0, len(new), step):
            self._hash.update(new[offset : offset + step])
            self.values.append(self._hash.digest())
