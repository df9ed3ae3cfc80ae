"""One real vLLM engine in a process of its own. It reads commands as lines of JSON, and writes an answer for each.

Run it with vLLM's Python: ``python engine_main.py '{"model": …, "kv_transfer_config": …}'``. The first line that it
writes says that it is ready. It ends with its input, and vLLM's own processes end with it.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import sys
import time
from typing import Any, TextIO

from tests.e2e_vllm.mixed_prompts import mixed_prompt

PR_SET_PDEATHSIG = 1


async def generate(engine: Any, command: dict[str, Any]) -> dict[str, Any]:
    """Return a request's tokens, how many of its prompt were cached, and the time to the first token.

    With ``n`` above 1, ``tokens`` and ``cached`` are those of the first sample; ``samples`` and ``cached_of_samples``
    have all of them.
    """
    from vllm import SamplingParams
    from vllm.inputs import TokensPrompt
    from vllm.lora.request import LoRARequest

    prompt = mixed_prompt(command["parts"]) if "parts" in command else TokensPrompt(prompt_token_ids=command["prompt"])
    if salt := command.get("cache_salt"):
        prompt["cache_salt"] = salt
    params = SamplingParams(
        n=command.get("n", 1),
        temperature=command.get("temperature", 0.0),
        seed=command.get("seed"),
        max_tokens=command["max_tokens"],
        ignore_eos=True,
        detokenize=False,
        extra_args={"kv_transfer_params": command["kv_transfer_params"]} if "kv_transfer_params" in command else None,
    )
    start = time.monotonic()
    first_seconds = None
    samples: dict[int, list[int]] = {}
    cached: dict[int, int | None] = {}
    lora = LoRARequest(**command["lora"]) if command.get("lora") else None
    headers = command.get("trace_headers")
    async for output in engine.generate(prompt, params, command["id"], trace_headers=headers, lora_request=lora):
        if first_seconds is None:
            first_seconds = time.monotonic() - start
        for sample in output.outputs:
            samples[sample.index] = list(sample.token_ids)
            cached.setdefault(sample.index, output.num_cached_tokens)
    return {
        "tokens": samples[0],
        "cached": cached[0],
        "samples": [samples[index] for index in sorted(samples)],
        "cached_of_samples": [cached[index] for index in sorted(samples)],
        "first_seconds": first_seconds,
        "seconds": time.monotonic() - start,
    }


async def carry_out(engine: Any, command: dict[str, Any]) -> dict[str, Any]:
    match command["do"]:
        case "generate":
            return await generate(engine, command)
        case "preemptions":
            from vllm.v1.metrics.reader import Counter, get_metrics_snapshot

            await engine.do_log_stats()
            counters = [each for each in get_metrics_snapshot() if isinstance(each, Counter)]
            return {"count": sum(each.value for each in counters if each.name == "vllm:num_preemptions")}
        case "metrics":
            from prometheus_client import generate_latest
            from vllm.v1.metrics.prometheus import get_prometheus_registry

            await engine.do_log_stats()
            return {"text": generate_latest(get_prometheus_registry()).decode()}
        case "reset":
            running = command.get("running", False)
            return {"done": await engine.reset_prefix_cache(running, reset_connector=command["connector"])}
        case "pause":
            await engine.pause_generation()
            return {}
        case "resume":
            await engine.resume_generation()
            return {}
        case "update":
            await engine.collective_rpc("reload_weights", kwargs={"weights_path": command["path"]})
            return {}
        case "version":
            await engine.update_weight_version(command["version"])
            return {}
        case unknown:
            raise ValueError(f"there is no command {unknown!r}")


async def main(options: dict[str, Any], output: TextIO) -> None:
    def say(number: int, answer: dict[str, Any]) -> None:
        output.write(json.dumps({"number": number, **answer}) + "\n")

    async def answer(command: dict[str, Any]) -> None:
        try:
            say(command["number"], await carry_out(engine, command))
        except asyncio.CancelledError:
            say(command["number"], {"aborted": True})
        except Exception as error:
            say(command["number"], {"error": f"{type(error).__name__}: {error}"})

    import vllm
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**options))
    say(0, {"vllm": vllm.__version__})
    reader = asyncio.StreamReader(limit=1 << 26)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    tasks: dict[int, asyncio.Task[None]] = {}
    while line := await reader.readline():
        command = json.loads(line)
        if command["do"] == "abort":
            tasks[command["which"]].cancel()
        else:
            tasks[command["number"]] = asyncio.create_task(answer(command))
    engine.shutdown()


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # so that vLLM's own output is not taken for answers
    asyncio.run(main(json.loads(sys.argv[1]), answers))
