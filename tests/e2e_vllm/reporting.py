"""Cases of what vLLM shows and lets users limit: statistics, hits by tier, KV events, a request's parameters."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from tests.e2e_vllm.cases import BLOCK_SIZE, CHUNK_SIZE, Proof, tokens_of, until, whole_chunks
from tests.e2e_vllm.engines import Engine

PROMPT = tokens_of(800, 1000)
CHUNKS = whole_chunks(1000)
SERIES = re.compile(r"^vllm:(?P<name>\w+)\{(?P<labels>.*)\} (?P<value>\S+)$", re.MULTILINE)


async def metrics_of(engine: Engine) -> dict[tuple[str, ...], float]:
    """Return the values of vLLM's own metrics page, as `series_of` does."""
    return series_of((await engine.do("metrics"))["text"])


def series_of(text: str) -> dict[tuple[str, ...], float]:
    """Return the values of a metrics page, by name and by the labels beyond vLLM's own."""
    found = {}
    for series in SERIES.finditer(text):
        labels = dict(re.findall(r'(\w+)="([^"]*)"', series["labels"]))
        extra = [value for name, value in labels.items() if name not in ("model_name", "engine")]
        found[series["name"], *extra] = float(series["value"])
    return found


async def statistics(proof: Proof) -> str:
    """vLLM's metrics and its log have the connector's loads, stores and lookups; requests limit both."""
    async with proof.engine("counted") as engine:
        line = await _counted(proof, engine, "counted")
        cached = await _limited(proof, engine)
    return f"tokens, bytes, times and lookups on /metrics; the log: {line}; cached {cached} of 1000 with limits"


async def statistics_of_several(proof: Proof) -> str:
    """The same within a MultiConnector."""
    connectors = [proof.transfer("KvdepotConnector"), proof.transfer("OtherConnector", "tests.e2e_vllm.other")]
    transfer = {
        "kv_connector": "MultiConnector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"connectors": connectors},
    }
    async with proof.engine("counted-multi", kv_transfer_config=transfer) as engine:
        return f"the same; the log: {await _counted(proof, engine, 'counted-multi')}"


async def _counted(proof: Proof, engine: Engine, name: str) -> str:
    """Compute, store and load a prompt. Return the line of vLLM's log."""
    async with proof.depot() as depot:
        await depot.clear_cache()
    await engine.generate(PROMPT)
    await proof.until_quiet()
    await proof.forget_locally(engine)
    assert (await engine.generate(PROMPT)).cached == CHUNKS
    await proof.until_quiet()
    await engine.generate(tokens_of(801, 40), 2)  # the step that reports the end of the load
    found = await metrics_of(engine)
    assert found["kvdepot_tokens_total", "store"] == CHUNKS, found
    assert found["kvdepot_tokens_total", "load"] == CHUNKS, found
    assert found["kvdepot_bytes_total", "load"] == found["kvdepot_bytes_total", "store"] > 0
    assert found["kvdepot_transfer_seconds_count", "load"] == 1
    assert found["kvdepot_lookups_total", "hit"] == found["kvdepot_lookups_total", "miss"] == 1
    assert found["kvdepot_lookup_wait_seconds_count",] == 2
    assert found["kvdepot_attached_workers",] == 1
    assert found["prompt_tokens_cached_by_source_total", "host"] == CHUNKS
    lines = re.findall(r"KV Transfer metrics: (.*)", (proof.folder / f"{name}.log").read_text())
    assert "loaded tokens" in lines[-1], lines
    return str(lines[-1])


