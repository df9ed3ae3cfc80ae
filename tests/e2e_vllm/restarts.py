"""Cases of depots that end and are replaced, while their chunks stay."""

from __future__ import annotations

import asyncio
import itertools
import signal
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager

from kvdepot.v1 import admin_pb2
from tests.e2e_vllm.cases import ALONE, SOME, Proof, together, tokens_of, until, whole_chunks
from tests.e2e_vllm.engines import Engine
from tests.e2e_vllm.reporting import metrics_of

OF_DISK = ("prompt_tokens_cached_by_source_total", "disk")


async def surviving_chunks(proof: Proof, a: Engine, b: Engine) -> str:
    """The server is killed and started again on the same file. The second engine hits what the first one stored."""
    with tempfile.TemporaryDirectory(prefix="kvdepot-", dir="/dev/shm") as folder:
        async with flags(proof, "--l1-file", f"{folder}/l1"):
            await proof.server.end()
            await proof.server.start()
            await ready(proof, a, b)
            await together(a, SOME)
            await proof.until_quiet()
            await proof.server.end(signal.SIGKILL)
            await proof.server.start()
            start = time.monotonic()
            said = await _hits(proof, a, b)
            seconds = time.monotonic() - start
        await proof.server.end()
        await proof.server.start()
        await ready(proof, a, b)
    return f"killed and started again: {said} within {seconds:.1f} s"


async def taken_over(proof: Proof, a: Engine, b: Engine) -> str:
    """A new server takes over under load. The second engine hits what the first one stored."""
    await proof.forget_locally(a, b)
    await together(a, SOME)
    await proof.until_quiet()
    await proof.forget_locally(a)
    running = asyncio.gather(together(a, SOME), together(b, SOME[:4]))
    await asyncio.sleep(0.2)
    old, proof.server.process = proof.server.process, None
    assert old is not None
    async with flags(proof, "--takeover"):
        start = time.monotonic()
        await proof.server.start()  # the old one still listens
        assert await old.wait() == 0
        seconds = time.monotonic() - start
    from_a, from_b = await running
    same = proof.plain.check([*SOME, *SOME[:4]], from_a + from_b)
    return f"16 requests unharmed, {same}; the old one ended after {seconds:.1f} s; {await _hits(proof, a, b)}"


async def from_disk(proof: Proof, a: Engine, b: Engine) -> str:
    """A server whose L1 is empty takes the disk of the one before it. The second engine hits what the first stored."""
    with tempfile.TemporaryDirectory(prefix="kvdepot-", dir="/var/tmp") as folder:
        async with flags(proof, "--l2", f"disk://{folder}/tier?size=4GiB", "--l2-write", "all"):
            await proof.server.end()
            await proof.server.start()
            await ready(proof, a, b)
            await proof.forget_locally(a)
            for prompt in ALONE:
                await a.generate(prompt)
            await proof.until_quiet()
            await until(lambda: _is_disk_idle(proof), "the disk has all chunks")
            await proof.server.end()
            await proof.server.start()
            await ready(proof, a, b)
            await until(lambda: _is_disk_idle(proof), "the disk is open")
            await proof.forget_locally(b)
            before = await metrics_of(b)
            answers = [await b.generate(prompt) for prompt in ALONE]
            after = await metrics_of(b)
            async with proof.depot() as depot:
                num_read = (await depot.get_status()).tiers[1].traffic.num_reads_by_outcome["arrived"]
        await proof.server.end()
        await proof.server.start()
        await ready(proof, a, b)
    same = proof.plain.check(ALONE, answers)
    cached = [answer.cached for answer in answers]
    assert set(cached) == {whole_chunks(1900)}, f"{cached} tokens were cached"
    of_disk = after[OF_DISK] - before.get(OF_DISK, 0)
    assert of_disk == sum(cached), f"vLLM counts {of_disk} tokens of the disk"
    loading = statistics.median(answer.first_seconds for answer in answers)
    without = proof.plain.first_seconds["alone"]
    return (
        f"cached {cached[0]} of 1900, {num_read} chunks read, all counted as hits of the disk; "
        f"TTFT {loading * 1000:.0f} ms from the disk, {without * 1000:.0f} ms without a connector; {same}"
    )


async def _is_disk_idle(proof: Proof) -> bool:
    async with proof.depot() as depot:
        disk = (await depot.get_status()).tiers[1]
    return disk.state == admin_pb2.TIER_STATE_AVAILABLE and not disk.traffic.num_queued_writes


async def _hits(proof: Proof, a: Engine, b: Engine) -> str:
    """Check that the second engine gets all prompts from the depot."""
    await ready(proof, a, b)
    await proof.forget_locally(b)
    answers = await together(b, SOME)
    assert all(answer.cached == whole_chunks(600) for answer in answers), [answer.cached for answer in answers]
    return f"12 of 12 prompts hit, {proof.plain.check(SOME, answers)}"


async def ready(proof: Proof, *engines: Engine) -> None:
    """Wait until engines are attached. In a step, a worker reports to the scheduler that it is attached again."""
    await proof.until_attached(len(engines))
    steps: list[Awaitable[object]] = [each.generate(tokens_of(910 + n, 64), 2) for n, each in enumerate(engines)]
    await asyncio.gather(*steps)
    await proof.until_quiet()


async def until_shared(proof: Proof, a: Engine, b: Engine) -> None:
    """Wait until one engine finds what the other one stores. Failed lookups have delayed the next ones."""
    numbers = itertools.count()

    async def is_shared() -> bool:
        salt = f"{proof.server.process} {next(numbers)}"
        await a.generate(SOME[0], 1, cache_salt=salt)
        await proof.until_quiet()
        await proof.forget_locally(b)  # it may be the same engine
        return (await b.generate(SOME[0], 1, cache_salt=salt)).cached > 0

    await until(is_shared, "the engines share again")


@asynccontextmanager
async def flags(proof: Proof, *flags: str) -> AsyncIterator[None]:
    """Start servers with more flags while the block runs."""
    before, proof.server.flags = proof.server.flags, (*proof.server.flags, *flags)
    try:
        yield
    finally:
        proof.server.flags = before
