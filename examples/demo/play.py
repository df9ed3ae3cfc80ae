"""The demo as processes: a depot, engine A until it has answered, then engine B, which stays."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from examples.demo.choices import DecoderName, DemoDevice, DemoSize
from examples.demo.decoder import PREFILL_STEP_TOKENS
from examples.demo.story import Story
from kvdepot.cli.processes import Child, child, server_addresses

_ENGINE_LIMIT_SECONDS = 300.0
_DEPOT_FLAGS = ("--l1-size", "128MiB", "--chunk-size", str(PREFILL_STEP_TOKENS), "--listen", "127.0.0.1:0")
ENGINE_VARIABLES = {
    "OPENBLAS_NUM_THREADS": "1",  # NumPy's sums are the same in every process, and on a busy machine as well
    "HF_HUB_OFFLINE": "1",  # nothing is downloaded
    "GOMP_SPINCOUNT": "0",  # torch's threads that wait do not spin: on a busy machine that costs more than the work
    # NumPy's large arrays stay in the heap: to map each of them anew takes a quarter of the time.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 30),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """Which engines play. ``module`` is run as `python -m MODULE`, and takes the arguments of `examples.demo`."""

    decoder: DecoderName
    size: DemoSize
    device: DemoDevice
    module: str = "examples.demo"


def play(cast: Cast, story: Story, until_end: ExitStack) -> str:
    """Play the story, and return the depot's TCP address. The depot and engine B run until the stack is closed.

    Raises: ChildFailed.
    """
    story.begin("a depot starts")
    local, tcp = until_end.enter_context(server_addresses(*_DEPOT_FLAGS))
    with ExitStack() as until_answered:
        _run("a", "answered", cast, local, story, until_answered)
    _run("b", "compared", cast, local, story, until_end)
    return tcp


def _run(name: str, last_event: str, cast: Cast, address: str, story: Story, stack: ExitStack) -> None:
    """Run an engine until it has said its last event."""
    arguments = ("--address", address, "--engine", name, "--stay")
    choices = ("--decoder", cast.decoder, "--size", cast.size, "--device", cast.device)
    label = f"engine {name.upper()}"
    story.starts(name)
    engine = stack.enter_context(child(label, "-m", cast.module, *arguments, *choices, variables=ENGINE_VARIABLES))
    with engine.limit(_ENGINE_LIMIT_SECONDS):
        for event, facts in _events(engine):
            story.takes(name, event, facts)
            if event == last_event:
                engine.drain()
                return
    raise engine.failure()


def _events(engine: Child) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in engine.lines():
        if line.startswith("{"):  # libraries print other lines
            facts = json.loads(line)
            yield facts.pop("event"), facts
