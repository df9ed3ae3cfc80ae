"""Cases of several samples of a prompt, and of speculative decoding."""

from __future__ import annotations

from typing import Any

from tests.e2e_vllm.cases import ALONE, GREEDY, GREEDY_TOKENS, Proof, together, whole_chunks
from tests.e2e_vllm.engines import Answer
from tests.e2e_vllm.reporting import metrics_of

SAMPLES = 4
SEEDED: dict[str, Any] = {"n": SAMPLES, "temperature": 1.0, "seed": 11}
PROMPT = ALONE[0][:1000]
NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 1, "prompt_lookup_max": 3}
KNOWN = GREEDY_TOKENS - 16  # tokens of an answer that come again as a prompt


async def parallel_samples(proof: Proof) -> str:
    """Four samples of one prompt are requests of their own, and each may load and store."""
    async with proof.depot() as depot:
        await depot.clear_cache()
    async with proof.engine("samples-plain", None) as engine:
        seeded = await engine.generate(PROMPT, 300, **SEEDED)
        greedy = await engine.generate(PROMPT, 16, n=SAMPLES)
        following = [PROMPT + tokens[:284] for tokens in seeded.samples]
        after = await together(engine, following, 16)
    assert len(set(seeded.samples)) == SAMPLES, "the samples are equal"
    async with proof.engine("samples-A") as a, proof.engine("samples-B") as b:
        computed = await a.generate(PROMPT, 300, **SEEDED)
        await proof.until_quiet()
        found = await b.generate(PROMPT, 300, **SEEDED)
        await proof.until_quiet()
        await proof.forget_locally(a, b)
        found_greedy = await b.generate(PROMPT, 16, n=SAMPLES)
        await proof.until_quiet()
        await proof.forget_locally(a, b)
        # Each of the samples has stored its own tokens.
        continued = await together(b, following, 16)
        await proof.until_quiet()
        await proof.forget_locally(a, b)
    _check(seeded, computed, [0] * SAMPLES)
    _check(seeded, found, [whole_chunks(1000)] * SAMPLES)
    _check(greedy, found_greedy, [whole_chunks(1000)] * SAMPLES)
    assert [each.tokens for each in continued] == [each.tokens for each in after], "other tokens"
    cached = [each.cached for each in continued]
    assert cached == [whole_chunks(1284)] * SAMPLES, cached
    count = sum(map(len, (*computed.samples, *found.samples, *found_greedy.samples))) + SAMPLES * 16
    return (
        f"cached {list(found.cached_of_samples)} of 1000 by the samples, {cached} behind them; {count} tokens identical"
    )


def _check(plain: Answer, answer: Answer, least: list[int]) -> None:
    """Check the tokens of all samples. A sample may find more than `least` in vLLM's own cache."""
    assert not answer.error, answer.error
    assert answer.samples == plain.samples, "other tokens"
    cached = answer.cached_of_samples
    assert all(has >= needs for has, needs in zip(cached, least, strict=True)), f"{cached} were cached"


async def ngram_speculation(proof: Proof) -> str:
    """An engine that drafts tokens stores no draft that it rejects, and shares with one that does not draft."""
    async with proof.depot() as depot:
        await depot.clear_cache()
    histories = [prompt + proof.plain.answers[prompt].tokens[:KNOWN] for prompt in GREEDY]
    rest = [proof.plain.answers[prompt].tokens[KNOWN:] for prompt in GREEDY]
    async with proof.engine("ngram", speculative_config=NGRAM) as drafts, proof.engine("no-ngram") as other:
        drafted = proof.plain.check(GREEDY, await together(drafts, GREEDY, GREEDY_TOKENS))
        await proof.until_quiet()
        found = await metrics_of(drafts)
        num_drafts = found["spec_decode_num_draft_tokens_total",]
        num_accepted = found["spec_decode_num_accepted_tokens_total",]
        assert 0 < num_accepted < num_drafts, f"{num_accepted} of {num_drafts} drafts were accepted"
        cached = []
        for engine in (other, drafts):
            await proof.forget_locally(engine)
            answers = await together(engine, histories, 16)
            assert [each.tokens for each in answers] == rest, "other tokens"
            cached.append([each.cached for each in answers])
            await proof.until_quiet()
    assert cached == [[whole_chunks(300 + KNOWN)] * len(GREEDY)] * 2, cached
    return (
        f"{num_accepted:.0f} of {num_drafts:.0f} drafts accepted, {drafted}; cached {cached[0][0]} of {300 + KNOWN} "
        f"with and without drafts, {2 * 16 * len(GREEDY)} tokens identical"
    )
