"""The options of a command that calls a depot: its address, and credentials for tenants and TLS.

Each credential option is a variable KVDEPOT_CLIENT_… as well.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kvdepot.cli.address import read_address
from kvdepot.cli.failures import why
from kvdepot.cli.terminal import fail
from kvdepot.credentials import Credentials
from kvdepot.errors import DepotError

if TYPE_CHECKING:
    from kvdepot.sync.client import DepotClient

DEFAULT_ADDRESS = "127.0.0.1:50051"
TIMEOUT_SECONDS = 5.0

Address = Annotated[str, typer.Option("--address", "--server", help="The depot: HOST:PORT or unix:/PATH.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

# By option: the field of `Credentials`, its type, its default, the help.
_CREDENTIALS: dict[str, tuple[str, Any, Any, str]] = {
    "tls": ("tls", bool, False, "Use TLS, and trust the system's authorities."),
    "tls_ca": ("ca_file", Path | None, None, "Authorities that sign the depot's certificate, PEM."),
    "tls_cert": ("certificate_file", Path | None, None, "A certificate to show, PEM."),
    "tls_key": ("key_file", Path | None, None, "Its private key, PEM."),
    "tls_server_name": ("server_name", str, "", "What the depot's certificate is for, if not the host."),
    "token_file": ("token_file", Path | None, None, "A file with a tenant's bearer token."),
    "plain_tcp": ("plain_tcp", bool, False, "Also send the token over TCP without TLS."),
}


def takes_credentials(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the credential options. It gets the `Credentials` as `credentials`."""

    def run(**given: Any) -> None:
        fields = {field: given.pop(option) for option, (field, *_) in _CREDENTIALS.items()}
        try:
            credentials = Credentials(**fields)
        except ValueError as error:
            fail(str(error), 2)
        command(**given, credentials=credentials)

    hints = typing.get_type_hints(command, include_extras=True)
    parameters = [
        parameter.replace(annotation=hints[name])
        for name, parameter in inspect.signature(command).parameters.items()
        if name != "credentials"
    ]
    for option, (_, kind, default, help_text) in _CREDENTIALS.items():
        variable = typer.Option(envvar=f"KVDEPOT_CLIENT_{option.upper()}", help=help_text, show_envvar=False)
        annotation: Any = Annotated[kind, variable]
        keyword = inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        parameters.append(keyword)
    # typer reads these attributes of a command.
    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


@contextmanager
def connected(address: str, credentials: Credentials) -> Iterator[DepotClient]:
    """Yield a client of the depot. An error of its calls ends the command: a line that says why, and a hint."""
    from kvdepot.sync.client import DepotClient  # `health` needs none of it

    try:
        read_address(address)
        with DepotClient(address, credentials=credentials, timeout_seconds=TIMEOUT_SECONDS) as client:
            yield client
    except (DepotError, ValueError, OSError) as error:
        fail(f"{address}: {why(error, address, credentials)}")
