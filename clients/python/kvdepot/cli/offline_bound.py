"""The offline bound: the hits of a cache that knows all requests to come. No policy has more, and none reaches it.

Of all blocks that it could keep, such a cache keeps those that are used again first. A block that comes back later than
all others is not even stored. This is optimal for blocks of one size (L. A. Belady: A study of replacement algorithms
for a virtual-storage computer, 1966; with bypass). A prefix is used whenever a longer one is. So no block is kept
without the blocks before it, and each block that is kept is a hit.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from kvdepot.cli.lru_models import HashIds

_NEVER = 1 << 62


def offline_bound_hits(requests: Sequence[HashIds], capacity_blocks: int, outputs: Sequence[HashIds] = ()) -> int:
    """Return the most hits that any cache of this size can have. A hit is a leading block that is resident.

    `outputs[request]` has the blocks that a request stores behind its prompt; it may be empty for all. They are no
    hits of that request. It takes O(n log n) steps for n blocks in all requests.
    """
    outputs = outputs or [()] * len(requests)
    prefixes = _prefixes(prompt + output for prompt, output in zip(requests, outputs, strict=True))
    lengths = list(map(len, requests))
    resident: set[int] = set()
    # A heap of when each block is used next. Entries of uses that have passed come last, so none is ever taken out.
    furthest: list[tuple[int, int, int]] = []
    num_hits = 0
    for blocks, length, next_uses in zip(prefixes, lengths, _next_uses(prefixes, lengths), strict=True):
        for position, (block, next_use) in enumerate(zip(blocks, next_uses, strict=True)):
            num_hits += position < length and block in resident
            if next_use == _NEVER:
                resident.discard(block)
            else:
                resident.add(block)
                heapq.heappush(furthest, (-next_use, -position, block))  # the tail of a prompt before its head
        while len(resident) > capacity_blocks:
            resident.remove(heapq.heappop(furthest)[-1])
    return num_hits


def _prefixes(requests: Iterable[HashIds]) -> list[list[int]]:
    """Return for each block a number that stands for it and all blocks before it, whatever its id stands for."""
    numbers: dict[tuple[int, int], int] = {}
    prefixes = []
    for hash_ids in requests:
        number = -1
        blocks = []
        for hash_id in hash_ids:
            number = numbers.setdefault((number, hash_id), len(numbers))
            blocks.append(number)
        prefixes.append(blocks)
    return prefixes


def _next_uses(prefixes: Sequence[Sequence[int]], lengths: Sequence[int]) -> list[list[int]]:
    """Return for each block of each request the later prompt that uses it. What is stored anew before is not needed."""
    seen: dict[int, int] = {}
    next_uses = []
    for request in range(len(prefixes) - 1, -1, -1):
        blocks, length = prefixes[request], lengths[request]
        next_uses.append([seen.get(block, _NEVER) for block in blocks])
        seen.update(dict.fromkeys(blocks[:length], request))
        seen.update(dict.fromkeys(blocks[length:], _NEVER))
    next_uses.reverse()
    return next_uses
