"""Cases in which the connector must make progress by itself: no new request, slow steps, early aborts, evictions."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from typing import Any

from tests.e2e_vllm.cases import ALONE, Proof, Tokens, together, tokens_of, until, whole_chunks
from tests.e2e_vllm.engines import SLOW_STEP_SECONDS, Engine, slow_file

HANG_SECONDS = 10.0  # longer than the stores' timeout, and than an engine works after its last request


async def idle_after_hang(proof: Proof, a: Engine, b: Engine) -> str:
    """The depot hangs during stores and goes on. An engine without requests can pause, and no block is in use."""
    await proof.forget_locally(a)
    await proof.until_quiet()  # sessions that end while the depot hangs would stay open in it
    proof.server.send(signal.SIGSTOP)
    try:
        stopped = time.monotonic()
        answers = await together(a, [tokens_of(seed, 600) for seed in range(600, 604)], 2)
        assert not any(answer.error for answer in answers)
        await asyncio.sleep(max(0.0, stopped + HANG_SECONDS - time.monotonic()))
    finally:
        proof.server.send(signal.SIGCONT)
    start = time.monotonic()
    paused = await a.do("pause")
    seconds = time.monotonic() - start
    await a.do("resume")
    assert not paused, paused
    assert (await a.do("reset", connector=False))["done"], "a block is in use"
    await proof.until_attached(2)
    return f"paused {seconds:.1f} s after the depot went on, no block in use"


async def refused_reset(proof: Proof, a: Engine, b: Engine) -> str:
    """vLLM refuses a reset while stores run. The engine does not use what it stored before."""
    prompt = tokens_of(610, 600)
    before = await a.generate(prompt, 4)
    await proof.until_quiet()
    proof.server.send(signal.SIGSTOP)
    try:
        await a.generate(tokens_of(611, 600), 2)
        refused = await a.do("reset", connector=True, running=True)
    finally:
        proof.server.send(signal.SIGCONT)
    assert "error" in refused, refused
    fresh = tokens_of(612, 600)

    async def shares() -> bool:
        await proof.forget_locally(a)
        return (await a.generate(fresh, 1)).cached >= whole_chunks(600)

    await until(shares, "the engine finds what it has stored since")
    after, other = await a.generate(prompt, 4), await b.generate(prompt, 4)
    assert after.tokens == before.tokens == other.tokens
    assert (after.cached, other.cached) == (0, whole_chunks(600)), (after.cached, other.cached)
    return f"refused ({refused['error'][:60]}…); afterwards cached 0 of what was stored before"


async def evicted_chunks(proof: Proof, a: Engine, b: Engine) -> str:
    """A preempted request stores again what the depot has lost."""
    await proof.forget_locally(a, b)
    prompt = tokens_of(670, 600)
    running = asyncio.create_task(a.generate(prompt, 200))

    async def stored() -> bool:
        async with proof.depot() as depot:
            return sum(tier.num_chunks for tier in (await depot.get_status()).tiers) >= whole_chunks(600) // 256

    async with proof.depot() as depot:
        await depot.clear_cache(force=True)
    await until(stored, "the prompt is stored")
    preempted = False
    for _ in range(100):  # vLLM refuses while a store runs
        async with proof.depot() as depot:
            await depot.clear_cache(force=True)
        with suppress(KeyError):
            preempted = (await a.do("reset", connector=False, running=True))["done"]
        if preempted:
            break
    assert preempted, "nothing was preempted"
    assert not running.done()
    answer = await running
    await proof.until_quiet()
    found = await b.generate(prompt, 1)
    assert found.cached == whole_chunks(600), f"{found.cached} tokens were cached"
    return f"{len(answer.tokens)} tokens; stored again after a preemption: cached {found.cached} in another engine"


async def long_steps(proof: Proof) -> str:
    """Steps last longer than an answer is kept. Requests are admitted nevertheless, and hit."""
    async with proof.engine("slow", "SlowConnector", "tests.e2e_vllm.slow") as engine:
        await engine.generate(ALONE[0])
        await proof.until_quiet()
        await proof.forget_locally(engine)
        slow = slow_file(proof.server.address)
        slow.touch()
        try:
            async with asyncio.timeout(20 * SLOW_STEP_SECONDS):
                hit, miss = await asyncio.gather(engine.generate(ALONE[0], 1), engine.generate(tokens_of(690, 300), 1))
        finally:
            slow.unlink()
        await proof.until_quiet()
    assert hit.cached == whole_chunks(1900), hit.cached
    assert not miss.error
    return (
        f"steps of {SLOW_STEP_SECONDS:g} s: a hit after {hit.first_seconds / SLOW_STEP_SECONDS:.1f}, "
        f"a miss after {miss.first_seconds / SLOW_STEP_SECONDS:.1f} of them"
    )


async def early_aborts(proof: Proof) -> str:
    """Requests are aborted during their lookups, and their ids come again at once.

    No session is left, and the end of one attempt does not end the next one's session. Block reports are off, because
    they delay the end of a session.
    """
    transfer = proof.transfer("KvdepotConnector")
    transfer["kv_connector_extra_config"]["kvdepot.report_blocks"] = False
    os.environ["VLLM_DISABLE_REQUEST_ID_RANDOMIZATION"] = "1"
    try:
        async with proof.engine("aborted", kv_transfer_config=transfer) as engine:
            first = await engine.generate(ALONE[0])
            await proof.until_quiet()
            for number in range(40):
                await _aborted(engine, 0.002 * (number % 10), tokens_of(620 + number, 600))
            await proof.until_quiet()
            answers = []
            for number in range(6):
                await proof.forget_locally(engine)
                await _aborted(engine, 0.04 * number, ALONE[0], id="the same")
                answers.append(await engine.generate(ALONE[0], id="the same"))
            await proof.until_quiet()
    finally:
        del os.environ["VLLM_DISABLE_REQUEST_ID_RANDOMIZATION"]
    cached = [answer.cached for answer in answers]
    assert min(cached) >= whole_chunks(1900), cached
    assert all(answer.tokens == first.tokens for answer in answers)
    return f"40 aborted at once, no session left; {len(answers)} attempts after an abort of the same id, each hit"


async def _aborted(engine: Engine, seconds: float, prompt: Tokens, **more: Any) -> None:
    """Abort a request after this time."""
    running = asyncio.create_task(engine.generate(prompt, **more))
    await asyncio.sleep(seconds)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
