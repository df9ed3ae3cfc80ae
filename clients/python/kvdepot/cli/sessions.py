"""`python -m service sessions`: what requests did: as a table, drawn one by one, or in a trace file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from google.protobuf.json_format import MessageToDict
from rich.console import Console

from kvdepot import Credentials, DepotClient, DepotError
from kvdepot.cli.credential_options import takes_credentials
from kvdepot.cli.printable import printable
from kvdepot.cli.session_drawing import drawing
from kvdepot.cli.session_table import table_of
from kvdepot.cli.session_trace import trace_of
from kvdepot.cli.session_view import view
from kvdepot.cli.status import DEFAULT_ADDRESS
from kvdepot.v1 import cache_pb2

TIMEOUT_SECONDS = 5.0
MOST_A_PAGE = 1_000

sessions = typer.Typer(help="What requests did: list them, show one, write a trace file.", add_completion=False)

Address = Annotated[str, typer.Option("--address", "--server", help="The depot: HOST:PORT or unix:/PATH.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


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
            _fail(f"options come after {context.invoked_subcommand}")
        return
    with _depot(address, credentials) as depot:
        found = list(islice(_listed(depot, instance, limit), limit))
    if json_output:
        print(json.dumps({"sessions": [_as_json(each) for each in found]}, indent=2))
    else:
        Console().print(table_of(map(view, found)))


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
    with _depot(address, credentials) as depot:
        summary = depot.get_session(instance, session).session
    if json_output:
        print(json.dumps(_as_json(summary), indent=2))
    else:
        Console(highlight=False).print(drawing(view(summary)))


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
        _fail("name INSTANCE and SESSION, or give --all")
    with _depot(address, credentials) as depot:
        found = list(_of_every_session(depot, instance)) if every else [depot.get_session(instance, session).session]
    text = json.dumps(trace_of([view(summary) for summary in found]))
    if output is None:
        print(text)
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        _fail(f"{output}: {error.strerror}")
    print(f"{len(found):,} sessions are in {output}", file=sys.stderr)


def _listed(depot: DepotClient, instance: str, page_size: int) -> Iterator[cache_pb2.SessionSummary]:
    token = ""
    while True:
        page = depot.list_sessions(instance_id=instance, page_size=min(page_size, MOST_A_PAGE), page_token=token)
        yield from page.sessions
        token = page.next_page_token
        if not token:
            return


def _of_every_session(depot: DepotClient, instance: str) -> Iterator[cache_pb2.SessionSummary]:
    """Of two that have one id, the later; without those that are forgotten meanwhile."""
    ids = dict.fromkeys((each.instance_id, each.session_id) for each in _listed(depot, instance, MOST_A_PAGE))
    for instance_id, session_id in ids:
        try:
            yield depot.get_session(instance_id, session_id).session
        except DepotError as error:
            if error.reason != "SESSION_NOT_FOUND":
                raise


@contextmanager
def _depot(address: str, credentials: Credentials) -> Iterator[DepotClient]:
    """A client; what fails ends the command in one line."""
    try:
        with DepotClient(address, credentials=credentials, timeout_seconds=TIMEOUT_SECONDS) as client:
            yield client
    except DepotError as error:
        _fail(f"{address}: " + ("no depot answers there" if error.reason == "UNREACHABLE" else error.message))
    except (ValueError, OSError) as error:
        _fail(f"{address}: {error}")


def _as_json(summary: cache_pb2.SessionSummary) -> object:
    return MessageToDict(summary, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def _fail(message: str) -> NoReturn:
    line = printable(" ".join(message.split()))
    Console(stderr=True).print(f"error: {line}", style="red", markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(1)
