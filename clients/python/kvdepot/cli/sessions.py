"""The command `sessions`: what requests did, as a table, drawn one by one, or as a trace file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from kvdepot import Credentials, DepotClient, DepotError
from kvdepot.cli.depot_options import DEFAULT_ADDRESS, Address, AsJson, connected, takes_credentials
from kvdepot.cli.perfetto import trace_of
from kvdepot.cli.session_drawing import drawing
from kvdepot.cli.session_view import SessionView, view
from kvdepot.cli.tables import Cell, Column, print_rows
from kvdepot.cli.terminal import as_json, fail, readable_size
from kvdepot.v1 import cache_pb2

MAX_PAGE_SIZE = 1_000
PIPE_CELLS = 140  # of a drawing that no terminal shows

sessions = typer.Typer(help="What requests did: list them, show one, write a trace file.", add_completion=False)


@sessions.callback(invoke_without_command=True)
@takes_credentials
def list_sessions(
    *,
    context: typer.Context,
    address: Address = DEFAULT_ADDRESS,
    instance: Annotated[str, typer.Option(help="Only sessions of this instance.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="The most that are listed.")] = 50,
    json_output: AsJson = False,
    credentials: Credentials,
) -> None:
    """List sessions that live or ended recently, the last that began first."""
    if context.invoked_subcommand is not None:
        sources = filter(None, map(context.get_parameter_source, context.params))
        if any(source.name == "COMMANDLINE" for source in sources):
            fail(f"options come after {context.invoked_subcommand}")
        return
    with connected(address, credentials) as depot:
        found = list(islice(_listed(depot, instance, limit), limit))
    if json_output:
        print(json.dumps({"sessions": [as_json(each) for each in found]}, indent=2))
    else:
        print_rows(COLUMNS, [_row(view(each)) for each in found], title="sessions, the last that began first")


@sessions.command("show")
@takes_credentials
def show_session(
    *,
    instance: Annotated[str, typer.Argument(metavar="INSTANCE")],
    session: Annotated[str, typer.Argument(metavar="SESSION")],
    address: Address = DEFAULT_ADDRESS,
    json_output: AsJson = False,
    credentials: Credentials,
) -> None:
    """Draw when the operations of a session ran, and what they moved."""
    with connected(address, credentials) as depot:
        summary = depot.get_session(instance, session).session
    if json_output:
        print(json.dumps(as_json(summary), indent=2))
    else:
        terminal = Console(highlight=False)
        console = terminal if terminal.is_terminal else Console(highlight=False, width=PIPE_CELLS)
        console.print(drawing(view(summary)))


@sessions.command("export")
@takes_credentials
def export_sessions(
    *,
    instance: Annotated[str, typer.Argument(metavar="INSTANCE", show_default=False)] = "",
    session: Annotated[str, typer.Argument(metavar="SESSION", show_default=False)] = "",
    every: Annotated[bool, typer.Option("--all", help="All sessions; with INSTANCE, all of it.")] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file; else standard output.")] = None,
    address: Address = DEFAULT_ADDRESS,
    credentials: Credentials,
) -> None:
    """Write sessions as a trace file for ui.perfetto.dev or chrome://tracing."""
    if every == bool(session) or (session and not instance):
        fail("name INSTANCE and SESSION, or give --all")
    with connected(address, credentials) as depot:
        found = list(_of_every_session(depot, instance)) if every else [depot.get_session(instance, session).session]
    text = json.dumps(trace_of([view(summary) for summary in found]))
    if output is None:
        print(text)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        fail(f"{output}: {error.strerror}")
    print(f"{len(found):,} sessions are in {output}", file=sys.stderr)


def _listed(depot: DepotClient, instance: str, page_size: int) -> Iterator[cache_pb2.SessionSummary]:
    """Yield the sessions of all pages, without operations, the newest first."""
    token = ""
    while True:
        page = depot.list_sessions(instance_id=instance, page_size=min(page_size, MAX_PAGE_SIZE), page_token=token)
        yield from page.sessions
        token = page.next_page_token
        if not token:
            return


def _of_every_session(depot: DepotClient, instance: str) -> Iterator[cache_pb2.SessionSummary]:
    """Yield each session with its operations, except those that the depot forgets meanwhile.

    Of several sessions with one id it yields the newest.
    """
    ids = dict.fromkeys((each.instance_id, each.session_id) for each in _listed(depot, instance, MAX_PAGE_SIZE))
    for instance_id, session_id in ids:
        try:
            yield depot.get_session(instance_id, session_id).session
        except DepotError as error:
            if error.reason != "SESSION_NOT_FOUND":
                raise


COLUMNS = (
    Column("instance", min_width=8, drop=2),
    Column("session", min_width=12),
    Column("began", drop=7),
    Column("state", drop=9),
    Column("lasts", right=True),
    Column("hits", right=True, drop=8),
    Column("prompt", right=True),
    Column("matched", right=True),
    Column("%", right=True, drop=4),
    Column("retrieved", right=True),
    Column("stored", right=True),
    Column("moved", right=True, drop=3),
    Column("misses", min_width=12, drop=1),
    Column("model", min_width=8, drop=10),
)
"""Tokens, but `hits` (of the lookups), `moved` (bytes), and `misses` (lookups by reason)."""


def _row(session: SessionView) -> list[Cell]:
    head: list[Cell] = [
        session.instance_id,
        session.session_id,
        f"{session.start:%Y-%m-%d %H:%M:%S}",
        Text(session.state, style="green" if session.state == "live" else ""),
        f"{session.duration_seconds:,.2f} s",
    ]
    totals = session.totals
    if totals is None:  # of an older depot
        return [*head, *[""] * (len(COLUMNS) - len(head) - 1), session.model_name]
    ratio = totals.hit_ratio
    return [
        *head,
        f"{totals.num_hits:,} of {totals.num_lookups:,}" if totals.num_lookups else "",
        f"{totals.prompt_tokens:,}",
        f"{totals.matched_tokens:,}",
        f"{ratio:.0%}" if ratio is not None else "",
        f"{totals.retrieved_tokens:,}",
        f"{totals.stored_tokens:,}",
        readable_size(totals.retrieved_bytes + totals.stored_bytes),
        ", ".join(f"{reason} {count:,}" if count > 1 else reason for reason, count in totals.misses.items()),
        session.model_name,
    ]
