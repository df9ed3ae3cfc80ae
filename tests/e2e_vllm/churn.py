"""A case of a depot that is ended and started again all the time."""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable

from tests.e2e_vllm.cases import SOME, Proof, together, whole_chunks
from tests.e2e_vllm.crowds import REACHED_SECONDS, SteadyCrowd, steady_crowd
from tests.e2e_vllm.engines import Engine
from tests.e2e_vllm.reporting import metrics_of
from tests.e2e_vllm.restarts import flags, ready, until_shared

PHASE_SECONDS = 30.0
UP_SECONDS = (1.0, 2.0)
TAKEOVER_SECONDS = 30.0
KILLED_TAKEOVER_SECONDS = 5.0  # then the old one serves on
ATTACHED_TIMES = 6  # of both engines together
ATTACHED = "attached to the depot:"
LOADED = ("kvdepot_tokens_total", "load")


async def restarting_all_the_time(proof: Proof, a: Engine, b: Engine) -> str:
    """A depot runs for 1 to 2 s, then it is ended, killed or taken over. A crowd does not notice.

    The engines attach again by themselves, and each attachment is to another process. In the first half L1 is in a file
    that the next depot adopts; in the second one depots take over from each other, and one in three is killed.
    """
    numbers = random.Random(7)
    before = [await metrics_of(engine) for engine in (a, b)]
    attached = _count(proof, ATTACHED)
    with tempfile.TemporaryDirectory(prefix="kvdepot-", dir="/dev/shm") as folder:
        async with flags(proof, "--l1-size", "512MiB", "--l1-file", f"{folder}/l1"):
            await proof.server.end()
            await proof.server.start()
            async with steady_crowd(proof, (a, b)) as crowd:
                ends = itertools.cycle((signal.SIGTERM, signal.SIGKILL))
                num_restarts = await _repeat(proof, crowd, numbers, lambda: _restarted(proof, next(ends)))
                await proof.until_attached(2)
            await ready(proof, a, b)
            first = f"{num_restarts} restarts: {crowd}"
            again = await _found(proof, a, b)
        async with flags(proof, "--l1-size", "512MiB"):
            await proof.server.end()
            await proof.server.start()
            async with steady_crowd(proof, (a, b)) as crowd:
                is_killed = itertools.cycle((False, True, False))
                num_takeovers = await _repeat(
                    proof, crowd, numbers, lambda: _taken_over(proof, is_killed=next(is_killed))
                )
                await proof.until_attached(2)
            await ready(proof, a, b)
            second = f"{num_takeovers} takeovers and kills: {crowd}"
            again += await _found(proof, a, b)
    await proof.server.end()
    await proof.server.start()
    await ready(proof, a, b)
    after = [await metrics_of(engine) for engine in (a, b)]
    loaded = sum(now.get(LOADED, 0) - then.get(LOADED, 0) for then, now in zip(before, after, strict=True))
    attached = _count(proof, ATTACHED) - attached
    rest = f"attached {attached} times, {loaded:.0f} tokens loaded, afterwards {again} of 24 prompts hit"
    return f"{first}; {second}; {rest}"


async def _repeat(
    proof: Proof, crowd: SteadyCrowd, numbers: random.Random, restart: Callable[[], Awaitable[None]]
) -> int:
    """Restart the depot for some time, and until both engines have attached several times; return how often.

    A fault ends the crowd, and this.
    """
    end, attached = time.monotonic() + PHASE_SECONDS, _count(proof, ATTACHED)
    count = 0
    while True:
        await asyncio.sleep(numbers.uniform(*UP_SECONDS))
        is_long_enough = time.monotonic() > end and _count(proof, ATTACHED) >= attached + ATTACHED_TIMES
        if is_long_enough or crowd.ended.is_set():
            return count
        assert time.monotonic() < end + REACHED_SECONDS, f"{count} restarts, and the engines did not attach again"
        await restart()
        count += 1


async def _restarted(proof: Proof, end: signal.Signals) -> None:
    await proof.server.end(end)
    await proof.server.start()


async def _taken_over(proof: Proof, *, is_killed: bool) -> None:
    """Let a new depot take over from the running one, or kill the new one meanwhile. Then the old one serves on."""
    old, proof.server.process = proof.server.process, None
    assert old is not None
    async with flags(proof, "--takeover"):
        await proof.server.start()  # returns at once: the old one still listens
    if is_killed:
        await asyncio.sleep(1.0)  # it has begun to take over, or has done it
        await proof.server.end(signal.SIGKILL)
    try:
        async with asyncio.timeout(KILLED_TAKEOVER_SECONDS if is_killed else TAKEOVER_SECONDS):
            assert await old.wait() == 0
    except TimeoutError:
        assert is_killed, f"the old depot runs {TAKEOVER_SECONDS:g} s after the new one began to take over"
        proof.server.process = old
    await proof.server.start()  # if neither is left


async def _found(proof: Proof, a: Engine, b: Engine) -> int:
    """Return how many prompts the second engine finds: all of them."""
    await until_shared(proof, a, b)
    await proof.forget_locally(a, b)
    stored = await together(a, SOME)
    await proof.until_quiet()
    found = await together(b, SOME)
    proof.plain.check(SOME * 2, stored + found)
    hits = sum(answer.cached == whole_chunks(600) for answer in found)
    assert hits == len(SOME), f"{hits} of {len(SOME)} prompts hit"
    return hits


def _count(proof: Proof, message: str) -> int:
    """Count a message in the logs of the two engines."""
    return sum((proof.folder / f"{name}.log").read_text().count(message) for name in ("A", "B"))
