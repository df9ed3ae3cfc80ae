"""Routers: which node of several gets each request of a trace. What they decide depends on the trace alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from enum import StrEnum

from kvdepot.cli.lru_models import HashIds, PrefixLru

LEAST_MATCH = 0.5
"""The part of a prompt that a node must have, as the router remembers it, to get the request for that reason.

Without such a limit one node gets all prompts that begin with the same words. Routers of the field have one, too.
"""


class RouterName(StrEnum):
    """How a router chooses."""

    RANDOM = "random"
    ROUND_ROBIN = "round-robin"
    PREFIX = "prefix"
    """The node that was sent the longest part of the prompt lately. If none was sent half, the least loaded one."""


def routes(
    requests: Sequence[HashIds], name: RouterName, *, num_nodes: int, l1_chunks: int, seed: int = 0
) -> list[int]:
    """Return the node of each request, from 0. `l1_chunks` is how many blocks of a node the router remembers."""
    if name is RouterName.ROUND_ROBIN:
        return [number % num_nodes for number in range(len(requests))]
    if name is RouterName.RANDOM:
        rng = random.Random(seed)
        return [rng.randrange(num_nodes) for _ in requests]
    router = _PrefixRouter(num_nodes, l1_chunks)
    return [router.route(hash_ids) for hash_ids in requests]


class _PrefixRouter:
    """Remembers what it sent to each node. It does not know what a node still has."""

    def __init__(self, num_nodes: int, l1_chunks: int) -> None:
        self._memory = [PrefixLru(l1_chunks) for _ in range(num_nodes)]
        self._sent_blocks = [0] * num_nodes

    def route(self, hash_ids: HashIds) -> int:
        """Choose a node for a request, and send it."""
        matches = [memory.num_leading(hash_ids) for memory in self._memory]
        longest = max(matches)
        if not hash_ids or longest < LEAST_MATCH * len(hash_ids):
            longest = 0  # then all nodes are as good
        nodes = [node for node, match in enumerate(matches) if match >= longest]
        node = min(nodes, key=lambda node: self._sent_blocks[node])
        self._memory[node].request(hash_ids)
        self._sent_blocks[node] += len(hash_ids)
        return node
