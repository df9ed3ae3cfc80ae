"""A case of two LoRA adapters and their base model, which get the same prompts at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from tests.e2e_vllm import model
from tests.e2e_vllm.cases import SOME, Proof, Tokens, whole_chunks
from tests.e2e_vllm.engines import Answer, Engine

PROMPTS = SOME[:4]
OWN = SOME[4:7]  # each is computed with one of the three only


async def lora_pairs(proof: Proof) -> str:
    """Two adapters and the base share nothing, in two engines that compute with all three at once."""
    async with proof.depot() as depot:
        await depot.clear_cache()
    loras: list[dict[str, Any] | None] = [None]
    for number, name in enumerate(("sql", "math"), 1):
        path = model.write_adapter(proof.folder / f"pair-{name}", proof.python, seed=number)
        loras.append({"lora_name": name, "lora_int_id": number, "lora_path": str(path)})
    options: dict[str, Any] = {"enable_lora": True, "max_loras": 2, "max_lora_rank": 8}

    async def ask(engine: Engine, prompts: Sequence[Tokens]) -> list[Answer]:
        """Ask all prompts with all three at once."""
        answers = await asyncio.gather(*(engine.generate(prompt, lora=lora) for prompt in prompts for lora in loras))
        assert not any(answer.error for answer in answers), answers
        return answers

    def tokens_of(answers: Sequence[Answer]) -> list[Tokens]:
        return [answer.tokens for answer in answers]

    async with proof.engine("pairs-plain", None, **options) as engine:
        plain, plain_own = await ask(engine, PROMPTS), await ask(engine, OWN)
    assert len({*tokens_of(plain), *tokens_of(plain_own)}) == len(plain) + len(plain_own), "the adapters have no effect"
    async with proof.engine("pairs-A", **options) as a, proof.engine("pairs-B", **options) as b:
        single = [a.generate(prompt, lora=lora) for prompt, lora in zip(OWN, loras, strict=True)]
        computed, _ = await asyncio.gather(ask(a, PROMPTS), asyncio.gather(*single))
        await proof.until_quiet()
        found = await ask(b, PROMPTS)
        own = await ask(b, OWN)
        await proof.until_quiet()
    assert tokens_of(computed) == tokens_of(found) == tokens_of(plain), "other tokens"
    assert tokens_of(own) == tokens_of(plain_own), "other tokens"
    assert [answer.cached for answer in computed] == [0] * len(computed)
    assert [answer.cached for answer in found] == [whole_chunks(600)] * len(found)
    cached = [answer.cached for answer in own]
    assert cached == [whole_chunks(600) if number % 4 == 0 else 0 for number in range(9)], cached
    count = sum(len(answer.tokens) for answer in (*computed, *found, *own))
    return (
        f"{len(found)} of {len(found)} hit; of three prompts that one of the three had computed, each is found "
        f"with that one only; {count} tokens identical"
    )
