"""Cases of models with layers that hold states: gated delta nets and short convolutions."""

from __future__ import annotations

import asyncio
import os
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tests.e2e_vllm import hybrid_models
from tests.e2e_vllm.cases import (
    ALONE,
    GREEDY,
    GREEDY_TOKENS,
    PROMPT_ROUNDS,
    SOME,
    WHOLE,
    Proof,
    Tokens,
    together,
    tokens_of,
)
from tests.e2e_vllm.engines import PATHS, QUIET, Answer, Engine

DTYPE = "bfloat16"  # the only one of gated delta nets on a CPU
STATE_TOKENS = 128  # vLLM makes a block so large that a page of attention holds a state
SMALL_STATE_TOKENS = 64  # short convolutions have small ones
JUST_BEHIND = [tokens_of(700 + number, number * STATE_TOKENS + 1) for number in (1, 8, 13)]  # the state gives the token
SHARED = tokens_of(720, 1024 + 300)  # a step of 1,024 tokens ends within the common beginning
BRANCHES = [SHARED + tokens_of(730 + number, 200) for number in range(3)]
PROMPTS = [*ALONE, WHOLE, *JUST_BEHIND]


async def state_groups(proof: Proof) -> str:
    """Gated delta nets: prompts, branches, a chat over two engines, failed loads, preemptions, a depot that is new."""
    states = _proof(proof, "states", hybrid_models.GATED_DELTA_NETS)
    async with states.engine("states-plain", None, dtype=DTYPE) as engine:
        await _plain(states, engine)
        await _chat(states, engine)
        for prompts, max_tokens in ((SOME, 16), (GREEDY, GREEDY_TOKENS)):
            answers = await together(engine, prompts, max_tokens)
            states.plain.answers.update(zip(prompts, answers, strict=True))
    async with states.engine("states-A", dtype=DTYPE) as a, states.engine("states-B", dtype=DTYPE) as b:
        found = await _found(states, a, b, STATE_TOKENS)
        answers = []
        for number, history in enumerate(states.plain.chat):
            answers.append(await (a, b)[number % 2].generate(history, 32))
            await states.until_quiet()
        cached = [answer.cached for answer in answers]
        known = [_ends_with_state(len(history), STATE_TOKENS) for history in states.plain.chat]
        assert all(has >= had for has, had in zip(cached[1:], known, strict=False)), f"{cached} of {known} were cached"
        same = _mostly_the_same(states, states.plain.chat, answers)
        await together(a, SOME)
        await states.until_quiet()
    return f"{found}; a chat over both: cached {cached}, {same}; {await _failed(states)}; {await _preempted(states)}"


async def short_convolutions(proof: Proof) -> str:
    """The state of a short convolution is that of the last two tokens."""
    short = _proof(proof, "convolutions", hybrid_models.SHORT_CONVOLUTIONS)
    async with short.engine("convolutions-plain", None) as engine:
        await _plain(short, engine)
    async with short.engine("convolutions-A") as a, short.engine("convolutions-B") as b:
        return await _found(short, a, b, SMALL_STATE_TOKENS)


async def hashed_states(proof: Proof) -> str:
    """vLLM's scheduler and the connector with a model that is a hash: each state that a step reads is compared."""
    found = []
    model = hybrid_models.write(proof.folder / "model-hashed", proof.python, hybrid_models.GATED_DELTA_NETS)
    for seed, is_async in (("7", "0"), ("8", "1")):
        process = await asyncio.create_subprocess_exec(
            *(proof.python, "-m", "tests.e2e_vllm.hashed_runs", model, proof.server.address, seed, is_async),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **QUIET, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "WARNING"},
        )
        output, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()[-2000:]
        found.append(output.decode().strip().splitlines()[-1])
    return f"{found[0]}; with asynchronous scheduling {found[1]}"


def _proof(proof: Proof, name: str, config: dict[str, Any]) -> Proof:
    """Return a run of another model on the same server, with its own answers of an engine without a depot."""
    folder = proof.folder / f"model-{name}"
    return Proof(proof.folder, proof.python, hybrid_models.write(folder, proof.python, config), proof.server)


