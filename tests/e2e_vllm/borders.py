"""A case of prompts that end around the ends of chunks, computed in small steps."""

from __future__ import annotations

from tests.e2e_vllm.cases import BLOCK_SIZE, CHUNK_SIZE, Plain, Proof, Tokens, together, tokens_of, whole_chunks
from tests.e2e_vllm.engines import Answer, Engine

LENGTHS = [chunks * CHUNK_SIZE + more for chunks in range(1, 6) for more in (-1, 0, 1)]
PROMPTS = [tokens_of(1000 + length, length) for length in LENGTHS]
STEP = 97  # tokens of a step: neither blocks nor chunks are multiples of it
ANSWER = 16  # tokens
OWN = 2 * BLOCK_SIZE + 1  # the depot has no chunk of so few tokens


async def compute(plain: Plain, engine: Engine) -> None:
    """Compute the prompts without a depot, and what follows their answers."""
    plain.answers.update(zip(PROMPTS, await together(engine, PROMPTS, ANSWER), strict=True))
    longer = _with_answers(plain)
    plain.answers.update(zip(longer, await together(engine, longer, ANSWER), strict=True))


def _with_answers(plain: Plain) -> list[Tokens]:
    return [prompt + plain.answers[prompt].tokens for prompt in PROMPTS]


async def chunk_borders(proof: Proof, a: Engine, b: Engine) -> str:
    """15 lengths around the ends of chunks, in steps of 97 tokens: computed, loaded, and loaded in part."""
    longer = _with_answers(proof.plain)
    async with proof.engine("borders", max_num_batched_tokens=STEP) as engine:
        computed = await together(engine, PROMPTS)
        await proof.until_quiet()
        await proof.forget_locally(b, engine)
        elsewhere = await together(b, PROMPTS)
        at_once = await together(engine, PROMPTS)
        await proof.until_quiet()
        await proof.forget_locally(b, engine)
        alone = [await engine.generate(prompt) for prompt in PROMPTS]
        behind_own = await _behind_own(proof, engine)
        await proof.forget_locally(engine)
        with_answers = await together(engine, longer)
        await proof.until_quiet()
    await proof.until_attached(2)
    runs = [computed, elsewhere, at_once, alone, behind_own, with_answers]
    prompts = [*PROMPTS * (len(runs) - 1), *longer]
    same = proof.plain.check(prompts, [answer for run in runs for answer in run])
    none, *loaded, grown = [[answer.cached for answer in run] for run in runs]
    assert none == [0] * len(LENGTHS), none
    expected = [whole_chunks(length) for length in LENGTHS]
    own = [max(OWN // BLOCK_SIZE * BLOCK_SIZE, count) for count in expected]
    assert loaded == [expected] * 3 + [own], f"{loaded}, not {expected} and {own}"
    # The chunks that an answer completed are stored, too. Its last token was not computed.
    assert grown == [whole_chunks(length + ANSWER - 1) for length in LENGTHS], grown
    return f"cached {expected} of {LENGTHS}, and {grown} with their answers; {same}"


async def _behind_own(proof: Proof, engine: Engine) -> list[Answer]:
    """Let the engine have a part of each prompt itself, which ends within a chunk. The depot has the rest."""
    answers = []
    for prompt in PROMPTS:
        await proof.forget_locally(engine)
        await engine.generate(prompt[:OWN], 1)
        answers.append(await engine.generate(prompt))
        await proof.until_quiet()
    return answers
