"""The commands that need the server's packages: `kvdepot serve`, `kvdepot doctor` and `kvdepot precompile`."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Annotated, Any, NoReturn

import typer
import uvloop

from kernels.host.streaming_copy import built_library
from service.doctor.command import examine_and_exit
from service.inheritance import inherited_memory
from service.kv_events.setup import check_kv_events
from service.l1.arena import MemoryUnavailable
from service.l1.l1_file import L1FileUnusable
from service.load_settings import BadSettings
from service.misspelt import misspelt
from service.observability.output import Output
from service.print_config import annotated_yaml
from service.process.systemd import Systemd
from service.process.takeover.successor import CannotTakeOver
from service.recording.setup import check_recording
from service.serve import serve as run_server
from service.server import CannotListen, Server
from service.setting_options import asked_log_format, load_given, with_setting_options
from service.setting_types import LogFormat, LogLevel
from service.settings import Settings
from service.tiers.address import option_files

logger = logging.getLogger(__name__)


@with_setting_options
def serve(
    *,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the settings as YAML, and exit.")] = False,
    takeover: Annotated[
        bool,
        typer.Option("--takeover", help="Replace the depot at the first unix address, and keep its chunks."),
    ] = False,
    **given: Any,
) -> None:
    """Start the depot. Every option is also a variable KVDEPOT_… and a key of the --config file.

    Sizes are like 20GiB, durations like 60s. `kvdepot serve --print-config > kvdepot.yaml` writes a file to start from.
    """
    if print_config:
        _print_config(given)
    output = Output.detached()
    if asked_log_format(given, os.environ) is LogFormat.JSON:
        output.log_as(LogFormat.JSON, LogLevel.INFO)  # so that a line about bad settings is JSON, too
    try:
        settings = load_given(given)
        output.log_as(settings.log_format, settings.log_level)
        for variable, meant in misspelt(os.environ):
            logger.warning("the variable %s is no setting and is ignored: is %s meant?", variable, meant)
        _check_tier_files(settings)
        check_recording(settings)
        check_kv_events(settings)
        inherited_fd = inherited_memory(settings, os.environ, takes_over=takeover)
        serving = run_server(
            settings,
            lambda server: output.say(_ready(server)),
            (output.read,),
            inherited_fd=inherited_fd,
            systemd=Systemd(os.environ.pop("NOTIFY_SOCKET", None)),
        )
        uvloop.run(serving)
    except BadSettings as error:
        output.fail("BadSettings", "bad settings", str(error).splitlines())
        raise typer.Exit(2) from error
    except (MemoryUnavailable, L1FileUnusable, CannotListen, CannotTakeOver) as error:
        headline, *more = str(error).splitlines()
        output.fail("CannotStart", headline, [headline, *more] if output.is_json else more)
        raise typer.Exit(1) from error


@with_setting_options
def doctor(
    *,
    json_output: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Also exit with 1 for a warning.")] = False,
    **given: Any,
) -> None:
    """Find what would make a depot with these settings fail on this machine, and how to fix it.

    Exits with 0 if nothing fails, with 1 if something does, with 2 for bad settings.
    """
    examine_and_exit(given, os.environ, as_json=json_output, strict=strict)


def precompile() -> None:
    """Compile the copies of the host now. Otherwise the first start compiles them, and needs a C compiler then."""
    try:
        library = built_library()
    except (OSError, subprocess.SubprocessError) as error:
        _fail(f"can't be compiled: {error}", code=1)
    print(library)  # noqa: T201 - for scripts


def _print_config(given: Mapping[str, Any]) -> NoReturn:
    try:
        print(annotated_yaml(load_given(given)), end="")  # noqa: T201 - the user asked for it
    except BadSettings as error:
        _fail(f"bad settings\n{error}", code=2)
    raise typer.Exit


def _check_tier_files(settings: Settings) -> None:
    """Try the files that the addresses of tiers name, and warn of secrets that every user can read.

    Raises: BadSettings.
    """
    addresses = settings.tier_addresses()
    faults = [f"l2: {address}: {fault}" for address in addresses for fault in option_files.faults(address)]
    if faults:
        raise BadSettings("\n".join(faults))
    for address in addresses:
        for file in option_files.readable_by_all(address):
            logger.warning("l2: %s: every user of this machine can read %s", address, file)


def _ready(server: Server) -> str:
    """Return the line that says that a server serves, for people and scripts."""
    return f"kvdepot serves on {', '.join(server.addresses)}"


def _fail(message: str, code: int) -> NoReturn:
    print(f"kvdepot: {message}", file=sys.stderr)  # noqa: T201 - no log exists yet
    raise typer.Exit(code)
