"""Runs all cases and prints their results: ``python -m tests.e2e_vllm PYTHON_WITH_VLLM``."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import platform
import tempfile
import time
from collections.abc import Awaitable
from contextlib import AsyncExitStack
from pathlib import Path

from tests.e2e_vllm import (
    adapter_pairs,
    borders,
    cases,
    churn,
    damages,
    embeddings,
    generations,
    hangs,
    identities,
    model,
    progress,
    reporting,
    restarts,
    sampling,
    several_connectors,
    sizes,
    streams,
    tiny_memory,
    windows,
)
from tests.e2e_vllm.cases import Proof
from tests.e2e_vllm.engines import Server

TOGETHER = [
    cases.shared_prompts,
    cases.chat,
    cases.crowd,
    cases.salts,
    cases.aborts,
    sampling.parallel_samples,
    sampling.ngram_speculation,
    borders.chunk_borders,
    cases.killed_server,
    cases.hung_server,
    progress.evicted_chunks,
    cases.upgraded_server,
    restarts.taken_over,
    restarts.surviving_chunks,
    restarts.from_disk,
    tiny_memory.tiny_memory,
    tiny_memory.less_than_a_prompt,
    churn.restarting_all_the_time,
    hangs.hangs_amid_everything,
    progress.refused_reset,
    progress.idle_after_hang,  # the pause resets, after which the first engine shares nothing
    cases.killed_engine,
]
WITH_ENGINES_OF_THEIR_OWN = [
    cases.tensor_parallel,
    sizes.two_sizes,
    cases.latent_attention,
    cases.preemptions,
    hangs.hangs_of_two_ranks,
    cases.failed_loads,
    damages.partial_loads,
    damages.partial_loads_of_a_rank,
    progress.long_steps,
    progress.early_aborts,
    windows.sliding_windows,
    windows.short_windows,
    windows.windows_alone,
    windows.local_chunks,
    identities.long_rope,
    identities.replaced_weights,
    identities.new_weights_of_a_name,
    identities.retrained_adapter,
    identities.random_hashes,
    identities.among_other_connectors,
    several_connectors.two_caches,
    generations.updated_weights,
    generations.pause_with_the_same_weights,
    reporting.statistics,
    reporting.statistics_of_several,
    reporting.kv_events,
    reporting.prompts_only,
    adapter_pairs.lora_pairs,
    embeddings.prompt_embeddings,
    streams.dropped_streams,
]


class Table:
    """Prints a row per case. A failed case does not stop the others."""

    def __init__(self) -> None:
        self.failed: list[str] = []

    async def row(self, name: str, outcome: Awaitable[str]) -> None:
        start = time.monotonic()
        try:
            result = await outcome
        except Exception as error:  # the next case runs nevertheless
            self.failed.append(name)
            result = f"FAILED: {type(error).__name__}: {error}"
        print(f"{name.replace('_', ' '):<16} {time.monotonic() - start:6.1f} s  {result}", flush=True)


async def run(folder: Path, python: Path, only: list[str]) -> list[str]:
    print(f"logs are in {folder}")
    server = Server(folder / "depot.sock", folder / "server.log", ("--l1-size", "4GiB", "--chunk-size", "256"))
    proof = Proof(folder, python, model.write(folder / "model", python), server)
    table = Table()
    async with proof.engine("plain", None) as engine:
        print(f"vLLM {engine.vllm_version}, kvdepot {importlib.metadata.version('kvdepot')}, {platform.platform()}")
        await table.row("without", _computed(proof))
    await server.start()
    try:
        if chosen := [case for case in TOGETHER if not only or case.__name__ in only]:
            async with AsyncExitStack() as stack:
                a = await stack.enter_async_context(proof.engine("A"))
                b = await stack.enter_async_context(proof.engine("B"))
                await proof.until_attached(2)
                for case in chosen:
                    await server.start()  # a failed case may have left it dead
                    await table.row(case.__name__, case(proof, a, b))
        for alone in WITH_ENGINES_OF_THEIR_OWN:
            if not only or alone.__name__ in only:
                await table.row(alone.__name__, alone(proof))
    finally:
        await server.end()
    return table.failed


async def _computed(proof: Proof) -> str:
    engine = proof.engines["plain"]
    await proof.plain.compute(engine)
    await sampling.compute(proof.plain, engine)
    await borders.compute(proof.plain, engine)
    medians = ", ".join(f"{name} {seconds * 1000:.0f} ms" for name, seconds in proof.plain.first_seconds.items())
    return f"{len(proof.plain.answers)} prompts answered without a depot; TTFT: {medians}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", type=Path, help="a Python that has vLLM")
    parser.add_argument("case", nargs="*", help="only these")
    arguments = parser.parse_args()
    names = [case.__name__ for case in (*TOGETHER, *WITH_ENGINES_OF_THEIR_OWN)]
    if unknown := set(arguments.case) - set(names):
        parser.error(f"no case is named {', '.join(sorted(unknown))}: there are {', '.join(names)}")
    folder = Path(tempfile.mkdtemp(prefix="kvdepot-e2e-vllm-"))
    failed = asyncio.run(run(folder, arguments.python.absolute(), arguments.case))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")
    print("all cases passed")


if __name__ == "__main__":
    main()
