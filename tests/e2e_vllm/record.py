"""Records how a real vLLM calls the connector: ``python -m tests.e2e_vllm.record PYTHON_WITH_VLLM FILE``."""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
from pathlib import Path
from typing import Any

from tests.e2e_vllm import model
from tests.e2e_vllm.cases import Proof, together, tokens_of
from tests.e2e_vllm.damages import damage
from tests.e2e_vllm.engines import RECORD_VARIABLE, Server

WINDOWS: dict[str, Any] = {
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 4,
    "sliding_window": 20,
}


async def record(folder: Path, python: Path, file: Path, *, windows: bool) -> None:
    os.environ[RECORD_VARIABLE] = str(file)
    flags = ("--l1-size", "256MiB", "--chunk-size", "64", "--l1-file", str(folder / "l1"), "--lease-ttl", "1h")
    server = Server(folder / "depot.sock", folder / "server.log", flags)
    proof = Proof(folder, python, model.write(folder / "model", python, **(WINDOWS if windows else {})), server)
    await server.start()
    num_blocks, most = (30, 100) if windows else (17, 60)
    small: dict[str, Any] = {
        "block_size": 32,
        "max_num_batched_tokens": 128,
        "max_model_len": 512,
        "num_gpu_blocks_override": num_blocks,
        "kv_transfer_config": proof.transfer("RecordingConnector", "tests.e2e_vllm.recording"),
    }
    # A replay has no clock, so nothing may depend on time.
    patience = {"kvdepot.lookup_timeout_seconds": 600, "kvdepot.lease_hold_seconds": 600}
    small["kv_transfer_config"]["kv_connector_extra_config"] |= patience
    prompt = tokens_of(1, 200)
    try:
        async with proof.engine("recorded", **small) as engine:
            await engine.generate(prompt, 4)  # computed in two steps, stored
            for damages in (False, True):  # a load fails and is computed; then one succeeds, or ends at damage
                for _ in range(2):
                    await proof.forget_locally(engine)
                    await engine.generate(prompt, 4)
                if not damages:
                    await proof.until_quiet()
                    damage(folder / "l1", 1)
            await proof.forget_locally(engine)
            await engine.generate(prompt[:100], 2)  # vLLM keeps 96 tokens of it; its load fails
            await engine.generate(prompt, 2)  # loads what comes after those
            await proof.forget_locally(engine)
            await together(engine, [tokens_of(seed, 150) for seed in (2, 3, 4)], most)  # too much for the cache
            running = asyncio.create_task(engine.generate(tokens_of(5, 200), 200))
            await asyncio.sleep(1)
            running.cancel()
            await proof.until_quiet()
            print("preemptions:", await engine.do("preemptions"))
    finally:
        await server.end()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("python", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--windows", action="store_true", help="of a model with sliding windows")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvdepot-", dir="/dev/shm") as name:
        files = arguments.python.absolute(), arguments.file.absolute()
        asyncio.run(record(Path(name), *files, windows=arguments.windows))
