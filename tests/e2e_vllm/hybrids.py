"""Cases of models with layers that hold states: gated delta nets and short convolutions."""

from __future__ import annotations

import statistics
from collections import Counter
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
from tests.e2e_vllm.engines import Engine

STATE_TOKENS = 128  # vLLM makes a block so large that a page of attention holds a state
JUST_BEHIND = [tokens_of(700 + number, number * STATE_TOKENS + 1) for number in (1, 8, 13)]  # the state gives the token
SHARED = tokens_of(720, 1024 + 300)  # a step of 1,024 tokens ends within the common beginning
BRANCHES = [SHARED + tokens_of(730 + number, 200) for number in range(3)]
PROMPTS = [*ALONE, WHOLE, *JUST_BEHIND]


async def state_groups(proof: Proof) -> str:
    """Gated delta nets: prompts, branches, a chat over two engines, failed loads, preemptions, a depot that is new."""
    states = _proof(proof, "states", hybrid_models.GATED_DELTA_NETS)
    async with states.engine("states-plain", None) as engine:
        await _plain(states, engine)
        await _chat(states, engine)
        for prompts, max_tokens in ((SOME, 16), (GREEDY, GREEDY_TOKENS)):
            answers = await together(engine, prompts, max_tokens)
            states.plain.answers.update(zip(prompts, answers, strict=True))
    async with states.engine("states-A") as a, states.engine("states-B") as b:
        found = await _found(states, a, b)
        answers = []
        for number, history in enumerate(states.plain.chat):
            answers.append(await (a, b)[number % 2].generate(history, 32))
            await states.until_quiet()
        cached = [answer.cached for answer in answers]
        known = [_ends_with_state(len(history)) for history in states.plain.chat]
        assert all(has >= had for has, had in zip(cached[1:], known, strict=False)), f"{cached} of {known} were cached"
        same = states.plain.check(states.plain.chat, answers)
        await together(a, SOME)
        await states.until_quiet()
    return f"{found}; a chat over both: cached {cached}, {same}; {await _failed(states)}; {await _preempted(states)}"


async def short_convolutions(proof: Proof) -> str:
    """The state of a short convolution is that of the last two tokens."""
    short = _proof(proof, "convolutions", hybrid_models.SHORT_CONVOLUTIONS)
    async with short.engine("convolutions-plain", None) as engine:
        await _plain(short, engine)
    async with short.engine("convolutions-A") as a, short.engine("convolutions-B") as b:
        return await _found(short, a, b)


def _proof(proof: Proof, name: str, config: dict[str, Any]) -> Proof:
    """Return a run of another model on the same server, with its own answers of an engine without a depot."""
    folder = proof.folder / f"model-{name}"
    return Proof(proof.folder, proof.python, hybrid_models.write(folder, proof.python, config), proof.server)


def _ends_with_state(count: int) -> int:
    """Return the last token before which vLLM ends a step, and at which a hit of a prompt can end."""
    return (count - 1) // STATE_TOKENS * STATE_TOKENS


async def _plain(proof: Proof, engine: Engine) -> None:
    for prompt in [*PROMPTS, *BRANCHES]:
        proof.plain.answers[prompt] = await engine.generate(prompt)
    assert len({answer.tokens for answer in proof.plain.answers.values()}) == len(proof.plain.answers)


async def _found(proof: Proof, a: Engine, b: Engine) -> str:
    """One engine finds what the other one computed."""
    computed = [await a.generate(prompt) for prompt in [*PROMPTS, BRANCHES[0]]]
    await proof.until_quiet()
    found = [await b.generate(prompt) for prompt in [*PROMPTS, *BRANCHES[1:]]]
    await proof.until_quiet()
    cached = [answer.cached for answer in found]
    expected = [_ends_with_state(len(prompt)) for prompt in PROMPTS] + 2 * [1024]
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
    async with proof.engine("states-faulty", "FaultyConnector", "tests.e2e_vllm.faulty") as engine:
        answers = await together(engine, SOME)
        same = proof.plain.check(SOME, answers)
        await proof.until_quiet()
    cached = Counter(answer.cached for answer in answers)
    assert cached == {0: len(SOME) // 2, _ends_with_state(600): len(SOME) // 2}, cached
    return f"{cached[0]} of {len(SOME)} loads failed and were computed, {same}"


async def _preempted(proof: Proof) -> str:
    """The KV cache is too small for all requests. Preempted requests find what they had stored."""
    async with proof.engine("states-small", num_gpu_blocks_override=40, max_model_len=1024) as engine:
        answers = await together(engine, GREEDY, GREEDY_TOKENS)
        count = (await engine.do("preemptions"))["count"]
        assert count > 0, "nothing was preempted"
        await proof.until_quiet()
    return f"{count:.0f} preemptions, {proof.plain.check(GREEDY, answers)}"
