"""Cases of a depot whose memory is far smaller than what its engines use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from kvdepot.v1.admin_pb2 import TierStatus
from tests.e2e_vllm.cases import ALONE, CHUNK_SIZE, SOME, Proof, together, whole_chunks
from tests.e2e_vllm.crowds import steady_crowd
from tests.e2e_vllm.engines import Engine
from tests.e2e_vllm.reporting import metrics_of
from tests.e2e_vllm.restarts import flags, ready

CHUNK_MIB = 6  # of the model of these cases
EVICTED, LOADED_TOKENS = 100, 10 * CHUNK_SIZE
PROMPTS = [*SOME[:3], ALONE[0]]  # 13 chunks for each salt
NO_SLOT = ("kvdepot_refused_tokens_total", "NO_SLOT")
LOADED = ("kvdepot_tokens_total", "load")


async def tiny_memory(proof: Proof, a: Engine, b: Engine) -> str:
    """L1 has room for five chunks. Three engines store hundreds, and chunks leave while others look them up."""
    async with flags(proof, "--l1-size", f"{5 * CHUNK_MIB}MiB"), proof.engine("tiny", num_gpu_blocks_override=80) as c:
        engines = [a, b, c]
        await _start_again(proof, *engines)
        before = await _sum(engines, LOADED), await _sum(engines, NO_SLOT)

        async def is_churned() -> bool:
            num_loaded = await _sum(engines, LOADED) - before[0]
            return (await _l1(proof)).num_evicted_chunks >= EVICTED and num_loaded >= LOADED_TOKENS

        async with steady_crowd(proof, engines, PROMPTS) as crowd:
            await crowd.until(is_churned, f"{EVICTED} chunks evicted, and {LOADED_TOKENS} tokens loaded")
        await proof.until_quiet()
        loaded, refused = await _sum(engines, LOADED) - before[0], await _sum(engines, NO_SLOT) - before[1]
        used = await _l1(proof)
        await proof.forget_locally(*engines)  # fails while a block is in use
        shared = await _share(proof, a, b)
    await _start_again(proof, a, b)
    assert used.num_chunks <= 5, used.num_chunks
    counts = f"{used.num_evicted_chunks} chunks evicted, {refused} tokens refused, {loaded} loaded"
    return f"{crowd}; {counts}; {shared}"


async def less_than_a_prompt(proof: Proof, a: Engine, b: Engine) -> str:
    """L1 has room for three of a prompt's seven chunks; then for none, so that no engine can attach."""
    async with flags(proof, "--l1-size", f"{3 * CHUNK_MIB}MiB"):
        await _start_again(proof, a, b)
        answers = [await engine.generate(prompt) for prompt in ALONE for engine in (a, b, a)]
        await proof.until_quiet()
        await proof.forget_locally(a, b)
        at_once = await together(a, ALONE) + await together(b, ALONE)
        await proof.until_quiet()
        await proof.forget_locally(a, b)
        shared = await _share(proof, a, b)
    async with flags(proof, "--l1-size", f"{CHUNK_MIB - 1}MiB"):
        await proof.server.end()
        await proof.server.start()
        without = await together(a, SOME[:4]) + await together(b, SOME[:4])
        assert not await proof.num_attached()
    await _start_again(proof, a, b)
    proof.plain.check([prompt for prompt in ALONE for _ in range(3)], answers)
    same = proof.plain.check([*ALONE * 2, *SOME[:4] * 2], at_once + without)
    cached = Counter(answer.cached for answer in at_once)
    return f"cached {dict(cached)} of 1900; {shared}; with less than a chunk no engine is attached; {same}"


async def _sum(engines: Sequence[Engine], name: tuple[str, ...]) -> int:
    return int(sum([(await metrics_of(engine)).get(name, 0) for engine in engines]))


async def _l1(proof: Proof) -> TierStatus:
    async with proof.depot() as depot:
        return (await depot.get_status()).tiers[0]


async def _share(proof: Proof, a: Engine, b: Engine) -> str:
    """Check that the depot works: the second engine finds what the first one has just stored."""
    stored = await a.generate(SOME[0])
    await proof.until_quiet()
    found = await b.generate(SOME[0])
    proof.plain.check([SOME[0]] * 2, [stored, found])
    assert found.cached == whole_chunks(600) == 2 * CHUNK_SIZE, f"{found.cached} tokens were cached"
    return f"afterwards {found.cached} of 600 found"


async def _start_again(proof: Proof, *engines: Engine) -> None:
    await proof.server.end()
    await proof.server.start()
    await ready(proof, *engines)
