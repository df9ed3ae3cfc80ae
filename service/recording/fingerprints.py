"""Salted fingerprints of prompts, block by block. The salt is new in each process, and is never written.

A fingerprint stands for a block and for all that is before it. The sums over a block are multilinear hashes with random
factors (Lemire and Kaser, "Strongly universal string hashing is fast", 2014), of which the upper half counts. NumPy
makes them without the interpreter's lock, at a quarter of what the keys of the cache would cost.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from service.l1.keys import Namespace, Prefix

_MASK = (1 << 64) - 1
_UPPER = np.uint64(0xFFFF_FFFF_0000_0000)


class Fingerprints:
    """The fingerprints of blocks of any size, integers of 64 bits."""

    def __init__(self) -> None:
        self._salt = secrets.token_bytes(32)
        self._factors = np.empty((2, 0), np.uint64)  # as many as the largest block has tokens
        self._chain_factor = secrets.randbits(64) | 1

    def of_text(self, data: bytes) -> int:
        """Return the fingerprint of a name."""
        return int.from_bytes(blake3(data, key=self._salt).digest()[:8], "little")

    def of_blocks(
        self, namespace: Namespace, before: int, prefix: Prefix, blocks: range, block_tokens: int
    ) -> list[int]:
        """Return those of some whole blocks of a prefix, of `block_tokens` tokens each.

        `before` is that of the block before them, if there is one. The namespace covers `block_tokens`.
        """
        if prefix.hash_block_size:
            hashes_per_block = block_tokens // prefix.hash_block_size
            ends = range((blocks.start + 1) * hashes_per_block, blocks.stop * hashes_per_block + 1, hashes_per_block)
            return [self._of_hash(namespace, prefix.block_hashes[end - 1]) for end in ends]
        tokens = prefix.token_ids[blocks.start * block_tokens : blocks.stop * block_tokens]
        sums = self._sums(tokens.reshape(-1, block_tokens))
        factor = self._chain_factor
        parent = before if blocks.start else self.of_text(namespace)
        found: list[int] = []
        for of_block in sums:
            parent = (parent ^ of_block) * factor & _MASK
            parent ^= parent >> 32
            found.append(parent)
        return found

    def of_rest(self, namespace: Namespace, before: int, prefix: Prefix, num_blocks: int, block_tokens: int) -> int:
        """Return that of what a prefix has behind its whole blocks."""
        if prefix.hash_block_size:
            return self._of_hash(namespace, prefix.block_hashes[-1])
        tokens = prefix.token_ids[num_blocks * block_tokens :]
        [of_rest] = self._sums(tokens.reshape(1, -1))
        parent = before if num_blocks else self.of_text(namespace)
        return self.of_text(b"%d %d %d" % (parent, of_rest, len(tokens)))

    def _sums(self, tokens: npt.NDArray[np.uint32]) -> Sequence[int]:
        """Return a sum for each row of tokens."""
        missing = tokens.shape[1] - self._factors.shape[1]
        if missing > 0:
            more = np.frombuffer(secrets.token_bytes(16 * missing), np.uint64).reshape(2, missing)
            self._factors = np.concatenate([self._factors, more], axis=1)
        wide = tokens.astype(np.uint64)
        first, second = (wide @ factors[: tokens.shape[1]] for factors in self._factors)
        sums: list[int] = ((first & _UPPER) | (second >> np.uint64(32))).tolist()
        return sums

    def _of_hash(self, namespace: Namespace, block_hash: bytes) -> int:
        return self.of_text(namespace + block_hash)
