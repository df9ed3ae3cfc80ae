"""Tiers beside the peer's: writes, reads of prompts that only the tier has, and lookups of prompts never stored.

``python -m benchmarks.peer.tiers`` measures these alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import uvloop

from benchmarks import tier_places
from benchmarks.figures import Figure, Goal, Report
from benchmarks.peer import shapes
from benchmarks.peer.depot import Ids
from benchmarks.peer.processes import PeerFailed
from benchmarks.peer.tier_sides import RoundFailed, Side, our_side, peer_side
from benchmarks.peer.tier_stores import STORES, Store
from kvdepot import DepotError
from kvdepot.cli.processes import exit_on_terminate

TOKENS = (2_048, 8_192)
CLIENTS = (1, 16)
ROUNDS = 5
MAX_TRIES = 3
WRITTEN_SECONDS = 60.0
POLL_SECONDS = 0.005
MISSED_TOKENS = shapes.SHORT
MISS_SECONDS = 0.5
AT_LEAST_THEIRS = Goal(at_least=1.0)


@dataclass(slots=True)
class Rates:
    """GB/s of one side, for each prompt that was moved."""

    write: list[float] = field(default_factory=list)
    read: list[float] = field(default_factory=list)


async def measure() -> list[Figure]:
    """Measure each tier that has its server on this machine. A case that one side can't do is named, and left out."""
    figures: list[Figure] = []
    for name in tier_places.here(*STORES):
        for num_tokens in TOKENS:
            try:
                figures += await _case(name, num_tokens)
            except (PeerFailed, RoundFailed, DepotError, TimeoutError) as failure:
                print(f"not measured: {name}, {num_tokens:,} tokens: {failure or 'the tier did not become available'}")
    return figures


async def _case(name: str, num_tokens: int) -> list[Figure]:
    """Measure prompts of one length, and lookups with the shortest."""
    with STORES[name]() as store, peer_side(store) as peer:
        async with our_side(store, num_tokens * shapes.TOKEN_BYTES) as ours:
            figures = await _move(name, ours, peer, store, num_tokens)
            return [*figures, *(await _miss(name, ours, peer, store) if num_tokens == min(TOKENS) else [])]


async def _move(name: str, ours: Side, peer: Side, store: Store, num_tokens: int) -> list[Figure]:
    """Write and read in alternating rounds. The first is the warm-up, in which the bytes are compared."""
    our_rates, peer_rates = Rates(), Rates()
    sides = [(ours, our_rates), (peer, peer_rates)]
    for side, _ in sides:
        blocks = _blocks(num_tokens)
        await side.fill(blocks[0])
        await moved(side, store, num_tokens, blocks)
        await side.check(*blocks)
    for _ in range(ROUNDS):
        for side, rates in sides:
            round_rates = await moved(side, store, num_tokens, _blocks(num_tokens))
            rates.write += round_rates.write
            rates.read += round_rates.read
        sides.reverse()
    what = f"{num_tokens:,} tokens, {num_tokens * shapes.TOKEN_BYTES >> 20} MiB"
    return [
        _figure(f"{name}: store until written, {what}", "GB/s", our_rates.write, peer_rates.write, store),
        _figure(f"{name}: look up and retrieve, {what}", "GB/s", our_rates.read, peer_rates.read, store),
    ]


async def moved(side: Side, store: Store, num_tokens: int, blocks: tuple[Ids, Ids]) -> Rates:
    """Write two prompts and read both, so that the tier alone has each. Do it again if a part did not come from there.

    Raises:
        RoundFailed: the last try failed, too.
    """
    for number in range(MAX_TRIES):
        try:
            return await _try(side, num_tokens, *blocks)
        except RoundFailed as failure:
            print(f"a round is done again: {failure}")
            if number == MAX_TRIES - 1:
                raise
        finally:
            await asyncio.to_thread(store.clear)
    raise AssertionError("the last try returns or raises")


async def _try(side: Side, num_tokens: int, source: Ids, target: Ids) -> Rates:
    random = np.random.default_rng()  # no prompt is stored twice: that would move nothing
    prompts = [random.integers(0, 2**31, num_tokens) for _ in range(2)]
    gigabytes = num_tokens * shapes.TOKEN_BYTES / 1e9
    rates = Rates()
    for tokens in prompts:
        rates.write.append(gigabytes / await write_seconds(side, tokens, source))
        await side.forget()
    for tokens in prompts:
        await side.forget()  # again: a chunk can be locked for a moment after it was written or read
        rates.read.append(gigabytes / await side.fetch(tokens, target))
    return rates


async def write_seconds(side: Side, tokens: Ids, blocks: Ids) -> float:
    """Return the seconds from a store's call until the tier has the prompt. Raises: RoundFailed, if it takes long."""
    num_chunks = len(tokens) // shapes.CHUNK_SIZE
    before = await side.count()
    begin = await side.store(tokens, blocks)
    while (num_written := await side.count() - before) < num_chunks:
        if time.monotonic() > begin + WRITTEN_SECONDS:
            raise RoundFailed(f"{num_written} of {num_chunks} chunks were written in {WRITTEN_SECONDS:g} s")
        await asyncio.sleep(POLL_SECONDS)
    return time.monotonic() - begin


async def _miss(name: str, ours: Side, peer: Side, store: Store) -> list[Figure]:
    """Look up prompts that were never stored, in rounds."""
    figures = []
    for clients in CLIENTS:
        rates: list[float] = []
        theirs: list[float] = []
        for number in range(1 + ROUNDS):
            rate = await ours.miss(MISSED_TOKENS, clients, MISS_SECONDS)
            rate_theirs = await peer.miss(MISSED_TOKENS, clients, MISS_SECONDS)
            if number:  # the first opens the connections
                rates.append(rate)
                theirs.append(rate_theirs)
        what = f"{name}: transaction, miss in L1 and L2, {MISSED_TOKENS:,} tokens, {clients} clients"
        figures.append(_figure(what, "/s", rates, theirs, store))
    return figures


def _blocks(num_tokens: int) -> tuple[Ids, Ids]:
    """Return the blocks from which a prompt is stored, and others into which it is retrieved."""
    num_blocks = num_tokens // shapes.BLOCK_SIZE
    blocks = np.random.default_rng().permutation(shapes.NUM_BLOCKS)
    return blocks[:num_blocks], blocks[num_blocks : 2 * num_blocks]


def _figure(what: str, unit: str, values: Sequence[float], theirs: Sequence[float], store: Store) -> Figure:
    return Figure(
        what=what,
        unit=unit,
        values=values,
        baseline=str(store.setup),
        baseline_values=theirs,
        goal=AT_LEAST_THEIRS,
    )


def main() -> None:
    """Measure and print."""
    with exit_on_terminate():
        figures = uvloop.run(measure())
    Report(title="Tiers compared with LMCache's", figures=figures).print()


if __name__ == "__main__":
    main()
