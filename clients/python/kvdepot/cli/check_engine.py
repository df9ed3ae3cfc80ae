"""The command `check-engine`: whether an author's engine stores and retrieves the bytes that it means."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer

from kvdepot import Credentials, DepotClient, DepotError
from kvdepot.cli.depot_options import AsJson, takes_credentials
from kvdepot.cli.failures import why
from kvdepot.cli.processes import Child, ChildFailed, child, exit_on_terminate, server_process
from kvdepot.cli.server_folder import PACKAGE, server_folder
from kvdepot.cli.terminal import fail, printable

PROCESS = "kvdepot.cli.engine_check.process"
MAX_CHUNK_TOKENS = 256
PROMPTS_IN_L1 = 8  # of the longest that the engine has blocks for
MORE_L1_MIB = 64


class ExitCode(IntEnum):
    """The exit codes of the command, for scripts."""

    WORKS = 0
    WRONG = 1
    """Something is wrong with the engine."""
    NOT_TRIED = 2
    """The command was called wrongly, or there is no depot."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step that has ended. `problem` is empty if it went well."""

    step: str
    problem: str

    @property
    def ok(self) -> bool:
        """Whether it went well."""
        return not self.problem


class Failed(Exception):
    """A step failed, which ends the check."""


@dataclass(slots=True)
class Checklist:
    """The steps so far, printed one by one, or all at the end as JSON."""

    as_json: bool
    steps: list[Step] = field(default_factory=list)

    def add(self, name: str, problem: str = "") -> None:
        """Note a step.

        Raises: Failed.
        """
        if not problem and any(step.step == name for step in self.steps):
            return  # each process makes the engine anew
        step = Step(name, problem)
        self.steps.append(step)
        if not self.as_json:
            print(f"{'ok   ' if step.ok else 'WRONG'}  {name}")
            for line in problem.splitlines():
                print(f"       {printable(line)}")
        if problem:
            raise Failed


@takes_credentials
def check_engine(
    target: Annotated[str, typer.Argument(metavar="MODULE:FACTORY", help="A function that returns the engine.")],
    *,
    address: Annotated[str, typer.Option(help="A depot to try it with. Default: one of its own.")] = "",
    time_limit_seconds: Annotated[float, typer.Option(min=1, help="For each process of the engine.")] = 120.0,
    json_output: AsJson = False,
    credentials: Credentials,
) -> None:
    """Try an engine of your own: store, retrieve into other blocks, compare, kill it, and attach again.

    FACTORY returns a kvdepot.EngineUnderTest, or a list of one for each rank. Exits with 0 if the engine works, with
    1 if something is wrong with it, with 2 if it could not be tried.
    """
    module, colon, factory = target.partition(":")
    if not (module and colon and factory.isidentifier()) or module.endswith(".py") or "/" in module:
        fail(f"{target!r} is not MODULE:FACTORY, as in my_engine:factory", ExitCode.NOT_TRIED)
    if not address and server_folder() is None:
        fail("no server is installed here: give the --address of a depot", ExitCode.NOT_TRIED)
    checklist = Checklist(json_output)
    try:
        with exit_on_terminate():
            _check(checklist, target, address, time_limit_seconds, credentials)
    except Failed:
        pass
    except ChildFailed as error:
        fail(_in_one_line(error), ExitCode.NOT_TRIED)
    except (DepotError, ValueError, OSError) as error:
        what = f"{address}: {why(error, address, credentials)}" if address else " ".join(str(error).split())
        fail(what, ExitCode.NOT_TRIED)
    works = all(step.ok for step in checklist.steps)
    if json_output:
        steps = [asdict(step) | {"ok": step.ok} for step in checklist.steps]
        print(json.dumps({"works": works, "steps": steps}, indent=2))
    elif works:
        print("the engine works")
    if not works:
        raise typer.Exit(ExitCode.WRONG)


