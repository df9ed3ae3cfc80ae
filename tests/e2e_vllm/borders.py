"""A case of prompts that end around the ends of chunks, computed in small steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.e2e_vllm.cases import BLOCK_SIZE, CHUNK_SIZE, Proof, Tokens, together, tokens_of, whole_chunks
from tests.e2e_vllm.engines import Answer, Engine

LENGTHS = [chunks * CHUNK_SIZE + more for chunks in range(1, 6) for more in (-1, 0, 1)]
PROMPTS = [tokens_of(1000 + length, length) for length in LENGTHS]
STEP = 97  # tokens of a step: neither blocks nor chunks are multiples of it
ANSWER = 16
OWN = 2 * BLOCK_SIZE + 1  # the depot has no chunk of so few tokens


async def chunk_borders(proof: Proof) -> str:
    """15 lengths around the ends of chunks; steps of 97 tokens. All are computed, loaded, and loaded in part."""
    async with proof.engine("borders-plain", None) as engine:
        plain = await together(engine, PROMPTS, ANSWER)
        longer = [prompt + answer.tokens for prompt, answer in zip(PROMPTS, plain, strict=True)]
        plain_longer = await together(engine, longer, ANSWER)
    same = 0

    def check(answers: Sequence[Answer], expected: Sequence[Answer]) -> list[int]:
        nonlocal same
        for length, answer, right in zip(LENGTHS, answers, expected, strict=True):
            assert not answer.error, answer.error
            assert answer.tokens == right.tokens, f"other tokens after {length}, of which {answer.cached} were cached"
            same += len(answer.tokens)
        return [answer.cached for answer in answers]

    small: dict[str, Any] = {"max_num_batched_tokens": STEP}
    async with proof.engine("borders-A", **small) as a, proof.engine("borders-B", **small) as b:
        computed = check(await together(a, PROMPTS, ANSWER), plain)
        await proof.until_quiet()
        at_once = check(await together(b, PROMPTS, ANSWER), plain)
        await proof.until_quiet()
        await proof.forget_locally(b)
        alone = check([await b.generate(prompt, ANSWER) for prompt in PROMPTS], plain)
        behind_own = check(await _behind_own(proof, b, PROMPTS), plain)
        await proof.forget_locally(b)
        with_answers = check([await b.generate(prompt, ANSWER) for prompt in longer], plain_longer)
        await proof.until_quiet()
    assert computed == [0] * len(LENGTHS), computed
    # vLLM computes the last token of a prompt that it has as a whole.
    expected = [whole_chunks(length) - (length % CHUNK_SIZE == 0) for length in LENGTHS]
    assert at_once == alone == expected, f"{at_once} and {alone}, not {expected}"
    assert behind_own == expected, f"{behind_own}, not {expected}"
    # Chunks that the answer completed are stored, too. The answer's last token is not computed.
    grown = [whole_chunks(length + ANSWER - 1) for length in LENGTHS]
    assert with_answers == grown, f"{with_answers}, not {grown}"
    return f"cached {expected} of {LENGTHS}, and {grown} with their answers; {same} tokens identical"


async def _behind_own(proof: Proof, engine: Engine, prompts: Sequence[Tokens]) -> list[Answer]:
    """Let the engine have a part of each prompt itself, which ends within a chunk. The depot has the rest."""
    answers = []
    for prompt in prompts:
        await proof.forget_locally(engine)
        await engine.generate(prompt[:OWN], 1)
        answers.append(await engine.generate(prompt, ANSWER))
        await proof.until_quiet()
    return answers
