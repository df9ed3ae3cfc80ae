"""A case of prompts that are embeddings, as a whole or in part."""

from __future__ import annotations

from typing import Any

from tests.e2e_vllm.cases import Proof, tokens_of, whole_chunks
from tests.e2e_vllm.engines import Engine

Parts = list[dict[str, Any]]

ROWS: Parts = [{"seed": 1, "count": 1000}]
OTHER: Parts = [{"seed": 2, "count": 1000}]
BRANCH: Parts = [{"seed": 1, "count": 600}, {"seed": 3, "count": 400}]
TOKENS: Parts = [{"tokens": [0] * 1000}]  # the tokens that vLLM hashes for embeddings
QUESTION = list(tokens_of(820, 300))
MIXED: Parts = [{"tokens": QUESTION}, {"seed": 4, "count": 400}, {"tokens": QUESTION}]
MIXED_OTHER: Parts = [{"tokens": QUESTION}, {"seed": 5, "count": 400}, {"tokens": QUESTION}]
# These two have equal block hashes in vLLM, and other KV from token 600 on.
END: Parts = [{"seed": 6, "count": 300}]
OF_TOKENS: Parts = [{"tokens": [*QUESTION, *QUESTION, *[0] * 200]}, *END]
OF_ZEROS: Parts = [{"tokens": [*QUESTION, *QUESTION]}, {"zeros": 200}, *END]
ALL = [ROWS, OTHER, BRANCH, TOKENS, MIXED, MIXED_OTHER, OF_TOKENS, OF_ZEROS]


async def prompt_embeddings(proof: Proof) -> str:
    """Equal embeddings are found; others never are, though vLLM has equal tokens for them."""
    async with proof.depot() as depot:
        await depot.clear_cache()
    options: dict[str, Any] = {"enable_prompt_embeds": True}
    async with proof.engine("embeddings-plain", None, enable_prefix_caching=False, **options) as engine:
        plain = [(await engine.generate((), parts=parts)).tokens for parts in ALL]
    assert len(set(plain)) == len(ALL), "some prompts have equal answers"

    async def ask(engine: Engine, parts: Parts) -> int:
        answer = await engine.generate((), parts=parts)
        await proof.until_quiet()
        await proof.forget_locally(engine)
        assert not answer.error, answer.error
        assert answer.tokens == plain[ALL.index(parts)], f"other tokens, {answer.cached} were cached"
        return answer.cached

    async with proof.engine("embeddings", **options) as engine:
        stored = [await ask(engine, parts) for parts in (ROWS, MIXED, OF_TOKENS)]
        found = [await ask(engine, parts) for parts in ALL]
        again = [await ask(engine, parts) for parts in ALL]
    whole, to_600, to_300 = whole_chunks(1000), whole_chunks(600), whole_chunks(300)
    assert stored == [0, 0, to_300], stored  # the last one begins as the one before it
    assert found == [whole, 0, to_600, 0, whole, to_300, to_600, to_600], found
    assert again == [whole, whole, whole, 0, whole, whole, to_600, to_600], again
    return f"cached {found}, then {again}; {2 * sum(map(len, plain))} tokens identical"
