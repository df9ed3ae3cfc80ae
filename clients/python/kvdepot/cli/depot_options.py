"""The options of a command that calls a depot with tenants or TLS; each is a variable KVDEPOT_CLIENT_… too."""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from kvdepot import Credentials


def _option(name: str, help_text: str) -> Any:
    return typer.Option(envvar=f"KVDEPOT_CLIENT_{name.upper()}", help=help_text, show_envvar=False)


_OPTIONS: dict[str, Any] = {
    name: Annotated[kind, _option(name, help_text)]
    for name, kind, help_text in (
        ("tls_ca", Path | None, "Authorities that sign the depot's certificate, PEM."),
        ("tls_cert", Path | None, "A certificate to show, PEM."),
        ("tls_key", Path | None, "Its private key, PEM."),
        ("tls_server_name", str, "What the depot's certificate is for, if not the host."),
        ("token_file", Path | None, "A file with a tenant's bearer token."),
        ("plain_tcp", bool, "Send the token over TCP without TLS, too."),
    )
}
_DEFAULTS: dict[str, Any] = {"tls_server_name": "", "plain_tcp": False}


def takes_credentials(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options, and with its argument `credentials` what they say."""

    @functools.wraps(command)
    def run(**given: Any) -> None:
        options = {name: given.pop(name) for name in _OPTIONS}
        command(**given, credentials=_credentials(**options))

    own = inspect.signature(command)
    hints = typing.get_type_hints(command, include_extras=True)
    parameters = [
        parameter.replace(annotation=hints[name]) for name, parameter in own.parameters.items() if name != "credentials"
    ] + [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS.get(name), annotation=kind)
        for name, kind in _OPTIONS.items()
    ]
    del run.__wrapped__  # typer would look at it
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _credentials(
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_server_name: str,
    token_file: Path | None,
    plain_tcp: bool,
) -> Credentials:
    try:
        return Credentials(
            ca_file=tls_ca,
            certificate_file=tls_cert,
            key_file=tls_key,
            server_name=tls_server_name,
            token_file=token_file,
            plain_tcp=plain_tcp,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
