"""The command `log-level`: what a running depot logs, and a change of it for a while."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer

from kvdepot import Credentials
from kvdepot.cli.depot_options import DEFAULT_ADDRESS, Address, AsJson, connected, takes_credentials
from kvdepot.cli.terminal import as_json, fail, printable
from kvdepot.cli.times import seconds_of
from kvdepot.v1 import admin_pb2

LEVELS = ("debug", "info", "warning", "error")

Level = Annotated[str, typer.Argument(metavar="[LEVEL]", help="debug, info, warning or error; none: only show.")]
Logger = Annotated[str, typer.Option("--logger", metavar="NAME", help="One logger, such as service.rpc; else all.")]
Duration = Annotated[str, typer.Option("--for", metavar="TIME", help="How long, such as 10m; else until a restart.")]
Reset = Annotated[bool, typer.Option("--reset", help="Back to what the depot's settings say.")]


@takes_credentials
def log_level(
    level: Level = "",
    *,
    logger: Logger = "",
    duration: Duration = "",
    reset: Reset = False,
    address: Address = DEFAULT_ADDRESS,
    json_output: AsJson = False,
    credentials: Credentials,
) -> None:
    """Show what a running depot logs, or change it: `log-level debug --for 10m`.

    The change needs no restart. A depot with tenants takes it from admins only.
    """
    if level and level.lower() not in LEVELS:
        fail(f"{level!r} is not {', '.join(LEVELS[:-1])} or {LEVELS[-1]}", 2)
    if reset and (level or duration):
        fail("--reset goes with neither a level nor --for", 2)
    if not (level or reset) and (logger or duration):
        fail("name a level, or --reset", 2)
    for_seconds = seconds_of(duration, "--for") if duration else None
    with connected(address, credentials) as client:
        if level or reset:
            levels = client.set_log_level(level.lower(), logger=logger, for_seconds=for_seconds).log_levels
        else:
            levels = client.get_status().log_levels
    if json_output:
        print(json.dumps([as_json(each) for each in levels], indent=2))
        return
    print("\n".join(_lines(levels)))


def _lines(levels: Sequence[admin_pb2.LoggerLevel]) -> list[str]:
    """Return a line for each logger: its name, its level, and when the level runs out."""
    names = [printable(each.logger) or "all" for each in levels]
    width = max(map(len, names), default=0)
    return [
        f"{name:<{width}}  {admin_pb2.LogLevel.Name(each.level).removeprefix('LOG_LEVEL_').lower()}{_until(each)}"
        for name, each in zip(names, levels, strict=True)
    ]


def _until(level: admin_pb2.LoggerLevel) -> str:
    if not level.HasField("expire_time"):
        return ""
    seconds = level.expire_time.seconds
    left = max(0, seconds - round(datetime.now(UTC).timestamp()))
    return f"  until {datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC, for {left:,} s more"
