"""A case of vLLM's OpenAI-compatible server whose clients close their connections."""

from __future__ import annotations

import asyncio

from tests.e2e_vllm.api_server import ApiServer, running_api_server
from tests.e2e_vllm.cases import ALL_CORES, GREEDY, GREEDY_TOKENS, SOME, Proof, Tokens, until, whole_chunks
from tests.e2e_vllm.engines import Answer
from tests.e2e_vllm.reporting import series_of

ROUNDS = 4
AFTER_TOKENS = [None, 0, 1, 9]  # of each round's streams: as soon as the request is sent, the answer has begun, …


async def dropped_streams(proof: Proof) -> str:
    """Clients drop 48 streams while 6 others go on. Nothing is left of them, in vLLM and in the depot."""
    async with proof.depot() as depot:
        await depot.clear_cache()
    options = proof.options("KvdepotConnector", enable_prompt_tokens_details=True)
    log = proof.folder / "api-server.log"
    async with running_api_server(proof.python, log, options, VLLM_CPU_OMP_THREADS_BIND=ALL_CORES) as server:
        await proof.until_attached(1)
        computed = await asyncio.gather(*(server.complete(prompt) for prompt in SOME))
        await _until_idle(proof, server)
        over = asyncio.Event()
        others = asyncio.gather(*(_go_on(server, prompt, over) for prompt in GREEDY))
        try:
            for round_ in range(ROUNDS):
                await asyncio.gather(*(_drop(proof, server, number, round_) for number in range(len(SOME))))
                await _reset(server, "?reset_running_requests=true")  # so that the next streams load, too
        finally:
            over.set()
            went_on = await others
        await _until_idle(proof, server)
        found = await asyncio.gather(*(server.complete(prompt) for prompt in SOME))
        await _until_idle(proof, server)
        metrics = series_of(await server.get("/metrics"))
        without = await server.complete(SOME[0], kv_transfer_params={"kvdepot.load": False})
        await _until_idle(proof, server, "?reset_external=true")
        after = []
        for _ in range(2):
            after.append(await server.complete(SOME[0]))
            await _until_idle(proof, server)
    await proof.until_attached(0)
    prompts = [prompt for prompt, answers in zip(GREEDY, went_on, strict=True) for _ in answers]
    answers = [answer for answers in went_on for answer in answers]
    prompts += [*SOME, *SOME, *SOME[:1] * 3]
    same = proof.plain.check(prompts, [*answers, *computed, *found, without, *after])
    whole = whole_chunks(600)
    cached = [answer.cached for answer in (*found, without, *after)]
    assert cached == [*[whole] * len(found), 0, 0, whole], cached
    assert metrics["kvdepot_attached_workers",] == 1
    assert metrics["kvdepot_lookups_total", "hit"] >= len(found)
    assert metrics["kvdepot_tokens_total", "load"] >= len(found) * whole
    assert metrics["kvdepot_tokens_total", "store"] >= len(SOME) * whole
    assert metrics["num_requests_running",] == metrics["num_requests_waiting",] == 0
    shown = {name for name, *_ in metrics if name.startswith("kvdepot_")}
    failed = sum(value for (name, *_), value in metrics.items() if name == "kvdepot_failed_transfers_total")
    return (
        f"{ROUNDS * len(SOME)} streams dropped, {len(answers)} went on, no lease, pin, session or block left; "
        f"{same}; {len(found)} of {len(found)} hit afterwards, 0 after reset_external; {len(shown)} metrics, "
        f"{metrics['kvdepot_lookups_total', 'hit']:.0f} hits, {failed:.0f} failed transfers"
    )


async def _go_on(server: ApiServer, prompt: Tokens, over: asyncio.Event) -> list[Answer]:
    """Stream to the end, again and again until it is over."""
    answers = []
    while not over.is_set():
        answers.append(await server.complete(prompt, GREEDY_TOKENS))
    return answers


async def _drop(proof: Proof, server: ApiServer, number: int, round_: int) -> None:
    """Drop one stream. What came of it is right."""
    after = AFTER_TOKENS[(number + round_) % len(AFTER_TOKENS)]
    tokens = await server.drop(SOME[number], GREEDY_TOKENS, after_tokens=after)
    assert len(tokens) >= (after or 0), f"{len(tokens)} tokens came"
    known = proof.plain.answers[SOME[number]].tokens
    assert tokens[: len(known)] == known[: len(tokens)], f"stream {number} got other tokens"


async def _reset(server: ApiServer, query: str = "") -> None:
    """Empty vLLM's own prefix cache. It refuses this while a block is in use."""

    async def done() -> bool:
        return bool((await server.post(f"/reset_prefix_cache{query}"))["success"])

    await until(done, "vLLM's own prefix cache is empty")


async def _until_idle(proof: Proof, server: ApiServer, query: str = "") -> None:
    """Wait until no lease, session, pin or block is left, and empty vLLM's own prefix cache."""
    await proof.until_quiet()
    async with proof.depot() as depot:
        assert (await depot.get_status()).num_pins == 0
    await _reset(server, query)
