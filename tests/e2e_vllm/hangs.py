"""Cases of a depot that hangs and goes on, several times, amid lookups, loads and stores."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Sequence

from tests.e2e_vllm.cases import SOME, Proof, together, whole_chunks
from tests.e2e_vllm.crowds import SteadyCrowd, steady_crowd
from tests.e2e_vllm.engines import Engine
from tests.e2e_vllm.reporting import metrics_of
from tests.e2e_vllm.restarts import ready, until_shared

# Longer than each deadline: of lookups, loads, stores, and of the ends of leases and sessions.
HANG_SECONDS = 7.0
# Longer than an attempt to attach, too.
LONG_HANG_SECONDS = 13.0
MOST_HANGS = 12
CAUGHT: dict[tuple[str, ...], str] = {
    ("kvdepot_lookups_total", "failed"): "lookups",
    ("kvdepot_lookups_total", "late"): "lookups",
    ("kvdepot_failed_transfers_total", "load"): "loads",
    ("kvdepot_failed_transfers_total", "store"): "stores",
}
LATE = ("DEADLINE_EXCEEDED", "CANCELLED")


async def hangs_amid_everything(proof: Proof, a: Engine, b: Engine) -> str:
    """The depot of two engines hangs amid lookups, loads and stores, and at last it is killed while it hangs."""
    return await _hangs(proof, [a, b])


async def hangs_of_two_ranks(proof: Proof) -> str:
    """The same with the two workers of one engine: the depot may have answered one of them."""
    async with proof.engine("hung-parallel", cores="0|1", tensor_parallel_size=2) as engine:
        await proof.until_attached(1)
        return await _hangs(proof, [engine])


async def _hangs(proof: Proof, engines: Sequence[Engine]) -> str:
    numbers = random.Random(11)
    before = await _caught(engines)
    num_hangs = 0
    async with steady_crowd(proof, engines) as crowd:
        while num_hangs < MOST_HANGS and not crowd.ended.is_set():
            await proof.until_attached(len(engines))
            await asyncio.sleep(numbers.uniform(0.5, 2.5))
            await _hang(proof, crowd, LONG_HANG_SECONDS if num_hangs % 3 == 2 else HANG_SECONDS)
            num_hangs += 1
            caught = await _caught(engines)
            caught.subtract(before)
            if num_hangs >= 3 and all(caught[kind] for kind in set(CAUGHT.values())):
                break
        await proof.until_attached(len(engines))
        await asyncio.sleep(1)
        proof.server.send(signal.SIGSTOP)
        await asyncio.sleep(HANG_SECONDS)
        await proof.server.end(signal.SIGKILL)
        await proof.server.start()
        await proof.until_attached(len(engines))
    await ready(proof, *engines)
    await until_shared(proof, engines[0], engines[-1])
    await proof.forget_locally(*engines)  # fails while a block is in use
    hits = await _hits(proof, engines)
    missing = [kind for kind in CAUGHT.values() if not caught[kind]]
    assert not missing, f"no hang came amid {missing}"
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(caught.items()))
    return f"{num_hangs} hangs, which failed {kinds}, and a kill; {crowd}; afterwards {hits} of {len(SOME)} hit"


async def _hang(proof: Proof, crowd: SteadyCrowd, seconds: float) -> None:
    proof.server.send(signal.SIGSTOP)
    try:
        async with asyncio.timeout(seconds):
            await crowd.ended.wait()  # it ends early with a fault only
    except TimeoutError:
        pass
    finally:
        proof.server.send(signal.SIGCONT)


async def _caught(engines: Sequence[Engine]) -> Counter[str]:
    """Return how many lookups, loads and stores got no answer in time."""
    caught = Counter[str]()
    for engine in engines:
        for name, value in (await metrics_of(engine)).items():
            is_late = len(name) < 3 or name[2] in LATE
            if (kind := CAUGHT.get(name[:2])) and is_late:
                caught[kind] += int(value)
    return caught


async def _hits(proof: Proof, engines: Sequence[Engine]) -> int:
    """Store prompts with the first engine, and find them with the last one."""
    stored = await together(engines[0], SOME)
    await proof.until_quiet()
    await proof.forget_locally(*engines)
    found = await together(engines[-1], SOME)
    await proof.until_quiet()
    proof.plain.check(SOME * 2, stored + found)
    hits = sum(answer.cached == whole_chunks(600) for answer in found)
    assert hits == len(SOME), f"{hits} of {len(SOME)} prompts hit"
    return hits
