"""A case of a MultiConnector whose second connector is a cache too, with a handshake of its own."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.e2e_vllm.cases import SOME, Proof, whole_chunks
from tests.e2e_vllm.engines import ARCHIVE_ASYNC, ARCHIVE_LOAD, ARCHIVE_LOG, ARCHIVE_SAVE, Answer, Engine
from tests.e2e_vllm.reporting import metrics_of

IN_BOTH, IN_ARCHIVE, IN_DEPOT, NOWHERE = SOME[:4]
PROMPTS = [IN_BOTH, IN_ARCHIVE, IN_DEPOT, NOWHERE]
CHUNKS = whole_chunks(600)
BLOCKS = 576  # the archive has whole blocks of 64 tokens
ARCHIVE_ONLY = {ARCHIVE_SAVE: True, "kvdepot.store": False}
DEPOT_ONLY = {ARCHIVE_LOAD: False}


async def two_caches(proof: Proof) -> str:
    """Each prompt comes from the first connector that has it, and the other one's handshake passes through.

    In one engine the depot comes first, and the archive loads ahead of the step. In the other one the archive comes
    first, has two workers and loads within the step.
    """
    first = await _two_caches(proof, "caches-1", depot_first=True, is_async=True)
    second = await _two_caches(
        proof, "caches-2", depot_first=False, is_async=False, cores="0|1", tensor_parallel_size=2
    )
    return f"depot before archive: {first}; archive before depot, two workers: {second}"


async def _two_caches(proof: Proof, name: str, *, depot_first: bool, is_async: bool, **more: Any) -> str:
    log = proof.folder / f"{name}.loads"
    log.write_text("")
    archive = proof.transfer("ArchiveConnector", "tests.e2e_vllm.archive")
    archive["kv_connector_extra_config"] |= {ARCHIVE_ASYNC: is_async, ARCHIVE_LOG: str(log)}
    connectors = [proof.transfer("KvdepotConnector"), archive]
    transfer = {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"connectors": connectors if depot_first else connectors[::-1]},
    }
    async with proof.depot() as depot:
        await depot.clear_cache()
    async with proof.engine(name, kv_transfer_config=transfer, **more) as engine:
        answers = await asyncio.gather(
            engine.generate(IN_BOTH, kv_transfer_params={ARCHIVE_SAVE: True}),
            engine.generate(IN_ARCHIVE, kv_transfer_params=ARCHIVE_ONLY),
            engine.generate(IN_DEPOT),
        )
        await _forget(proof, engine)
        computed = (await metrics_of(engine)).get(("kvdepot_tokens_total", "load"), 0)
        found = await asyncio.gather(*(engine.generate(prompt) for prompt in PROMPTS))
        await _forget(proof, engine)
        loaded = (await metrics_of(engine))["kvdepot_tokens_total", "load"]
        passed_on = await engine.generate(IN_ARCHIVE, kv_transfer_params=DEPOT_ONLY)
        await _forget(proof, engine)
    cached = [answer.cached for answer in found]
    by_archive = [tokens for _, tokens in map(json.loads, log.read_text().splitlines())]
    assert cached == [CHUNKS if depot_first else BLOCKS, BLOCKS, CHUNKS, 0], cached
    assert by_archive == [BLOCKS] * (1 if depot_first else 2), f"the archive loaded {by_archive}"
    assert loaded - computed == CHUNKS * (2 if depot_first else 1), f"the depot loaded {loaded - computed} tokens"
    # What is loaded ahead of the step is certain, so that the depot stores it too.
    assert passed_on.cached == (CHUNKS if is_async else 0), f"{passed_on.cached} tokens were passed on"
    answers_of: list[Answer] = [*answers, *found, passed_on]
    same = proof.plain.check([*PROMPTS[:3], *PROMPTS, IN_ARCHIVE], answers_of)
    return f"cached {cached}: in both, in the archive, in the depot, nowhere; {passed_on.cached} passed on; {same}"


async def _forget(proof: Proof, engine: Engine) -> None:
    """Wait until all is stored, and empty vLLM's own cache."""
    await proof.until_quiet()
    await proof.forget_locally(engine)  # fails while the archive or the depot holds a block
