"""Cases of engines that share KV exactly if they compute the same."""

from __future__ import annotations

from typing import Any

from tests.e2e_vllm import model
from tests.e2e_vllm.cases import Proof, tokens_of, whole_chunks

PROMPT = tokens_of(600, 1000)
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 2048,
    "short_factor": [1.0] * 32,
    "long_factor": [1.0 + number / 8 for number in range(32)],
}


async def long_rope(proof: Proof) -> str:
    """vLLM chooses a LongRoPE model's factors by the longest context, so that equal tokens have other KV."""
    path = str(model.write(proof.folder / "longrope", proof.python, rope_parameters=LONG_ROPE))
    answers = []
    for number, length in enumerate((2048, 4096, 4096)):
        async with proof.engine(f"longrope-{number}", model=path, max_model_len=length) as engine:
            answers.append(await engine.generate(PROMPT))
            await proof.until_quiet()
    short, long, again = answers
    cached = [answer.cached for answer in answers]
    assert short.tokens != long.tokens, "the factors make no difference"
    assert cached == [0, 0, whole_chunks(1000)], cached
    assert again.tokens == long.tokens
    return f"cached {cached} with contexts of 2048, 4096 and 4096 tokens; 16 tokens identical"


async def replaced_weights(proof: Proof) -> str:
    """Weights that are replaced under the same path are another model."""
    answers = []
    for number, seed in enumerate((7, 7, 8)):
        if number != 1:
            path = str(model.write(proof.folder / "replaced", proof.python, seed=seed))
        async with proof.engine(f"replaced-{number}", model=path) as engine:
            answers.append(await engine.generate(PROMPT))
            await proof.until_quiet()
    cached = [answer.cached for answer in answers]
    assert cached == [0, whole_chunks(1000), 0], cached
    assert answers[0].tokens == answers[1].tokens != answers[2].tokens
    return f"cached {cached} with weights a, a and b"


async def new_weights_of_a_name(proof: Proof) -> str:
    """Weights that change under a name of the user's are a miss, which names both revisions."""
    transfer = proof.transfer("KvdepotConnector")
    transfer["kv_connector_extra_config"]["kvdepot.model_name"] = "production"
    async with proof.depot() as depot:
        await depot.clear_cache()
    answers, revisions, misses = [], [], []
    for number, seed in enumerate((7, 7, 8)):
        if number != 1:
            path = str(model.write(proof.folder / "named", proof.python, seed=seed))
        async with proof.engine(f"named-{number}", model=path, kv_transfer_config=transfer) as engine:
            answers.append(await engine.generate(PROMPT))
            await proof.until_quiet()
            async with proof.depot() as depot:
                (instance,) = (await depot.list_instances()).instances
                (session, *_) = (await depot.list_sessions(instance_id=instance.instance_id)).sessions
            assert instance.model_name.startswith("production#"), instance.model_name
            revisions.append(instance.model_revision)
            misses.append(session.totals.last_miss.detail)
    cached = [answer.cached for answer in answers]
    assert cached == [0, whole_chunks(1000), 0], cached
    assert answers[0].tokens == answers[1].tokens != answers[2].tokens
    assert revisions[0] == revisions[1] != revisions[2], revisions
    assert f"model_revision is {revisions[0]!r}, here {revisions[2]!r}" in misses[2], misses
    return f"cached {cached} with weights a, a and b of one name; the miss says: {misses[2]}"


async def retrained_adapter(proof: Proof) -> str:
    """A LoRA adapter that was trained again under its name and path is another one, in place and after a restart."""
    path = model.write_adapter(proof.folder / "adapter", proof.python, seed=1)
    lora: dict[str, Any] = {"lora_name": "sql", "lora_int_id": 1, "lora_path": str(path)}
    options: dict[str, Any] = {"enable_lora": True, "max_lora_rank": 8}
    async with proof.engine("adapter-live", **options) as engine:
        old = await engine.generate(PROMPT, lora=lora)
        await proof.until_quiet()
        await proof.forget_locally(engine)
        found = await engine.generate(PROMPT, lora=lora)
        await proof.until_quiet()
        await proof.forget_locally(engine)
        model.write_adapter(path, proof.python, seed=2)
        new = await engine.generate(PROMPT, lora={**lora, "load_inplace": True})
        await proof.until_quiet()
        without = await engine.generate(PROMPT)
        await proof.until_quiet()
    async with proof.engine("adapter-restarted", **options) as engine:
        restarted = await engine.generate(PROMPT, lora=lora)
        await proof.until_quiet()
    cached = [answer.cached for answer in (old, found, new, restarted)]
    assert len({old.tokens, new.tokens, without.tokens}) == 3, "the adapters make no difference"
    assert cached == [0, whole_chunks(1000), 0, whole_chunks(1000)], cached
    assert (found.tokens, restarted.tokens) == (old.tokens, new.tokens)
    return f"cached {cached}: computed, found, trained again and loaded in place, after a restart; tokens identical"


async def random_hashes(proof: Proof) -> str:
    """The connector warns of hashes that differ in each process. The engine itself finds what it stored."""
    async with proof.engine("xxhash", prefix_caching_hash_algo="xxhash") as engine:
        await engine.generate(PROMPT)
        await proof.until_quiet()
        await proof.forget_locally(engine)
        cached = (await engine.generate(PROMPT)).cached
        await proof.until_quiet()
    log = (proof.folder / "xxhash.log").read_text()
    assert "this engine shares no KV with others" in log
    assert "set PYTHONHASHSEED" in log
    assert cached == whole_chunks(1000), cached
    return f"warned at the start; the engine itself found {cached}"


async def among_other_connectors(proof: Proof) -> str:
    """Within a MultiConnector, the connector works before and behind one that has a handshake."""
    ours, other = proof.transfer("KvdepotConnector"), proof.transfer("OtherConnector", "tests.e2e_vllm.other")
    cached = []
    async with proof.depot() as depot:
        await depot.clear_cache()
    for number, connectors in enumerate(([ours, other], [other, ours])):
        transfer = {
            "kv_connector": "MultiConnector",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {"connectors": connectors},
        }
        async with proof.engine(f"multi-{number}", kv_transfer_config=transfer) as engine:
            answer = await engine.generate(PROMPT)
            cached.append(answer.cached)
            await proof.until_quiet()
    assert cached == [0, whole_chunks(1000)], cached
    return f"started in both orders; the first engine stored, the first request of the second one found {cached[1]}"
