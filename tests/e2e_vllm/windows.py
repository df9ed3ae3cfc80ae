"""Cases of models with layers that keep only a part of a prefix."""

from __future__ import annotations

import statistics
from collections import Counter
from typing import Any

from tests.e2e_vllm import model
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
    whole_chunks,
)
from tests.e2e_vllm.engines import Engine

SLIDING, FULL = "sliding_attention", "full_attention"
SHORTER_THAN_WINDOW = tokens_of(600, 300)
GROWING = [ALONE[0][:700], ALONE[0]]  # of the second one, vLLM has a part and the depot has the rest


async def sliding_windows(proof: Proof) -> str:
    """Two groups of sliding windows and one of full attention; the window is longer than a chunk."""
    windowed = _proof(proof, "windows", layer_types=[SLIDING, SLIDING, FULL] * 4, sliding_window=320)
    async with windowed.engine("windows-plain", None) as engine:
        for prompt in [*ALONE, WHOLE, SHORTER_THAN_WINDOW, GROWING[0]]:
            windowed.plain.answers[prompt] = await engine.generate(prompt)
        await _chat(windowed, engine)
        for prompts, max_tokens in ((SOME, 16), (GREEDY, GREEDY_TOKENS)):
            answers = await together(engine, prompts, max_tokens)
            windowed.plain.answers.update(zip(prompts, answers, strict=True))
    async with windowed.engine("windows-A") as a, windowed.engine("windows-B") as b:
        found = await _found(windowed, a, b)
        await windowed.forget_locally(b)
        growing = [await b.generate(prompt) for prompt in GROWING]
        assert growing[1].cached == whole_chunks(1900), f"{growing[1].cached} tokens were cached"
        answers = []
        for number, history in enumerate(windowed.plain.chat):
            answers.append(await (a, b)[number % 2].generate(history, 32))
            await windowed.until_quiet()
        cached = [answer.cached for answer in answers]
        known = [whole_chunks(len(history)) for history in windowed.plain.chat]
        assert all(has >= had for has, had in zip(cached[1:], known, strict=False)), f"{cached} of {known} were cached"
        same = windowed.plain.check([*GROWING, *windowed.plain.chat], [*growing, *answers])
        await together(a, SOME)
        await windowed.until_quiet()
    failed = await _failed_loads(windowed)
    preempted = await _preemptions(windowed)
    return f"{found}; a chat over both: cached {cached}, {same}; {failed}; {preempted}"


async def short_windows(proof: Proof) -> str:
    """The window is shorter than a chunk, so that a group has no block of most chunks."""
    short = _proof(proof, "short", layer_types=[FULL, SLIDING, SLIDING] * 4, sliding_window=100)
    return await _two_engines(short, "short")


async def windows_alone(proof: Proof) -> str:
    """One group, of sliding windows."""
    alone = _proof(proof, "alone", layer_types=[SLIDING] * 12, sliding_window=320)
    return await _two_engines(alone, "alone")


async def local_chunks(proof: Proof) -> str:
    """Two groups of chunked local attention and one of full attention."""
    return await _two_engines(_proof(proof, "local", **model.LOCAL_CHUNKS), "local")


def _proof(proof: Proof, name: str, **changes: Any) -> Proof:
    """Return a run of another model on the same server, with its own answers of an engine without a depot."""
    return Proof(
        proof.folder, proof.python, model.write(proof.folder / f"model-{name}", proof.python, **changes), proof.server
    )


async def _two_engines(proof: Proof, name: str) -> str:
    async with proof.engine(f"{name}-plain", None) as engine:
        for prompt in [*ALONE, WHOLE, SHORTER_THAN_WINDOW]:
            proof.plain.answers[prompt] = await engine.generate(prompt)
    async with proof.engine(f"{name}-A") as a, proof.engine(f"{name}-B") as b:
        return await _found(proof, a, b)


async def _found(proof: Proof, a: Engine, b: Engine) -> str:
    """One engine finds what the other one computed."""
    prompts = [*ALONE, WHOLE, SHORTER_THAN_WINDOW]
    computed = [await a.generate(prompt) for prompt in prompts]
    await proof.until_quiet()
    found = [await b.generate(prompt) for prompt in prompts]
    await proof.until_quiet()
    cached = [answer.cached for answer in found]
    # vLLM computes the last chunk of a prompt of whole chunks: the window before its last token is missing.
    assert cached == [whole_chunks(len(prompt) - 1) for prompt in prompts], f"{cached} tokens were cached"
    computing, loading = (
        statistics.median(answer.first_seconds for answer in answers[: len(ALONE)]) for answers in (computed, found)
    )
    same = proof.plain.check(prompts * 2, computed + found)
    return f"cached {cached}; TTFT {loading * 1000:.0f} ms loading, {computing * 1000:.0f} ms computing; {same}"


async def _chat(proof: Proof, engine: Engine) -> None:
    history: Tokens = ()
    for tokens in PROMPT_ROUNDS:
        history += tokens
        proof.plain.chat.append(history)
        proof.plain.answers[history] = await engine.generate(history, 32)
        history += proof.plain.answers[history].tokens


async def _failed_loads(proof: Proof) -> str:
    """Every second load fails. vLLM computes all tokens of such a request."""
    async with proof.engine("windows-faulty", "FaultyConnector", "tests.e2e_vllm.faulty") as engine:
        answers = await together(engine, SOME)
        same = proof.plain.check(SOME, answers)
        await proof.until_quiet()
        await proof.forget_locally(engine)  # fails while a block is in use
    cached = Counter(answer.cached for answer in answers)
    assert cached == {0: len(SOME) // 2, whole_chunks(600): len(SOME) // 2}, cached
    return f"{cached[0]} of {len(SOME)} loads failed and were computed, {same}"


async def _preemptions(proof: Proof) -> str:
    """The KV cache is too small for all requests. Preempted requests find what they had stored."""
    async with proof.engine("windows-small", num_gpu_blocks_override=60, max_model_len=1024) as engine:
        answers = await together(engine, GREEDY, GREEDY_TOKENS)
        count = (await engine.do("preemptions"))["count"]
        assert count > 0, "nothing was preempted"
        await proof.until_quiet()
    return f"{count:.0f} preemptions, {proof.plain.check(GREEDY, answers)}"
