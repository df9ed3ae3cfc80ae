"""Cases of engines whose weights change in place, and of engines that pause with the weights that they have."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.e2e_vllm import model
from tests.e2e_vllm.cases import Proof, tokens_of, whole_chunks
from tests.e2e_vllm.engines import Engine

PROMPT = tokens_of(640, 1000)
OTHER = tokens_of(641, 1000)
RUNNING_TOKENS = 400


async def updated_weights(proof: Proof) -> str:
    """A trainer updates two engines. They share exactly while both have weights of the same version."""
    new = str(model.write(proof.folder / "updated", proof.python, seed=8))
    transfer = proof.transfer("KvdepotConnector")
    transfer["kv_connector_extra_config"]["kvdepot.training_run"] = f"run {proof.folder.name}"
    async with proof.depot() as depot:
        await depot.clear_cache()
    async with (
        proof.engine("trained-a", kv_transfer_config=transfer) as a,
        proof.engine("trained-b", kv_transfer_config=transfer) as b,
    ):
        in_turn = await _one_after_the_other(proof, a, b, new)
        under_load = await _without_a_pause(proof, a, b, new)
    return f"{in_turn}; {under_load}"


async def pause_with_the_same_weights(proof: Proof) -> str:
    """An engine that pauses with the weights that it has finds what it stored, if its user says so."""
    transfer = proof.transfer("KvdepotConnector")
    transfer["kv_connector_extra_config"]["kvdepot.reset_means_new_weights"] = False
    async with proof.engine("paused", kv_transfer_config=transfer) as engine:
        before = await engine.generate(PROMPT)
        await proof.until_quiet()
        await engine.do("pause")
        await engine.do("resume")
        after = await engine.generate(PROMPT)
        await proof.until_quiet()
    assert after.tokens == before.tokens
    assert after.cached == whole_chunks(1000), after.cached
    return f"cached {after.cached} after a pause that emptied vLLM's cache"


async def _one_after_the_other(proof: Proof, a: Engine, b: Engine, new: str) -> str:
    """Update one engine and later the other, as a trainer does that pauses them."""
    old = await a.generate(PROMPT)
    await proof.until_quiet()
    answers = [await b.generate(PROMPT)]
    await _update(a, new, "1200")
    answers.append(await a.generate(PROMPT))
    await proof.until_quiet()
    await proof.forget_locally(b)
    answers.append(await b.generate(PROMPT))
    await proof.until_quiet()
    await _update(b, new, "1200")
    answers.append(await b.generate(PROMPT))
    await proof.until_quiet()
    await _update(b, str(proof.model), "1201")
    answers.append(await b.generate(PROMPT))
    await proof.until_quiet()
    cached = [answer.cached for answer in answers]
    tokens = [answer.tokens for answer in answers]
    assert old.tokens != tokens[1], "the weights make no difference"
    assert tokens == [old.tokens, tokens[1], old.tokens, tokens[1], old.tokens]
    assert cached == [whole_chunks(1000), 0, whole_chunks(1000), whole_chunks(1000), 0], cached
    return f"cached {cached}: b old, a new, b still old, b new, b with a third version; tokens identical"


async def _without_a_pause(proof: Proof, a: Engine, b: Engine, new: str) -> str:
    """Update an engine back while requests run, and keep its cache. No KV that other weights computed is found later.

    `a` begins with the new weights, and gets the old ones.
    """
    running = asyncio.create_task(a.generate(OTHER, RUNNING_TOKENS))
    await a.generate(PROMPT, 2)  # meanwhile the other one runs
    commands: list[tuple[str, dict[str, Any]]] = [
        ("update", {"path": str(proof.model)}),
        ("version", {"version": "7"}),
    ]
    for command, arguments in commands:
        assert await a.do(command, **arguments) == {}
    assert not running.done()
    mixed = await running
    on_old_cache = await a.generate(PROMPT, 100)  # together more than the next end of a chunk
    await proof.until_quiet()
    assert on_old_cache.cached > 0, "the engine's own cache was emptied"
    await _update(b, str(proof.model), "7")
    found = [await b.generate(OTHER + mixed.tokens, 1), await b.generate(PROMPT + on_old_cache.tokens, 1)]
    await proof.until_quiet()
    cached = [answer.cached for answer in found]
    assert len(mixed.tokens) == RUNNING_TOKENS
    assert cached == [0, 0], f"KV of other weights was found: {cached}"
    return f"an update amid {RUNNING_TOKENS} tokens: the other engine of that version finds {cached} of two prompts"


async def _update(engine: Engine, path: str, version: str) -> None:
    """Pause, load the weights in place, name them, resume: what a trainer does."""
    steps: list[tuple[str, dict[str, Any]]] = [
        ("pause", {}),
        ("update", {"path": path}),
        ("version", {"version": version}),
        ("resume", {}),
    ]
    for command, arguments in steps:
        done = await engine.do(command, **arguments)
        assert "error" not in done, (command, done)
