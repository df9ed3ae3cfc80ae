"""The command `top`: what a depot does, live: a page in a terminal, else a line for each interval."""

from __future__ import annotations

import json
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

import typer
from google.protobuf.message import Message
from rich.console import Console
from rich.live import Live

from kvdepot import Credentials, DepotError
from kvdepot.cli import tiers
from kvdepot.cli.activity_drawing import MINUTE_SECONDS, ActivityPage
from kvdepot.cli.activity_poll import DepotActivity
from kvdepot.cli.activity_view import figures
from kvdepot.cli.depot_options import DEFAULT_ADDRESS, Address, takes_credentials
from kvdepot.cli.processes import exit_on_terminate
from kvdepot.cli.readable import bytes_per_second, number, percent, seconds_text
from kvdepot.cli.terminal import as_json, fail, printable

FAILURES = (DepotError, ValueError, OSError)

Wait = Callable[[float], bool]
"""Waits for some seconds, and returns whether the page shall end."""


@takes_credentials
def top(
    *,
    address: Address = DEFAULT_ADDRESS,
    interval: Annotated[float, typer.Option(min=0.2, max=60, help="Seconds between two updates.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Show the last minute, and end.")] = False,
    tenant: Annotated[str, typer.Option(help="Only the activity of this tenant.")] = "",
    json_output: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each interval.")] = False,
    credentials: Credentials,
) -> None:
    """Show what a depot does, live: hits, misses, rates, latencies, evictions, instances, the busiest sessions.

    Press q or Ctrl-C to end it. If the output is no terminal, it prints a line for each interval.
    """
    console = Console(highlight=False)
    depot = DepotActivity(address, credentials, tenant)
    try:
        depot.poll()  # a depot that never answered is probably not there
    except FAILURES:
        fail(f"{address}: {depot.failure}")
    try:
        with suppress(KeyboardInterrupt):
            if once:
                _show_once(console, depot, json_output)
            elif json_output or not console.is_terminal:
                _print_lines(depot, interval, json_output)
            else:
                with exit_on_terminate():
                    _show_live(console, depot, interval)
    finally:
        depot.close()


def _show_once(console: Console, depot: DepotActivity, json_output: bool) -> None:
    if json_output:
        print(json.dumps(_facts(depot, after=depot.history.end_time - MINUTE_SECONDS - 1), indent=2))
    else:
        console.print(ActivityPage(depot, datetime.now().astimezone()))


def _print_lines(depot: DepotActivity, interval: float, json_output: bool) -> None:
    """Print what is new after each interval, until the reader of the output leaves."""
    with suppress(BrokenPipeError):
        while True:
            after = depot.history.end_time - 1
            time.sleep(interval)
            with suppress(*FAILURES):
                depot.poll()
            print(json.dumps(_facts(depot, after)) if json_output else _line(depot, after), flush=True)


def _show_live(console: Console, depot: DepotActivity, interval: float) -> None:
    with _keys() as wait, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(ActivityPage(depot, datetime.now().astimezone()), refresh=True)
            if wait(interval):
                return
            with suppress(*FAILURES):
                depot.poll()


@contextmanager
def _keys() -> Iterator[Wait]:
    """Yield a function that waits, and ends early when q is pressed. Keys are not echoed within the block."""
    if not sys.stdin.isatty():
        yield _sleep
        return
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)

    def wait(seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([fd], [], [], left)[0]:
                pressed = os.read(fd, 64)
                if not pressed or b"q" in pressed.lower():
                    return True
        return False

    try:
        tty.setcbreak(fd)
        yield wait
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def _facts(depot: DepotActivity, after: int) -> dict[str, Any]:
    """Return what happened in the seconds that start later than `after`, and the state, as JSON's values."""
    now = datetime.now().astimezone().isoformat(timespec="milliseconds")
    if depot.problem:
        since = depot.answered.isoformat(timespec="milliseconds") if depot.answered is not None else None
        return {"time": now, "error": depot.problem, "answered": since}
    history = depot.history
    buckets = [bucket for bucket in history.buckets if bucket.start_time.seconds > after]
    seconds = history.end_time - buckets[0].start_time.seconds if buckets else 0
    return {
        "time": now,
        **asdict(figures(buckets, seconds, history.latest.duration_bounds_seconds)),
        "gauges": _numbers(history.gauges),
        "num_lost_events": history.num_lost_events,
        "tiers": [as_json(each) for each in depot.tiers],
        "instances": [as_json(each) for each in depot.instances],
        "busiest_sessions": [_numbers(each) for each in history.latest.busiest_sessions],
    }


def _numbers(message: Message) -> dict[str, Any]:
    """Return the fields of a message without messages in it. JSON's own form of a message has large numbers as text."""
    return {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}


def _line(depot: DepotActivity, after: int) -> str:
    now = f"{datetime.now().astimezone():%H:%M:%S}"
    if depot.problem:
        since = f" since {depot.answered:%H:%M:%S}" if depot.answered is not None else ""
        return f"{now}  no answer{since}: {printable(depot.problem)}"
    history = depot.history
    buckets = [bucket for bucket in history.buckets if bucket.start_time.seconds > after]
    seconds = history.end_time - buckets[0].start_time.seconds if buckets else 0
    shown, gauges = figures(buckets, seconds, history.latest.duration_bounds_seconds), history.gauges
    parts = [f"hit {percent(shown.hit_ratio)}"]
    for kind, operation in shown.operations.items():
        parts.append(f"{kind} {number(operation.per_second)}/s p99 {seconds_text(operation.p99_seconds)}")
    parts.append(f"in {bytes_per_second(shown.store_bytes_per_second)}")
    parts.append(f"out {bytes_per_second(shown.retrieve_bytes_per_second)}")
    if gauges.l1_capacity_bytes:
        parts.append(f"L1 {percent(gauges.l1_used_bytes / gauges.l1_capacity_bytes)}")
    parts.append(f"evicted {number(shown.num_evicted_chunks)}")
    if depot.tiers:
        parts.append(f"L2 read {bytes_per_second(shown.tier_read_bytes_per_second)}")
    parts += [f"{tiers.name_of(tier)} {tiers.state_of(tier)}" for tier in depot.tiers if tiers.is_in_trouble(tier)]
    if shown.num_corrupt_chunks:
        parts.append(f"chunks corrupt {shown.num_corrupt_chunks:,}")
    if gauges.num_missing_ranks:
        parts.append(f"ranks missing {gauges.num_missing_ranks:,}")
    if history.num_lost_events:
        parts.append(f"events lost {history.num_lost_events:,}")
    return f"{now}  {'  '.join(parts)}"
