"""Cases of real vLLM engines that share a depot. Each compares the tokens with those of an engine without a depot."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvdepot import AsyncDepotClient
from tests.e2e_vllm import model
from tests.e2e_vllm.engines import Answer, Engine, Server, running_engine
from tests.e2e_vllm.model import VOCABULARY

CHUNK_SIZE = 256
BLOCK_SIZE = 64
SETTLE_SECONDS = 30.0
# For engines of one worker: by default, vLLM uses one core less without a connector than with one.
ALL_CORES = ",".join(map(str, sorted(os.sched_getaffinity(0))))

Tokens = tuple[int, ...]


def tokens_of(seed: int, count: int) -> Tokens:
    """Return random token ids, the same for the same seed."""
    numbers = random.Random(seed)
    return tuple(numbers.randrange(3, VOCABULARY) for _ in range(count))


def whole_chunks(count: int) -> int:
    return count // CHUNK_SIZE * CHUNK_SIZE


ALONE = [tokens_of(seed, 1900) for seed in (1, 2, 3)]
WHOLE = tokens_of(4, 4 * CHUNK_SIZE)  # the depot has all of it; vLLM computes its last token again
PREFIXES = [tokens_of(seed, 3 * CHUNK_SIZE) for seed in range(10, 15)]
CROWD = [PREFIXES[number % 5] + tokens_of(100 + number, 40) for number in range(50)]
SOME = [tokens_of(seed, 600) for seed in range(200, 212)]
PROMPT_ROUNDS = [tokens_of(seed, 300) for seed in range(300, 305)]
GREEDY = [tokens_of(seed, 300) for seed in range(400, 406)]
GREEDY_TOKENS = 300  # together more than a small KV cache holds


@dataclass(slots=True)
class Plain:
    """The answers of an engine without a depot, and their times. One engine computes them once."""

    answers: dict[Tokens, Answer] = field(default_factory=dict)
    first_seconds: dict[str, float] = field(default_factory=dict)
    chat: list[Tokens] = field(default_factory=list)
    samples: tuple[Tokens, ...] = ()

    async def compute(self, engine: Engine) -> None:
        self.first_seconds["warm up"] = (await engine.generate(tokens_of(0, 300))).first_seconds
        for prompt in [*ALONE, WHOLE]:
            self.answers[prompt] = await engine.generate(prompt)
        self.first_seconds["alone"] = statistics.median(self.answers[prompt].first_seconds for prompt in ALONE)
        history: Tokens = ()
        for tokens in PROMPT_ROUNDS:
            history += tokens
            self.chat.append(history)
            self.answers[history] = await engine.generate(history, 32)
            history += self.answers[history].tokens
        self.first_seconds["chat"] = self.answers[self.chat[-1]].first_seconds
        self.first_seconds["crowd"] = await self._together(engine, CROWD, 16)
        self.first_seconds["some"] = await self._together(engine, SOME, 16)
        await self._together(engine, GREEDY, GREEDY_TOKENS)

    async def _together(self, engine: Engine, prompts: Sequence[Tokens], max_tokens: int) -> float:
        answers = await together(engine, prompts, max_tokens)
        self.answers.update(zip(prompts, answers, strict=True))
        return statistics.median(answer.first_seconds for answer in answers)

    def check(self, prompts: Sequence[Tokens], answers: Sequence[Answer]) -> str:
        """Check that all tokens are those of the engine without a depot."""
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            assert not answer.error, f"request {number} failed: {answer.error}"
            assert answer.tokens == self.answers[prompt].tokens, f"request {number} got other tokens"
        return f"{sum(len(answer.tokens) for answer in answers)} tokens identical"


async def together(engine: Engine, prompts: Sequence[Tokens], max_tokens: int = 16) -> list[Answer]:
    return await asyncio.gather(*(engine.generate(prompt, max_tokens) for prompt in prompts))


@dataclass(slots=True)
class Proof:
    """One run: the server, its engines, and the answers of an engine without it."""

    folder: Path
    python: Path
    model: Path
    server: Server
    plain: Plain = field(default_factory=Plain)
    engines: dict[str, Engine] = field(default_factory=dict)

    def options(self, connector: str | None, module: str = "kvdepot.vllm", **more: Any) -> dict[str, Any]:
        options: dict[str, Any] = {
            "model": str(self.model),
            "skip_tokenizer_init": True,
            "max_model_len": 4096,
            "max_num_seqs": 64,
            "max_num_batched_tokens": 1024,  # prompts are computed in several steps
            "block_size": BLOCK_SIZE,
            "dtype": "float32",
            "enforce_eager": True,
            **more,
        }
        if connector is not None and "kv_transfer_config" not in more:
            options["kv_transfer_config"] = self.transfer(connector, module)
        return options

    def transfer(self, connector: str, module: str = "kvdepot.vllm") -> dict[str, Any]:
        """Return the option that makes vLLM load a connector."""
        return {
            "kv_connector": connector,
            "kv_connector_module_path": module,
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {
                "kvdepot.address": self.server.address,
                "kvdepot.retrieve_timeout_seconds": 3,
                "kvdepot.store_timeout_seconds": 3,
            },
        }

    @asynccontextmanager
    async def engine(
        self,
        name: str,
        connector: str | None = "KvdepotConnector",
        module: str = "kvdepot.vllm",
        cores: str = ALL_CORES,
        **more: Any,
    ) -> AsyncIterator[Engine]:
        async with running_engine(
            self.python,
            self.folder / f"{name}.log",
            self.options(connector, module, **more),
            VLLM_CPU_OMP_THREADS_BIND=cores,
        ) as engine:
            self.engines[name] = engine
            yield engine

    @asynccontextmanager
    async def depot(self) -> AsyncIterator[AsyncDepotClient]:
        async with AsyncDepotClient(self.server.address, timeout_seconds=5) as client:
            yield client

    async def num_attached(self) -> int:
        async with self.depot() as depot:
            return len((await depot.list_instances()).instances)

    async def until_attached(self, count: int) -> float:
        """Wait until this many engines are attached; return the seconds that it took."""
        start = time.monotonic()

        async def attached() -> bool:
            return await self.num_attached() == count

        await until(attached, f"{count} engines are attached")
        return time.monotonic() - start

    async def until_quiet(self) -> None:
        """Wait until no lease and no session is left."""

        async def quiet() -> bool:
            async with self.depot() as depot:
                status = await depot.get_status()
            return status.num_leases == 0 and status.num_sessions == 0

        await until(quiet, "no lease and no session is left")

    async def forget_locally(self, *engines: Engine) -> None:
        """Empty vLLM's own prefix cache, so that all hits come from the depot."""
        for engine in engines:

            async def forgotten(engine: Engine = engine) -> bool:
                return bool((await engine.do("reset", connector=False))["done"])

            await until(forgotten, "vLLM's own prefix cache is empty")


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    try:
        async with asyncio.timeout(SETTLE_SECONDS):
            while not await condition():  # noqa: ASYNC110 - it happens in another process
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"not within {SETTLE_SECONDS:g} s: {what}") from None


