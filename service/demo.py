"""`kvdepot demo`: two engines share a prompt through a real depot, and their answers are compared."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from typing import Annotated, Any

import typer
from google.protobuf.json_format import ParseDict
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from kvdepot.cli.processes import ChildFailed, child, exit_on_terminate, server_process
from kvdepot.cli.session_view import view
from kvdepot.cli.terminal import fail
from kvdepot.v1 import cache_pb2

_ENGINE_LIMIT_SECONDS = 300.0
_L1_SIZE = "256MiB"
# Nothing is downloaded. Threads that wait for each other do not spin: on a busy machine that costs more than the work.
_ENGINE_VARIABLES = {"HF_HUB_OFFLINE": "1", "GOMP_SPINCOUNT": "0"}
_TRY_NEXT = (
    ".venv/bin/buf curl --protocol grpc --http2-prior-knowledge http://127.0.0.1:50051/kvdepot.v1.AdminService/GetStatus",
    "grpcurl -plaintext 127.0.0.1:50051 kvdepot.v1.AdminService/GetStatus",
)


class DemoSize(StrEnum):
    """How big the demo's model is."""

    FULL = "full"
    SMALL = "small"


class DemoDevice(StrEnum):
    """Where the demo's engines compute."""

    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """What one engine reported: the last event of each name."""

    events: dict[str, dict[str, Any]]

    @property
    def answered(self) -> dict[str, Any]:
        """Its work with the depot, and how long that took."""
        return self.events["answered"]


def demo(
    size: Annotated[DemoSize, typer.Option(help="How big the model is.")] = DemoSize.FULL,
    device: Annotated[DemoDevice, typer.Option(help="Where the engines compute and have their KV.")] = DemoDevice.CPU,
) -> None:
    """Let two engines share a prompt through a depot, and compare the answers."""
    if find_spec("transformers") is None:
        fail("the demo needs transformers: run `make demo`, or pip install -e '.[server,demo]'")
    columns = (TextColumn("{task.description:<48}"), BarColumn(), TimeElapsedColumn())
    try:
        with exit_on_terminate(), Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("starting a depot", total=None)
            with server_process("--l1-size", _L1_SIZE, "--chunk-size", "256") as address:
                first = _run_engine("a", address, size, device, progress, task)
                second = _run_engine("b", address, size, device, progress, task)
    except ChildFailed as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("stopped", 130)
    identical = bool(second.events["compared"]["identical"]) and second.answered["matched_tokens"] > 0
    _show(first, second, identical)
    if not identical:
        raise typer.Exit(1)


def _run_engine(name: str, address: str, size: DemoSize, device: DemoDevice, progress: Progress, task: TaskID) -> _Run:
    """Run one engine as a process, and show how far it is.

    Raises: ChildFailed.
    """
    label = f"engine {name.upper()}"
    arguments = ("-m", "examples.demo", "--address", address, "--engine", name, "--size", size, "--device", device)
    run = _Run(events={})
    with child(label, *arguments, variables=_ENGINE_VARIABLES) as process, process.limit(_ENGINE_LIMIT_SECONDS):
        progress.reset(task, total=None, description=f"{label}: starting")
        for event, facts in _events(process.lines()):
            run.events[event] = facts
            if event == "started":
                progress.update(task, total=facts["prompt_tokens"], description=f"{label}: loading the model")
            elif event == "prefilled":
                doing = "prefilling again, without the depot" if "answered" in run.events else "prefilling"
                progress.update(task, completed=facts["num_tokens"], description=f"{label}: {doing}")
    return run


def _events(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in lines:
        if line.startswith("{"):  # libraries print other lines
            facts = json.loads(line)
            yield facts.pop("event"), facts


def _show(first: _Run, second: _Run, identical: bool) -> None:
    console = Console(highlight=False)
    stored, found, compared = first.answered, second.answered, second.events["compared"]
    seconds = found["seconds"]
    cold = compared["prefill_seconds"]
    warm = sum(seconds.get(step, 0.0) for step in ("lookup", "retrieve", "rebuild"))
    retrieve = seconds.get("retrieve", 0.0)

    table = Table(title="the same prefix, computed and retrieved", show_header=False)
    model = second.events["attached"]
    weights = f"{model['num_weights'] / 1e6:.1f} M weights"
    table.add_row("model", f"Llama, {model['num_layers']} layers, {weights}")
    table.add_row("prompt of engine B", f"{second.events['started']['prompt_tokens']:,} tokens")
    table.add_row("matched in the depot", f"{found['matched_tokens']:,} tokens")
    table.add_section()
    table.add_row("cold: prefill of the matched tokens", _milliseconds(cold))
    table.add_row("lookup", _milliseconds(seconds["lookup"]))
    table.add_row("retrieve into the paged buffer", _milliseconds(retrieve))
    table.add_row("rebuild of the dense cache", _milliseconds(seconds["rebuild"]))
    table.add_row("speed-up", f"{cold / warm:.1f}×", style="bold")
    table.add_section()
    table.add_row("stored by engine A", _moved(stored["stored_bytes"], stored["seconds"]["store"]))
    table.add_row("retrieved by engine B", _moved(found["retrieved_bytes"], retrieve))
    table.add_section()
    table.add_row("tokens generated after it", " ".join(map(str, found["tokens"])))
    table.add_row("max |Δlogit|", f"{compared['max_logit_difference']}")
    table.add_row("identical", "yes" if identical else "NO", style="bold green" if identical else "bold red")
    console.print(table)
    console.print(_session("engine A", first))
    console.print(_session("engine B", second))
    console.print("Try next, while `make run` runs in another terminal:")
    for line in _TRY_NEXT:
        console.print(f"  {line}", soft_wrap=True)


def _session(name: str, run: _Run) -> Table:
    """Return the depot's summary of an engine's session, which has ended."""
    session = view(ParseDict(run.answered["summary"], cache_pb2.SessionSummary()))
    kv = run.events["attached"]
    table = Table(title=f"session of {name}: blocks of {kv['block_size']} tokens, {kv['layout']}")
    for header in ("operation", "begins", "takes", "tokens", "bytes", "outcome"):
        table.add_column(header, justify="left" if header in ("operation", "outcome") else "right")
    for operation in session.operations:
        table.add_row(
            operation.kind,
            _milliseconds(operation.span.start_seconds),
            _milliseconds(operation.span.seconds),
            f"{operation.num_tokens:,}",
            f"{operation.num_bytes:,}",
            operation.outcome,
        )
    return table


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"


def _moved(num_bytes: int, seconds: float) -> str:
    if not seconds:
        return "nothing"
    return f"{num_bytes / 1e6:,.1f} MB in {_milliseconds(seconds)}: {num_bytes / seconds / 1e9:.1f} GB/s"
