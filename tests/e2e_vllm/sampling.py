"""Cases of several samples of a prompt, and of speculative decoding."""

from __future__ import annotations

from typing import Any

from tests.e2e_vllm.cases import GREEDY, GREEDY_TOKENS, Plain, Proof, Tokens, together, tokens_of, whole_chunks
from tests.e2e_vllm.engines import Engine
from tests.e2e_vllm.reporting import metrics_of

SAMPLES = 4
SEEDED: dict[str, Any] = {"n": SAMPLES, "temperature": 1.0, "seed": 11}
SAMPLED = tokens_of(830, 600)
SAMPLE_TOKENS = 200
KNOWN_OF_SAMPLE = SAMPLE_TOKENS - 16  # tokens of a sample that come again as a prompt
NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 1, "prompt_lookup_max": 3}
KNOWN = GREEDY_TOKENS - 16  # tokens of an answer that come again as a prompt


async def compute(plain: Plain, engine: Engine) -> None:
    """Compute the samples without a depot, and what follows each of them."""
    plain.samples = (await engine.generate(SAMPLED, SAMPLE_TOKENS, **SEEDED)).samples
    for prompt in _following(plain):
        plain.answers[prompt] = await engine.generate(prompt)


def _following(plain: Plain) -> list[Tokens]:
    return [SAMPLED + sample[:KNOWN_OF_SAMPLE] for sample in plain.samples]


async def parallel_samples(proof: Proof, a: Engine, b: Engine) -> str:
    """Four samples of one prompt are requests of their own. Each loads, and stores its own tokens."""
    plain = proof.plain
    assert len(set(plain.samples)) == SAMPLES, "the samples are equal"
    computed = await a.generate(SAMPLED, SAMPLE_TOKENS, **SEEDED)
    await proof.until_quiet()
    await proof.forget_locally(a, b)
    found = await b.generate(SAMPLED, SAMPLE_TOKENS, **SEEDED)
    await proof.until_quiet()
    await proof.forget_locally(a, b)
    following = _following(plain)
    continued = await together(b, following)
    await proof.until_quiet()
    await proof.forget_locally(b)
    assert not (computed.error or found.error), computed.error or found.error
    assert computed.samples == found.samples == plain.samples, "other tokens"
    same = plain.check(following, continued)
    # A sample may find more in vLLM's own cache, where another one has computed it.
    assert min(found.cached_of_samples) >= whole_chunks(len(SAMPLED)), f"{found.cached_of_samples} were cached"
    cached = [answer.cached for answer in continued]
    assert cached == [whole_chunks(len(prompt)) for prompt in following], f"{cached} were cached"
    count = sum(len(sample) for answer in (computed, found) for sample in answer.samples)
    return (
        f"cached {list(found.cached_of_samples)} of {len(SAMPLED)} by the samples, {count} tokens identical; "
        f"{cached} of {len(following[0])} with their own tokens, {same}"
    )


async def ngram_speculation(proof: Proof, a: Engine, b: Engine) -> str:
    """An engine that drafts tokens stores no draft that it rejects, and shares with one that does not draft."""
    histories = [prompt + proof.plain.answers[prompt].tokens[:KNOWN] for prompt in GREEDY]
    rest = [proof.plain.answers[prompt].tokens[KNOWN:] for prompt in GREEDY]
    async with proof.engine("ngram", speculative_config=NGRAM) as drafts:
        same = proof.plain.check(GREEDY, await together(drafts, GREEDY, GREEDY_TOKENS))
        await proof.until_quiet()
        found = await metrics_of(drafts)
        num_drafts = found["spec_decode_num_draft_tokens_total",]
        num_accepted = found["spec_decode_num_accepted_tokens_total",]
        assert 0 < num_accepted < num_drafts, f"{num_accepted} of {num_drafts} drafts were accepted"
        cached = []
        for engine in (b, drafts):
            await proof.forget_locally(engine)
            answers = await together(engine, histories)
            await proof.until_quiet()
            assert [answer.tokens for answer in answers] == rest, "other tokens"
            cached.append([answer.cached for answer in answers])
    await proof.until_attached(2)
    assert cached == [[whole_chunks(300 + KNOWN)] * len(GREEDY)] * 2, cached
    return (
        f"{num_accepted:.0f} of {num_drafts:.0f} drafts accepted, {same}; cached {cached[0][0]} of {300 + KNOWN} "
        f"without drafts and with drafts, {2 * 16 * len(GREEDY)} tokens identical"
    )
