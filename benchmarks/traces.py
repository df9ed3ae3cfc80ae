"""``python -m benchmarks.traces NAME FILE``: invented traces of prompts, in Mooncake's format, that never change.

Eviction policies are compared on them, so that no parameter fits one recorded trace only.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

BLOCK_TOKENS = 512
Prompt = tuple[int, ...]
_MILLISECONDS_APART = 300


class _Ids:
    """Gives out ids of blocks. Each stands for one block behind certain others."""

    def __init__(self) -> None:
        self._next = 0

    def blocks(self, num_blocks: int) -> Prompt:
        """Return ids that no other prompt has."""
        first, self._next = self._next, self._next + num_blocks
        return tuple(range(first, self._next))


def agents(ids: _Ids, rng: random.Random, num_requests: int) -> Iterator[Prompt]:
    """Yield the prompts of 60 agents at a time. Each turn adds to its prompt, and after 20 turns or so it ends."""
    system = ids.blocks(4)
    prompts: list[Prompt] = []
    for _ in range(num_requests):
        while len(prompts) < 60:
            prompts.append(system + ids.blocks(rng.randint(2, 20)))
        number = rng.randrange(len(prompts))
        prompts[number] += ids.blocks(rng.randint(1, 3))
        yield prompts[number]
        if rng.random() < 0.05:
            del prompts[number]


def rag(ids: _Ids, rng: random.Random, num_requests: int) -> Iterator[Prompt]:
    """Yield questions about 3,000 documents. The n-th most popular one comes n ** -0.9 times as often as the first."""
    system = ids.blocks(2)
    documents = [ids.blocks(rng.randint(4, 40)) for _ in range(3_000)]
    weights = [(rank + 1) ** -0.9 for rank in range(len(documents))]
    for document in rng.choices(documents, weights, k=num_requests):
        yield system + document + ids.blocks(rng.randint(1, 2))


def scan(ids: _Ids, rng: random.Random, num_requests: int) -> Iterator[Prompt]:
    """Yield 600 prompts of 20 blocks, always in the same order. LRU never hits while not all of them fit."""
    prompts = [ids.blocks(20) for _ in range(600)]
    for number in range(num_requests):
        yield prompts[number % len(prompts)]


def mix(ids: _Ids, rng: random.Random, num_requests: int) -> Iterator[Prompt]:
    """Yield prompts of agents, and after every other one a long prompt that never comes back."""
    of_agents = agents(ids, rng, num_requests)
    for number in range(num_requests):
        yield ids.blocks(rng.randint(10, 80)) if number % 3 == 2 else next(of_agents)


def shift(ids: _Ids, rng: random.Random, num_requests: int) -> Iterator[Prompt]:
    """Yield questions about documents, then agents, then questions about other documents: a third of each."""
    third = num_requests // 3
    yield from rag(ids, rng, third)
    yield from agents(ids, rng, third)
    yield from rag(ids, rng, num_requests - 2 * third)


TRACES: Mapping[str, tuple[Callable[[_Ids, random.Random, int], Iterator[Prompt]], int]] = {
    "agents": (agents, 4_000),
    "rag": (rag, 8_000),
    "scan": (scan, 3_000),
    "mix": (mix, 4_000),
    "shift": (shift, 9_000),
}
"""The invented traces, each with its number of requests."""


def prompts_of(name: str, num_requests: int | None = None) -> list[Prompt]:
    """Return the prompts of a trace, which are the same each time: the ids of their blocks, as in `hash_ids`."""
    make, usual_requests = TRACES[name]
    return list(make(_Ids(), random.Random(name), num_requests or usual_requests))


def lines_of(prompts: Sequence[Prompt]) -> Iterator[str]:
    """Yield the lines of a trace. A request comes every 0.3 s, and each answer is a block long."""
    for number, prompt in enumerate(prompts):
        request = {
            "timestamp": number * _MILLISECONDS_APART,
            "input_length": len(prompt) * BLOCK_TOKENS,
            "output_length": BLOCK_TOKENS,
            "hash_ids": prompt,
        }
        yield json.dumps(request) + "\n"


def main(arguments: Sequence[str]) -> None:
    """Write a trace to a file."""
    if len(arguments) != 2 or arguments[0] not in TRACES:
        sys.exit(f"usage: python -m benchmarks.traces {'|'.join(TRACES)} FILE")
    name, path = arguments
    with Path(path).open("w", encoding="utf-8") as file:
        file.writelines(lines_of(prompts_of(name)))


if __name__ == "__main__":
    main(sys.argv[1:])
