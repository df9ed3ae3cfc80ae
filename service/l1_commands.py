"""The commands `kvdepot l1`: what an L1 file holds, and how to wipe it."""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn
from rich.text import Text

from kvdepot.cli.tables import Cell, Column, print_rows
from kvdepot.cli.terminal import counted, fail, printable, readable_size
from service.l1.inspection import L1FileContents, inspect
from service.l1.l1_file import L1FileUnusable
from service.l1.wiping import wipe as wipe_file
from service.units import age_text

l1 = typer.Typer(help="L1 files: show what one holds, or wipe it.", add_completion=False, no_args_is_help=True)

PathArgument = Annotated[Path, typer.Argument(metavar="PATH", help="The file of --l1-file.", show_default=False)]

FACTS = (Column(""), Column("", min_width=20))
HOLDINGS = (
    Column("tenant", min_width=10),
    Column("model", min_width=10),
    Column("revision", min_width=10, drop=2),
    Column("tokens per chunk", right=True, drop=1),
    Column("chunks", right=True),
    Column("size", right=True),
)


@l1.command()
def show(
    path: PathArgument,
    *,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what an L1 file holds, also while a depot uses it. Nothing is changed.

    Exits with 1 if it is no L1 file, or this user can't read it.
    """
    try:
        contents = inspect(path)
    except L1FileUnusable as error:
        fail(str(error))
    if json_output:
        print(json.dumps(_json(contents), indent=2))  # noqa: T201 - for scripts
        return
    print_rows(FACTS, _facts(contents), title=f"L1 file {printable(str(path))}")
    if contents.header is None:
        return
    Console().print()
    rows: list[list[Cell]] = [
        [
            printable(each.tenant) or "–",
            printable(each.model_name),
            printable(each.model_revision) or "–",
            f"{each.chunk_size:,}",
            f"{each.num_chunks:,}",
            readable_size(each.num_bytes),
        ]
        for each in contents.holdings
    ]
    print_rows(HOLDINGS, rows, title="chunks")


@l1.command()
def wipe(
    path: PathArgument,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Overwrite an L1 file with zeros, and remove it. In a terminal it asks first.

    Prompts can be read out of an L1 file, so wipe one that no depot will use again.

    Exits with 1 if it is no L1 file, is another user's, or a process uses it, and if the answer is no. Then nothing is
    changed. Exits with 2 if it can't ask.
    """
    try:
        contents = inspect(path)
        if contents.used_by is not None:
            raise L1FileUnusable(f"{path}: {_user(contents)} uses it")
        if not yes:
            what = f"{path}, {readable_size(contents.size_bytes)} with {counted(contents.num_chunks, 'chunk')}"
            if not (sys.stdin.isatty() and sys.stdout.isatty()):
                fail(f"this would wipe {what}, and there is no terminal to ask at\nhint: give --yes", 2)
            if not typer.confirm(f"Wipe {printable(what)}?"):
                fail("nothing was wiped")
        size_bytes = _wiped(path, contents.size_bytes)
    except L1FileUnusable as error:
        fail(str(error))
    except OSError as error:
        fail(f"{path}: {error.strerror}; what is left of it can be wiped again")
    Console(highlight=False).print(
        Text(f"wiped and removed {printable(str(path))}, {readable_size(size_bytes)}"), soft_wrap=True
    )


def _wiped(path: Path, size_bytes: int) -> int:
    columns = ("wiping", BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=size_bytes)
        return wipe_file(path, lambda done_bytes: progress.update(task, completed=done_bytes))


def _facts(contents: L1FileContents) -> list[list[Cell]]:
    facts: list[list[Cell]] = [["size", readable_size(contents.size_bytes)], ["used by", _user(contents)]]
    header = contents.header
    if header is None:
        return [*facts, ["state", Text("its header is damaged, or of another format", style="red")]]
    state = Text(header.state.name.lower(), style="green" if header.state.name == "READY" else "yellow")
    if contents.is_cut_short:
        state = Text("cut short", style="red")
    last = "never"
    if contents.last_store_time:
        moment = datetime.fromtimestamp(contents.last_store_time, UTC)
        last = f"{age_text(time.time() - contents.last_store_time)} ago, at {moment:%Y-%m-%d %H:%M:%S} UTC"
    damaged = f"{contents.num_damaged:,}"
    return [
        ["state", state],
        *facts,
        ["last store", last],
        ["chunks", f"{contents.num_chunks:,}, {readable_size(contents.num_bytes)} of {readable_size(header.l1_bytes)}"],
        ["damaged records", Text(damaged, style="red") if contents.num_damaged else damaged],
        ["epoch", f"{header.cache_epoch:,}"],
        ["format", f"{header.format}"],
    ]


def _user(contents: L1FileContents) -> str:
    if contents.used_by is None:
        return "no process"
    return f"process {contents.used_by}" if contents.used_by else "a process"


def _json(contents: L1FileContents) -> dict[str, object]:
    header = contents.header
    last = contents.last_store_time
    return {
        "path": str(contents.path),
        "size_bytes": contents.size_bytes,
        "is_in_use": contents.used_by is not None,
        "used_by_pid": contents.used_by or None,
        "format": header.format if header is not None else None,
        "state": header.state.name.lower() if header is not None else None,
        "is_cut_short": contents.is_cut_short,
        "l1_bytes": header.l1_bytes if header is not None else None,
        "cache_epoch": header.cache_epoch if header is not None else None,
        "last_store_time": datetime.fromtimestamp(last, UTC).isoformat() if last else None,
        "num_chunks": contents.num_chunks,
        "num_bytes": contents.num_bytes,
        "num_damaged_records": contents.num_damaged,
        "holdings": [
            {
                "tenant": each.tenant,
                "model_name": each.model_name,
                "model_revision": each.model_revision,
                "chunk_size": each.chunk_size,
                "num_chunks": each.num_chunks,
                "num_bytes": each.num_bytes,
            }
            for each in contents.holdings
        ],
    }
