"""The command `events`: what happens in a depot, as it happens."""

from __future__ import annotations

import json
import os
import select
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC
from typing import Annotated, Any

import typer

from kvdepot import Credentials
from kvdepot.cli.depot_options import DEFAULT_ADDRESS, Address, connected, takes_credentials
from kvdepot.cli.terminal import as_json, fail, printable
from kvdepot.v1 import observability_pb2

INTERRUPTED = 130  # what a shell expects after Ctrl-C
MAX_SHOWN_ITEMS = 4  # of a list, in text; --json prints all


@takes_credentials
def events(
    *,
    address: Address = DEFAULT_ADDRESS,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print events until Ctrl-C.")] = False,
    type_: Annotated[list[str] | None, typer.Option("--type", help="Only this type. Give it for each type.")] = None,
    instance: Annotated[str, typer.Option(help="Only events of this instance.")] = "",
    session: Annotated[str, typer.Option(help="Only events of this session.")] = "",
    tenant: Annotated[str, typer.Option(help="Only events of this tenant. Others' are for admins.")] = "",
    json_output: Annotated[bool, typer.Option("--json", help="Print a JSON object a line.")] = False,
    credentials: Credentials,
) -> None:
    """Print events as they happen, with --follow. A depot keeps no events, so there are no earlier ones to list.

    Ctrl-C ends it with exit code 130. If the depot ends the feed, since it shuts down, the exit code is 1.
    """
    if not follow:
        fail("a depot keeps no events to list\nhint: --follow prints them as they happen, until Ctrl-C", 2)
    with connected(address, credentials) as depot:
        depot.list_sessions(page_size=1)  # an error comes at once, and not after the long deadline of a stream
        feed = depot.watch_events(event_types=type_ or (), instance_id=instance, session_id=session, tenant=tenant)
        with _quiet_end():
            for message in feed:
                for line in _lines(message, json_output=json_output):
                    print(line, flush=True)
            fail(f"{address}: the depot ended the feed: it is shutting down")


@contextmanager
def _quiet_end() -> Iterator[None]:
    """End the command in silence at Ctrl-C, and when its output has lost its reader."""
    if _is_pipe():
        threading.Thread(target=_end_with_the_reader, daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        os._exit(0)


def _end_with_the_reader() -> None:
    """End the process when the other end of standard output is closed, even if no event comes to be printed."""
    poller = select.poll()
    poller.register(sys.stdout.fileno(), 0)  # POLLERR needs no asking
    poller.poll()
    os._exit(0)  # what is left in the buffers has no reader


def _is_pipe() -> bool:
    try:
        return not os.isatty(sys.stdout.fileno())
    except (OSError, ValueError, AttributeError):  # it is closed, or a test took its place
        return False


def _lines(message: observability_pb2.WatchEventsResponse, *, json_output: bool) -> Iterator[str]:
    """Yield what to print: how many events were lost before this one, and the event."""
    if message.num_lost_events:
        lost = message.num_lost_events
        text = f"{lost:,} events are lost here: they came faster than this command reads them"
        yield json.dumps({"num_lost_events": lost}) if json_output else text
    if message.HasField("event"):
        yield json.dumps(as_json(message.event)) if json_output else _line(message.event)


def _line(event: observability_pb2.Event) -> str:
    time = event.time.ToDatetime(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00")
    named = {
        "tenant": event.tenant,
        "instance": event.instance_id,
        "session": event.session_id,
        "operation": event.operation_id,
    }
    fields: dict[str, Any] = {name: value for name, value in named.items() if value}
    attributes: Any = as_json(event.attributes)
    fields |= {name: value for name, value in sorted(attributes.items()) if value not in ("", None)}
    shown = (f"{name}={_text(value)}" for name, value in fields.items())
    return " ".join([f"{time}Z", event.type, *shown])


def _text(value: Any) -> str:
    """Return a value in one word, where that is possible."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list) and len(value) > MAX_SHOWN_ITEMS:
        return f"({len(value):,} items)"
    if isinstance(value, str):
        text = printable(value)
        return text if text and " " not in text else json.dumps(text, ensure_ascii=False)
    return printable(json.dumps(value, ensure_ascii=False))