def _ends_with_state(count: int, state_tokens: int) -> int:
    """Return the last token before which vLLM ends a step, and at which a hit of a prompt can end."""
    return (count - 1) // state_tokens * state_tokens


def _mostly_the_same(proof: Proof, prompts: Sequence[Tokens], answers: Sequence[Answer]) -> str:
    """Check answers that were computed in other batches or other steps than without a depot.

    With bfloat16 vLLM rounds them in other ways, so that some take another turn. A wrong state gives no right token.
    """
    assert not any(answer.error for answer in answers)
    pairs = [
        (proof.plain.answers[prompt].tokens, answer.tokens) for prompt, answer in zip(prompts, answers, strict=True)
    ]
    identical = sum(a == b for one, other in pairs for a, b in zip(one, other, strict=True))
    total = sum(len(tokens) for tokens, _ in pairs)
    assert identical > total / 2, f"only {identical} of {total} tokens are identical"
    return f"{identical} of {total} tokens identical"


async def _plain(proof: Proof, engine: Engine) -> None:
    for prompt in [*PROMPTS, *BRANCHES]:
        proof.plain.answers[prompt] = await engine.generate(prompt)
    different = {answer.tokens for answer in proof.plain.answers.values()}
    assert len(different) == len(proof.plain.answers), sorted(different)


async def _found(proof: Proof, a: Engine, b: Engine, state_tokens: int) -> str:
    """One engine finds what the other one computed."""
    computed = [await a.generate(prompt) for prompt in [*PROMPTS, BRANCHES[0]]]
    await proof.until_quiet()
    found = [await b.generate(prompt) for prompt in [*PROMPTS, *BRANCHES[1:]]]
    await proof.until_quiet()
    cached = [answer.cached for answer in found]
    expected = [_ends_with_state(len(prompt), state_tokens) for prompt in PROMPTS] + 2 * [1024]
    assert cached == expected, f"{cached} of {expected} tokens were cached"
    computing, loading = (
        statistics.median(answer.first_seconds for answer in answers[: len(ALONE)]) for answers in (computed, found)
    )
    same = proof.plain.check([*PROMPTS, BRANCHES[0], *PROMPTS, *BRANCHES[1:]], computed + found)
    return f"cached {cached}; TTFT {loading * 1000:.0f} ms loading, {computing * 1000:.0f} ms computing; {same}"


async def _chat(proof: Proof, engine: Engine) -> None:
    history: Tokens = ()
    for tokens in PROMPT_ROUNDS:
        history += tokens
        proof.plain.chat.append(history)
        proof.plain.answers[history] = await engine.generate(history, 32)
        history += proof.plain.answers[history].tokens


async def _failed(proof: Proof) -> str:
    """Every second load fails. vLLM computes all tokens of such a request."""
    async with proof.engine("states-faulty", "FaultyConnector", "tests.e2e_vllm.faulty", dtype=DTYPE) as engine:
        answers = await together(engine, SOME)
        same = _mostly_the_same(proof, SOME, answers)
        await proof.until_quiet()
    cached = Counter(answer.cached for answer in answers)
    assert cached == {0: len(SOME) // 2, _ends_with_state(600, STATE_TOKENS): len(SOME) // 2}, cached
    return f"{cached[0]} of {len(SOME)} loads failed and were computed, {same}"


async def _preempted(proof: Proof) -> str:
    """The KV cache is too small for all requests. Preempted requests find what they had stored."""
    async with proof.engine("states-small", num_gpu_blocks_override=40, max_model_len=1024, dtype=DTYPE) as engine:
        answers = await together(engine, GREEDY, GREEDY_TOKENS)
        count = (await engine.do("preemptions"))["count"]
        assert count > 0, "nothing was preempted"
        await proof.until_quiet()
    return f"{count:.0f} preemptions, {_mostly_the_same(proof, GREEDY, answers)}"