async def shared_prompts(proof: Proof, a: Engine, b: Engine) -> str:
    """One engine finds what the other one computed."""
    computed = [await a.generate(prompt) for prompt in ALONE]
    await a.generate(WHOLE)
    await proof.until_quiet()
    found = [await b.generate(prompt) for prompt in ALONE]
    whole = await b.generate(WHOLE)
    proof.plain.check([WHOLE], [whole])
    assert whole.cached in (len(WHOLE), len(WHOLE) - 1), f"{whole.cached} tokens were cached"
    for answer in found:
        assert answer.cached == whole_chunks(1900), f"{answer.cached} tokens were cached"
    without = proof.plain.first_seconds["alone"]
    storing = statistics.median(answer.first_seconds for answer in computed)
    loading = statistics.median(answer.first_seconds for answer in found)
    same = proof.plain.check(ALONE * 2, computed + found)
    return (
        f"cached {found[0].cached} of 1900; TTFT {loading * 1000:.0f} ms loading, {storing * 1000:.0f} ms computing "
        f"and storing: {storing / loading:.1f}×; {without * 1000:.0f} ms without a connector; {same}"
    )


async def chat(proof: Proof, a: Engine, b: Engine) -> str:
    """The rounds of a chat alternate between two engines. Each finds what the other one computed and generated."""
    answers = []
    for number, history in enumerate(proof.plain.chat):
        answers.append(await (a, b)[number % 2].generate(history, 32))
        await proof.until_quiet()
    cached = [answer.cached for answer in answers]
    for number in range(1, len(cached)):
        known = whole_chunks(len(proof.plain.chat[number - 1]))
        assert cached[number] >= known, f"round {number} found {cached[number]} of {known} tokens"
    lengths = [len(history) for history in proof.plain.chat]
    return f"cached {cached} of {lengths}; {proof.plain.check(proof.plain.chat, answers)}"


async def crowd(proof: Proof, a: Engine, b: Engine) -> str:
    """50 requests with 5 shared prefixes come at once."""
    await together(a, PREFIXES, 1)
    await proof.until_quiet()
    answers = await together(b, CROWD)
    hits = sum(answer.cached >= len(PREFIXES[0]) for answer in answers)
    assert hits == len(CROWD), f"{hits} of {len(CROWD)} found their prefix"
    await proof.until_quiet()
    first = statistics.median(answer.first_seconds for answer in answers)
    without = proof.plain.first_seconds["crowd"]
    same = proof.plain.check(CROWD, answers)
    return f"{hits} of 50 hit; median TTFT {without * 1000:.0f} ms without, {first * 1000:.0f} ms with; {same}"