def _check(checklist: Checklist, target: str, address: str, limit_seconds: float, credentials: Credentials) -> None:
    """Make the engine in three processes, one after the other: to be described, to be killed, and to attach again.

    Raises: Failed, DepotError, ChildFailed.
    """
    described: dict[str, int] = {}
    with _engine("describe", target) as process:
        for line in _lines(process, checklist, limit_seconds):
            described |= line.get("described", {})
    run_id = uuid4().hex
    with (
        nullcontext(address) if address else _own_depot(checklist, described) as depot,
        _cleared(depot, credentials, run_id),
    ):
        of_depot = (depot, run_id, _as_json(credentials))
        with _engine("exercise", target, *of_depot) as process:
            for line in _lines(process, checklist, limit_seconds):
                if "working" in line:
                    os.kill(process.pid, signal.SIGKILL)
                    break
        with _engine("reattach", target, *of_depot) as process:
            for _ in _lines(process, checklist, limit_seconds):
                pass


@contextmanager
def _own_depot(checklist: Checklist, described: dict[str, int]) -> Iterator[str]:
    """Run a depot whose chunks suit the engine's blocks.

    Raises: Failed, ChildFailed.
    """
    block_tokens, usable_tokens = described["block_tokens"], described["usable_tokens"]
    if usable_tokens < block_tokens:
        checklist.add(
            "the engine has enough blocks",
            f"it has blocks for two prompts of {usable_tokens} tokens, and a chunk has at least {block_tokens}, a "
            "multiple of every block_size",
        )
    blocks_per_chunk = max(1, min(MAX_CHUNK_TOKENS // block_tokens, usable_tokens // (2 * block_tokens)))
    l1_mib = MORE_L1_MIB + PROMPTS_IN_L1 * usable_tokens * described["token_bytes"] // (1 << 20)
    flags = ("--chunk-size", str(blocks_per_chunk * block_tokens), "--l1-size", f"{l1_mib}MiB", "--log-level", "error")
    with server_process(*flags) as depot:
        yield depot


@contextmanager
def _cleared(address: str, credentials: Credentials, run_id: str) -> Iterator[None]:
    """Connect to the depot, and clear what the engine has stored at the end.

    Raises: DepotError.
    """
    with DepotClient(address, credentials=credentials) as client:
        client.get_status()
        try:
            yield
        finally:
            with suppress(DepotError):  # only an admin of a depot with tenants may clear; unused chunks are evicted
                client.clear_cache(model_name=f"check-engine-{run_id}")


@contextmanager
def _engine(mode: str, target: str, *arguments: str) -> Iterator[Child]:
    """Run a process of the engine, which can import what the caller can, and nothing of the server's."""
    folder = Path.cwd()
    paths = [path for path in dict.fromkeys((str(folder), *sys.path, str(PACKAGE.parent))) if path]
    variables = {"PYTHONPATH": os.pathsep.join(paths)}
    with child(
        "the engine", "-P", "-m", PROCESS, mode, target, str(folder), *arguments, variables=variables
    ) as process:
        yield process


def _lines(process: Child, checklist: Checklist, limit_seconds: float) -> Iterator[dict[str, Any]]:
    """Yield what the engine's process reports, and note its steps.

    Raises: Failed.
    """
    step = "the engine starts"
    with process.limit(limit_seconds):
        try:
            for text in process.lines():
                line = json.loads(text) if text.startswith("{") else {}  # a library may have printed the other ones
                step = line.get("begin", step)
                if "end" in line:
                    checklist.add(line["end"], line["problem"])
                yield line
        except ChildFailed as error:
            checklist.add(step, _in_one_line(error))


def _in_one_line(error: ChildFailed) -> str:
    """Return why a process failed, with the last line that it wrote."""
    why, *written = str(error).splitlines()
    return f"{why}: {written[-1].strip()}" if written else why


def _as_json(credentials: Credentials) -> str:
    return json.dumps(
        {name: str(value) if isinstance(value, Path) else value for name, value in asdict(credentials).items()}
    )