async def _limited(proof: Proof, engine: Engine) -> list[int]:
    """Let requests limit their stores and loads. A wrong value is ignored, with a warning."""
    cached = []

    async def run(**params: Any) -> int:
        named = {f"kvdepot.{name}": value for name, value in params.items()}
        answer = await engine.generate(tokens_of(810, 1000), 1, kv_transfer_params=named)
        await proof.until_quiet()
        await proof.forget_locally(engine)
        assert not answer.error, answer.error
        return answer.cached

    for first, second in (
        ({"store": False}, {}),
        ({"max_store_tokens": 600}, {}),
        ({}, {"load": False}),
        ({}, {"max_load_tokens": 600}),
        ({"store": "no"}, {"max_load_tokens": -1}),
    ):
        async with proof.depot() as depot:
            await depot.clear_cache()
        await run(**first)
        cached.append(await run(**second))
    assert cached == [0, 2 * CHUNK_SIZE, 0, 2 * CHUNK_SIZE, CHUNKS], cached
    log = (proof.folder / "counted.log").read_text()
    assert log.count("a request's kvdepot.store is ignored") == 1
    assert log.count("a request's kvdepot.max_load_tokens is ignored") == 1
    return cached


@asynccontextmanager
async def events_of(endpoint: str) -> AsyncIterator[list[dict[str, Any]]]:
    """Collect all events that vLLM publishes while the block runs."""
    context = zmq.asyncio.Context()
    socket = context.socket(zmq.SUB)
    socket.connect(endpoint)
    socket.subscribe(b"")
    events: list[dict[str, Any]] = []

    async def read() -> None:
        while True:
            _, _, payload = await socket.recv_multipart()
            events.extend(msgspec.msgpack.decode(payload)[1])

    task = asyncio.create_task(read())
    try:
        yield events
    finally:
        task.cancel()
        socket.close(0)
        context.term()


async def kv_events(proof: Proof) -> str:
    """Routers read from vLLM which blocks are in the depot, and that they are not there any more."""
    endpoint = "tcp://127.0.0.1:5917"
    config = {"enable_kv_cache_events": True, "endpoint": endpoint.replace("127.0.0.1", "*")}
    async with proof.depot() as depot:
        await depot.clear_cache()
    async with proof.engine("events", kv_events_config=config) as engine, events_of(endpoint) as events:

        def of_depot(kind: str) -> list[dict[str, Any]]:
            return [each for each in events if each["type"] == kind and each["medium"] == "CPU"]

        async def published(kind: str) -> None:
            async def is_there() -> bool:
                await engine.generate(tokens_of(802, 40), 1)  # a step
                return bool(of_depot(kind))

            await until(is_there, f"{kind} is published")

        await engine.generate(PROMPT)
        await proof.until_quiet()
        await published("BlockStored")
        stored = of_depot("BlockStored")
        hashes = [each for event in stored for each in event["block_hashes"]]
        tokens = [each for event in stored for each in event["token_ids"]]
        assert tokens == list(PROMPT[:CHUNKS]), "the tokens are the prompt's, in order"
        assert len(hashes) == CHUNKS // BLOCK_SIZE
        assert stored[0]["parent_block_hash"] is None
        assert {event["block_size"] for event in stored} == {BLOCK_SIZE}
        on_gpu = [each for event in events if event.get("medium") == "GPU" for each in event["block_hashes"]]
        assert set(hashes) <= set(on_gpu), "vLLM gives the same names to its own blocks"
        async with proof.depot() as depot:
            await depot.clear_cache()
        await proof.forget_locally(engine)
        await engine.generate(PROMPT)
        await published("BlockRemoved")
        removed = [each for event in of_depot("BlockRemoved") for each in event["block_hashes"]]
        assert removed == hashes
    return f"{len(hashes)} blocks published as stored in {len(stored)} events, and removed after a lookup missed them"


async def prompts_only(proof: Proof) -> str:
    """With the setting, a generated answer is not stored."""
    async with proof.depot() as depot:
        await depot.clear_cache()
    transfer = proof.transfer("KvdepotConnector")
    transfer["kv_connector_extra_config"]["kvdepot.store_prompts_only"] = True
    async with proof.engine("prompts-only", kv_transfer_config=transfer) as engine:
        answer = await engine.generate(PROMPT[:300], 300)
        await proof.until_quiet()
        await proof.forget_locally(engine)
        cached = (await engine.generate(PROMPT[:300] + answer.tokens, 1)).cached
    assert cached == CHUNK_SIZE, cached
    return f"of a prompt of 300 tokens and an answer of 300, {cached} are found"