async def salts(proof: Proof, a: Engine, b: Engine) -> str:
    """A prompt under another salt is another prompt."""
    await a.generate(ALONE[0], cache_salt="tenant-1")
    await proof.until_quiet()
    await proof.forget_locally(b)
    other = await b.generate(ALONE[0], cache_salt="tenant-2")
    same = await b.generate(ALONE[0], cache_salt="tenant-1")
    assert (other.cached, same.cached) == (0, whole_chunks(1900)), (other.cached, same.cached)
    return f"cached 0 with another salt, {same.cached} with its own; {proof.plain.check([ALONE[0]] * 2, [other, same])}"


async def aborts(proof: Proof, a: Engine, b: Engine) -> str:
    """Requests are aborted while they wait, load or run. Nothing is left of them."""
    await together(a, SOME)
    await proof.until_quiet()
    await proof.forget_locally(b)
    running = [asyncio.create_task(b.generate(prompt, 64)) for prompt in SOME * 2]
    for number, task in enumerate(running):
        await asyncio.sleep(0.02)
        if number % 2:
            running[number // 2].cancel()
        task.add_done_callback(lambda _: None)
    done = await asyncio.gather(*running, return_exceptions=True)
    await proof.until_quiet()
    await proof.forget_locally(b)  # fails while a block is in use
    answers = await together(b, SOME)
    assert all(answer.cached == whole_chunks(600) for answer in answers), [answer.cached for answer in answers]
    aborted = sum(isinstance(each, BaseException) for each in done)
    assert aborted == len(SOME), aborted
    return f"{aborted} of {len(running)} aborted, no lease, session or block left; {proof.plain.check(SOME, answers)}"


async def killed_server(proof: Proof, a: Engine, b: Engine) -> str:
    """The server is killed while requests load and store. Later it is started again."""
    await together(a, SOME)
    await proof.until_quiet()
    await proof.forget_locally(b)
    running = asyncio.create_task(together(b, SOME))
    await asyncio.sleep(0.15)
    await proof.server.end(signal.SIGKILL)
    during = await running
    same = proof.plain.check(SOME, during)
    await proof.forget_locally(b)
    away = await together(b, SOME)
    same_away = proof.plain.check(SOME, away)
    assert all(answer.cached == 0 for answer in away)
    first = statistics.median(answer.first_seconds for answer in away)
    without = proof.plain.first_seconds["some"]
    assert first < 5 * without + 5, f"median TTFT {first:.2f} s without a server, {without:.2f} s without a connector"
    await proof.server.start()
    seconds = await proof.until_attached(2)
    await proof.forget_locally(a, b)
    # In a step, the worker reports to the scheduler that it is attached again.
    await asyncio.gather(a.generate(tokens_of(900, 64), 2), b.generate(tokens_of(901, 64), 2))
    await together(a, SOME)
    await proof.until_quiet()
    again = await together(b, SOME)
    assert all(answer.cached == whole_chunks(600) for answer in again), [answer.cached for answer in again]
    return (
        f"12 requests unharmed, {same}; while it was away median TTFT {first * 1000:.0f} ms, {without * 1000:.0f} ms "
        f"without a connector, {same_away}; both engines attached again after {seconds:.1f} s and shared again, "
        f"{proof.plain.check(SOME, again)}"
    )


async def hung_server(proof: Proof, a: Engine, b: Engine) -> str:
    """The server is stopped (SIGSTOP) while requests load and store. It accepts connections and never answers."""
    await together(a, SOME)
    await proof.until_quiet()
    await proof.forget_locally(b)
    running = asyncio.create_task(together(b, SOME))
    await asyncio.sleep(0.15)
    proof.server.send(signal.SIGSTOP)
    try:
        start = time.monotonic()
        during = await running
        seconds = time.monotonic() - start
        same = proof.plain.check(SOME, during)
        later = await together(b, SOME[:4])
        proof.plain.check(SOME[:4], later)
    finally:
        proof.server.send(signal.SIGCONT)
    await proof.until_attached(2)
    await asyncio.gather(a.generate(tokens_of(902, 64), 2), b.generate(tokens_of(903, 64), 2))
    await proof.until_quiet()
    await proof.forget_locally(a, b)  # fails while a block is in use
    again = await together(b, SOME)
    hits = sum(answer.cached > 0 for answer in again)
    assert hits == len(SOME), f"{hits} hits"
    return f"12 requests done {seconds:.1f} s after it stopped, {same}; shared again when it went on: {hits} of 12 hit"


async def upgraded_server(proof: Proof, a: Engine, b: Engine) -> str:
    """The server drains (SIGTERM) under load, and a new one replaces it."""
    await proof.forget_locally(a, b)
    running = asyncio.gather(together(a, SOME), together(b, SOME))
    await asyncio.sleep(0.3)
    await proof.server.end(signal.SIGTERM)
    await proof.server.start()
    from_a, from_b = await running
    same = proof.plain.check(SOME * 2, from_a + from_b)
    seconds = await proof.until_attached(2)
    return f"24 requests unharmed, {same}; attached to the new one after {seconds:.1f} s"


async def killed_engine(proof: Proof, a: Engine, b: Engine) -> str:
    """An engine is killed while it loads and stores. Its successor finds what it stored."""
    await proof.forget_locally(a, b)
    await together(b, SOME)
    await proof.until_quiet()
    running = asyncio.gather(together(a, SOME), return_exceptions=True)
    await asyncio.sleep(0.3)
    a.kill()
    start = time.monotonic()
    await running
    await proof.until_attached(1)
    seconds = time.monotonic() - start
    await proof.until_quiet()
    async with proof.engine("A2") as new:
        answers = await together(new, SOME)
        assert all(answer.cached == whole_chunks(600) for answer in answers), [answer.cached for answer in answers]
        same = proof.plain.check(SOME, answers)
    return f"detached {seconds:.1f} s after SIGKILL, no lease left; its successor hit 12 of 12; {same}"


async def tensor_parallel(proof: Proof) -> str:
    """Two workers have half of the heads each, in memory of their own."""
    async with proof.engine("parallel", cores="0|1", tensor_parallel_size=2) as engine:
        computed = [await engine.generate(prompt) for prompt in ALONE[:2]]
        await proof.until_quiet()
        await proof.forget_locally(engine)
        found = [await engine.generate(prompt) for prompt in ALONE[:2]]
        await proof.until_quiet()
    assert [answer.cached for answer in computed] == [0, 0]  # two workers can't use what one worker stored
    assert all(answer.cached == whole_chunks(1900) for answer in found), [answer.cached for answer in found]
    return f"both ranks' chunks found, cached {found[0].cached}; {proof.plain.check(ALONE[:2] * 2, computed + found)}"


async def latent_attention(proof: Proof) -> str:
    """Two tensor-parallel workers hold the same latents. They are stored once, and a single worker finds them."""
    folder = model.write_latent(proof.folder / "latent")
    latent: dict[str, Any] = {"model": str(folder), "load_format": "dummy", "dtype": "bfloat16", "block_size": 16}
    prompt = tokens_of(500, 1000)
    async with proof.depot() as depot:
        await depot.clear_cache()
    async with proof.engine("latent-two", cores="0|1", tensor_parallel_size=2, **latent) as engine:
        await proof.until_attached(2)  # a replica each
        await engine.generate(prompt)
        await proof.until_quiet()
        await proof.forget_locally(engine)
        by_two = await engine.generate(prompt)
        await proof.until_quiet()
        async with proof.depot() as depot:
            num_chunks = sum(tier.num_chunks for tier in (await depot.get_status()).tiers)
    async with proof.engine("latent-one", **latent) as engine:
        by_one = await engine.generate(prompt)
    cached = (by_two.cached, by_one.cached)
    assert cached == (whole_chunks(1000),) * 2, cached
    assert num_chunks == whole_chunks(1000) // CHUNK_SIZE, f"{num_chunks} chunks were stored"
    return f"{num_chunks} chunks stored by two workers, cached {cached[0]} by two and {cached[1]} by one"


async def preemptions(proof: Proof) -> str:
    """The KV cache is too small for all requests. Preempted requests find what they had stored."""
    async with proof.engine("small", num_gpu_blocks_override=34, max_model_len=2048) as engine:
        answers = await together(engine, GREEDY, GREEDY_TOKENS)
        count = (await engine.do("preemptions"))["count"]
        assert count > 0, "nothing was preempted"
        await proof.until_quiet()
    return f"{count:.0f} preemptions; {proof.plain.check(GREEDY, answers)}"


async def failed_loads(proof: Proof) -> str:
    """Every second load fails. vLLM computes those tokens."""
    async with proof.engine("seed") as engine:
        await together(engine, SOME)
    async with proof.engine("faulty", "FaultyConnector", "tests.e2e_vllm.faulty") as engine:
        answers = await together(engine, SOME)
        same = proof.plain.check(SOME, answers)
        await proof.until_quiet()
        await proof.forget_locally(engine)
    cached = Counter(answer.cached for answer in answers)
    assert cached == {0: len(SOME) // 2, whole_chunks(600): len(SOME) // 2}, cached
    return f"{cached[0]} loads failed and were computed, {cached[whole_chunks(600)]} did not; {same}"
