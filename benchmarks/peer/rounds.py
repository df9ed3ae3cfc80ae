"""Rounds of kvdepot, the peer, kvdepot, …: the same blocks and the same lookups."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from benchmarks.figures import Figure, Goal
from benchmarks.peer import shapes
from benchmarks.peer.depot import DepotEngine, WrongBytes
from benchmarks.peer.processes import Driver
from benchmarks.peer.setups import TUNED, Setup, Transport

MOVED_TOKENS = (256, 2_048, 8_192)
CHECKED_TOKENS = 2_048
CLIENTS = (1, 4, 16)
ROUNDS = 5
WARM_UP_ROUNDS = 2
ROUND_SECONDS = 0.4
WARM_UP_SECONDS = 0.1
ENOUGH_SECONDS = 10.0  # on a busy machine a case ends with the rounds it has, one at least
MOVING = Goal(at_least=2.0)
ASKING = {Transport.ZMQ: Goal(at_least=3.0), Transport.GRPC: Goal(at_least=5.0)}


async def move(ours: DepotEngine, peer: Driver, setup: Setup) -> list[Figure]:
    """Store and retrieve, after the bytes of both were checked."""
    random = np.random.default_rng()  # no prompt is stored twice: that would move nothing
    await _send(peer, "attach_large")
    tokens = random.integers(0, 2**31, CHECKED_TOKENS)
    blocks, other_blocks = np.split(random.permutation(shapes.NUM_BLOCKS)[: CHECKED_TOKENS // 8], 2)
    if not await ours.check(tokens, blocks, other_blocks):
        raise WrongBytes("kvdepot gave other bytes back than were stored")
    checked = await _send(
        peer, "check", tokens=tokens.tolist(), blocks=blocks.tolist(), other_blocks=other_blocks.tolist()
    )
    if not checked["equal"]:
        raise WrongBytes(f"{setup} gave other bytes back than were stored")
    figures: list[Figure] = []
    for num_tokens in reversed(MOVED_TOKENS):  # the longest first: it warms what the others use
        rates: dict[str, list[float]] = defaultdict(list)
        until = time.monotonic() + ENOUGH_SECONDS
        for number in range(WARM_UP_ROUNDS + ROUNDS):
            if rates and time.monotonic() > until:
                break
            tokens = random.integers(0, 2**31, num_tokens)
            blocks = random.permutation(shapes.NUM_BLOCKS)[: num_tokens // shapes.BLOCK_SIZE]
            stored, retrieved = await ours.move(tokens, blocks)
            theirs = await _send(peer, "move", tokens=tokens.tolist(), blocks=blocks.tolist())
            if number < WARM_UP_ROUNDS:
                continue
            gigabytes = num_tokens * shapes.TOKEN_BYTES / 1e9
            rates["store"].append(gigabytes / stored)
            rates["retrieve"].append(gigabytes / retrieved)
            rates["peer's store"].append(gigabytes / theirs["store_seconds"])
            rates["peer's retrieve"].append(gigabytes / theirs["retrieve_seconds"])
        figures[:0] = [
            Figure(
                what=f"{name}, Llama-3-8B, {num_tokens:,} tokens, {num_tokens * shapes.TOKEN_BYTES >> 20} MiB",
                unit="GB/s",
                values=rates[name],
                baseline=str(setup),
                baseline_values=rates[f"peer's {name}"],
                goal=MOVING if setup.tuning is TUNED else None,
            )
            for name in ("store", "retrieve")
        ]
    return figures


async def ask(ours: DepotEngine, peer: Driver, setup: Setup, lengths: Sequence[int]) -> list[Figure]:
    """Measure transactions: look up, release the lease, end the session."""
    await ours.store_prompt()
    await _send(peer, "attach_small")
    figures: list[Figure] = []
    for num_tokens in lengths:
        for name, first_token in (("hit", shapes.STORED), ("miss", shapes.ABSENT)):
            for clients in CLIENTS:
                rates: list[float] = []
                theirs: list[float] = []
                case = {"first_token": first_token, "num_tokens": num_tokens, "clients": clients}
                until = time.monotonic() + ENOUGH_SECONDS
                for number in range(1 + ROUNDS):
                    if rates and time.monotonic() > until:
                        break
                    seconds = ROUND_SECONDS if number else WARM_UP_SECONDS  # the first opens the connections
                    rate = await ours.transact(**case, seconds=seconds)
                    answer = await _send(peer, "transact", **case, seconds=seconds)
                    if number:
                        rates.append(rate)
                        theirs.append(answer["rate"])
                figures.append(
                    Figure(
                        what=f"transaction, {name}, {num_tokens:,} tokens, {clients} clients",
                        unit="/s",
                        values=rates,
                        baseline=str(setup),
                        baseline_values=theirs,
                        goal=ASKING[setup.transport] if setup.tuning is TUNED else None,
                    )
                )
    return figures


async def _send(peer: Driver, do: str, **arguments: object) -> dict[str, float]:
    """Send a command in a thread, so that the depot's client answers pings."""
    return await asyncio.to_thread(peer.ask, do, **arguments)
