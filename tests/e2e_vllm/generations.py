"""Cases of engines whose weights change in place, and of engines that pause with the weights that they have."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.e2e_vllm import model
from tests.e2e_vllm.cases import Proof, tokens_of, whole_chunks
from tests.e2e_vllm.engines import Engine

PROMPT = tokens_of(640, 1000)
OTHER = tokens_of(641, 1000)


async def updated_weights(proof: Proof) -> str:
    """A trainer updates one engine and then the other. They share exactly while both have the same version."""
    new = str(model.write(proof.folder / "updated", proof.python, seed=8))
    async with proof.engine("updated-plain", None, model=new) as plain:
        new_tokens = (await plain.generate(PROMPT)).tokens
    transfer = proof.transfer("KvdepotConnector")
    transfer["kv_connector_extra_config"]["kvdepot.training_run"] = f"run {proof.folder.name}"
    async with proof.depot() as depot:
        await depot.clear_cache()
    async with (
        proof.engine("trained-a", kv_transfer_config=transfer) as a,
        proof.engine("trained-b", kv_transfer_config=transfer) as b,
    ):
        old = await a.generate(PROMPT)
        await proof.until_quiet()
        answers = [await b.generate(PROMPT)]
        await _update(a, new, "1200")
        answers.append(await a.generate(PROMPT))
        await proof.until_quiet()
        await proof.forget_locally(b)
        answers.append(await b.generate(PROMPT))
        await _update(b, new, "1200")
        answers.append(await b.generate(PROMPT))
        await _update(b, str(proof.model), "1201")
        answers.append(await b.generate(PROMPT))
        await proof.until_quiet()
    cached = [answer.cached for answer in answers]
    tokens = [answer.tokens for answer in answers]
    assert old.tokens != new_tokens, "the weights make no difference"
    assert tokens == [old.tokens, new_tokens, old.tokens, new_tokens, old.tokens]
    assert cached == [whole_chunks(1000), 0, whole_chunks(1000), whole_chunks(1000), 0], cached
    return f"cached {cached}: b old, a new, b still old, b new, b with a third version; tokens identical"


async def updates_under_load(proof: Proof) -> str:
    """The weights change while requests run, without a pause. No KV that older weights computed is found later."""
    new = str(model.write(proof.folder / "updated", proof.python, seed=8))
    async with proof.engine("loaded-plain", None, model=new) as plain:
        expected = [(await plain.generate(prompt)).tokens for prompt in (PROMPT, OTHER)]
    transfer = proof.transfer("KvdepotConnector")
    transfer["kv_connector_extra_config"]["kvdepot.training_run"] = f"load {proof.folder.name}"
    async with (
        proof.engine("loaded-a", kv_transfer_config=transfer) as a,
        proof.engine("loaded-b", kv_transfer_config=transfer) as b,
    ):
        running = asyncio.create_task(a.generate(PROMPT, 400))
        before = await a.generate(OTHER, 2)  # meanwhile the other one runs
        for command, arguments in (("update", {"path": new}), ("version", {"version": "7"})):
            assert await a.do(command, **arguments) == {}
        assert not running.done()
        mixed = await running
        on_old_cache = await a.generate(OTHER, 100)  # together more than the next end of a chunk
        await proof.until_quiet()
        await _update(b, new, "7")
        found = [await b.generate(PROMPT + mixed.tokens, 1), await b.generate(OTHER + on_old_cache.tokens, 1)]
        await proof.until_quiet()
        await proof.forget_locally(b)
        async with proof.depot() as depot:
            await depot.clear_cache()
        answers = [await b.generate(prompt) for prompt in (PROMPT, OTHER)]
        await proof.until_quiet()
    cached = [answer.cached for answer in found]
    assert not before.error
    assert len(mixed.tokens) == 400
    assert on_old_cache.cached > 0, "the engine's own cache was emptied"
    assert cached == [0, 0], f"KV of older weights was found: {cached}"
    assert [answer.tokens for answer in answers] == expected
    return f"an update amid {len(mixed.tokens)} tokens; another engine of that version finds {cached} of them"


async def pause_with_the_same_weights(proof: Proof) -> str:
    """An engine that pauses or resets with the weights that it has finds what it stored, if its user says so."""
    found = []
    for means_new in (True, False):
        transfer = proof.transfer("KvdepotConnector")
        transfer["kv_connector_extra_config"]["kvdepot.reset_means_new_weights"] = means_new
        async with proof.engine(f"paused-{means_new}", kv_transfer_config=transfer) as engine:
            before = await engine.generate(PROMPT)
            await proof.until_quiet()
            await engine.do("pause")
            await engine.do("resume")
            after = await engine.generate(PROMPT)
            await proof.until_quiet()
            assert after.tokens == before.tokens
            found.append(after.cached)
    assert found == [0, whole_chunks(1000)], found
    return f"cached {found[1]} after a pause, {found[0]} by default"


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
