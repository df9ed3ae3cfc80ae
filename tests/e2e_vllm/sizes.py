"""Cases of vLLM engines with different tensor-parallel sizes that share chunks."""

from __future__ import annotations

from typing import Any

from tests.e2e_vllm.cases import ALONE, Proof, tokens_of, whole_chunks
from tests.e2e_vllm.engines import Answer

HEAD_SHARDS = 4  # one for each KV head of the model
MOST_DIFFERING = (
    0.5  # each size rounds in its own way, so that an answer may take another turn; wrong KV gives no right token
)
BACK = tokens_of(600, 1300)


async def two_sizes(proof: Proof) -> str:
    """An engine of one worker and one of two workers find each other's chunks."""
    async with proof.depot() as depot:
        await depot.clear_cache()
    async with proof.engine("one-worker", **_sharing(proof)) as one:
        stored = [await one.generate(prompt) for prompt in ALONE]
        await proof.until_quiet()
        async with proof.engine("two-workers", cores="0|1", tensor_parallel_size=2, **_sharing(proof)) as two:
            found = [await two.generate(prompt) for prompt in ALONE]
            computed = await two.generate(BACK)
            await proof.until_quiet()
        again = await one.generate(BACK)
        await proof.until_quiet()
    assert [answer.cached for answer in stored] == [0] * len(ALONE)
    assert all(answer.cached == whole_chunks(1900) for answer in found), [answer.cached for answer in found]
    assert (computed.cached, again.cached) == (0, whole_chunks(1300))
    pairs = [(proof.plain.answers[prompt], answer) for prompt, answer in zip(ALONE, found, strict=True)]
    pairs.append((computed, again))
    identical, total = sum(_identical(*pair) for pair in pairs), sum(len(answer.tokens) for _, answer in pairs)
    assert identical > (1 - MOST_DIFFERING) * total, f"only {identical} of {total} tokens are identical"
    return (
        f"one stored, two found {found[0].cached} of 1900; two stored, one found {again.cached} of 1300; "
        f"{identical} of {total} tokens identical; {proof.plain.check(ALONE, stored)} where nothing was loaded"
    )


def _sharing(proof: Proof) -> dict[str, Any]:
    transfer = proof.transfer("KvdepotConnector")
    transfer["kv_connector_extra_config"]["kvdepot.head_shards"] = HEAD_SHARDS
    return {"kv_transfer_config": transfer}


def _identical(one: Answer, other: Answer) -> int:
    assert not one.error and not other.error, (one.error, other.error)
    return sum(a == b for a, b in zip(one.tokens, other.tokens, strict=True))
