"""The KV of the checks: bytes that belong to tokens, put into blocks by the engine's own arrays, and compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kvdepot.cli.engine_check.rank import Bytes, PlaneUnderTest, Rank, Wrong, declared_bytes
from kvdepot.v1.cache_pb2 import KvGroup

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Blocks:
    """Two sets of blocks for a prompt, in each group, none in both. `store[group]` and `retrieve[group]` are tables."""

    store: Sequence[Ids]
    retrieve: Sequence[Ids]


def usable_tokens(ranks: Sequence[Rank]) -> int:
    """Return how many tokens have two sets of blocks in every group of every rank."""
    return min(_num_blocks(rank, group) // 2 * group.block_size for rank in ranks for group in rank.groups)


def blocks_for(rank: Rank, num_tokens: int, seed: int) -> Blocks:
    """Return blocks in any order. Groups with memory in common get blocks of different numbers."""
    rng = np.random.default_rng(seed)
    share = _share(rank)
    tables = []
    for number, group in enumerate(rank.groups):
        first, step = (number, len(rank.groups)) if share else (0, 1)
        ids = rng.permutation(np.arange(first, group.num_blocks, step))
        num_blocks = -(-num_tokens // group.block_size)
        tables.append((ids[:num_blocks], ids[num_blocks : 2 * num_blocks]))
    return Blocks([store for store, _ in tables], [retrieve for _, retrieve in tables])


def kv_of(rank: Rank, num_tokens: int, seed: int) -> list[Bytes]:
    """Return the KV of a prompt, for each group `[planes, tokens, heads, head_bytes]`; the same in each process."""
    return [
        np.random.default_rng((seed, rank.rank, number)).integers(
            0, 256, (len(planes), num_tokens, group.num_heads, group.head_bytes), np.uint8
        )
        for number, (group, planes) in enumerate(zip(rank.groups, rank.planes, strict=True))
    ]


def fill_with_noise(rank: Rank) -> None:
    """Write noise into all memory of the rank, also where no block is."""
    rng = np.random.default_rng(99)
    for each in rank.memory:
        each[:] = rng.integers(0, 256, each.size, np.uint8)


def put(rank: Rank, tables: Sequence[Ids], kv: Sequence[Bytes]) -> None:
    """Write KV into blocks by the engine's own arrays, as computing it would."""
    for planes, table, content in zip(rank.planes, tables, kv, strict=True):
        for plane, tokens in zip(planes, content, strict=True):
            _put(plane.array, plane.group, table, tokens)


def expected_memory(
    rank: Rank, tables: Sequence[Ids], kv: Sequence[Bytes], num_tokens: int, skip_tokens: int
) -> list[Bytes]:
    """Return the memory as it must be after a retrieve of the tokens from `skip_tokens` to `num_tokens`."""
    expected = [each.copy() for each in rank.memory]
    for planes, table, content in zip(rank.planes, tables, kv, strict=True):
        for plane, tokens in zip(planes, content, strict=True):
            first = skip_tokens // plane.group.block_size
            target = declared_bytes(expected[plane.plane.region], plane.group, plane.plane)
            _put(target, plane.group, table[first:], tokens[skip_tokens:num_tokens])
    return expected


def compare(rank: Rank, expected: Sequence[Bytes]) -> None:
    """Compare all memory of the rank, also where no block is.

    Raises: Wrong.
    """
    for region, (found, wanted) in enumerate(zip(rank.memory, expected, strict=True)):
        different = np.flatnonzero(found != wanted)
        if different.size:
            at = int(different[0])
            raise Wrong(f"{different.size:,} bytes are wrong, the first is {_place(rank, region, at)}")


def canonical(kv: Sequence[Bytes], start: int, end: int) -> bytes:
    """Return the canonical bytes of one chunk of a prompt."""
    return b"".join(content[:, start:end].tobytes() for content in kv)


def _put(array: Bytes, group: KvGroup, table: Ids, tokens: Bytes) -> None:
    """Write tokens into blocks. The last block may be partly filled."""
    size = group.block_size
    whole = len(tokens) // size
    array[table[:whole]] = tokens[: whole * size].reshape(whole, *array.shape[1:])
    if rest := len(tokens) % size:
        array[table[whole], :rest] = tokens[whole * size :]


def _share(rank: Rank) -> bool:
    """Return whether groups of the rank have bytes in common, as those of one pool of blocks have."""
    for region, memory in enumerate(rank.memory):
        owners = np.zeros(len(memory), np.uint16)
        for number, planes in enumerate(rank.planes, start=1):
            for plane in planes:
                if plane.plane.region == region:
                    owner = declared_bytes(owners, plane.group, plane.plane)
                    if ((owner != 0) & (owner != number)).any():
                        return True
                    owner[:] = number
    return False


def _num_blocks(rank: Rank, group: KvGroup) -> int:
    return int(group.num_blocks) // len(rank.groups) if _share(rank) else int(group.num_blocks)


def _place(rank: Rank, region: int, at: int) -> str:
    """Return which plane and which block a byte of a region is in."""
    owners = np.zeros(len(rank.memory[region]), np.bool_)
    plane: PlaneUnderTest
    for plane in (plane for planes in rank.planes for plane in planes if plane.plane.region == region):
        owners[:] = False
        owners[at] = True
        found = np.argwhere(declared_bytes(owners, plane.group, plane.plane))
        if found.size:
            block, token, head, byte = map(int, found[0])
            return f"{plane.name}, block {block}, token {token}, head {head}, byte {byte}"
    return f"byte {at} of regions[{region}], where no block is"
