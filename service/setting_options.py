"""The settings as options of a command: one flag for each setting, and --config for a file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from service.settings import LogFormat, Settings, load

REPEATABLE = ("listen", "subscriber")


def with_setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for each setting, in front of its own options. It gets them as keyword arguments."""
    own = [
        each
        for each in inspect.signature(command, eval_str=True).parameters.values()
        if each.kind is not each.VAR_KEYWORD
    ]
    command.__signature__ = inspect.Signature([*_options(), *own])  # type: ignore[attr-defined]  # typer reads it
    return command


def load_given(given: Mapping[str, Any]) -> Settings:
    """Build the settings from the options of a command, the environment and the file.

    Raises: BadSettings.
    """
    flags = {name: value for name, value in given.items() if name != "config" and value is not None and value != []}
    return load(flags, given.get("config"))


def asked_log_format(given: Mapping[str, Any], environment: Mapping[str, str]) -> LogFormat:
    """Return the format of the log before the settings are read, so that a line about bad settings has it, too.

    Where nothing readable says a format, it is text.
    """
    variables = {name.upper(): value for name, value in environment.items()}
    asked = given.get("log_format") or variables.get("KVDEPOT_LOG_FORMAT") or _format_in_file(given.get("config"))
    return LogFormat(asked) if asked in tuple(LogFormat) else LogFormat.TEXT


def _format_in_file(path: Path | None) -> object:
    if path is None:
        return None
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return None
    return content.get("log_format") if isinstance(content, dict) else None


def _options() -> list[inspect.Parameter]:
    config = typer.Option("--config", envvar="KVDEPOT_CONFIG", help="YAML file of settings", metavar="FILE")
    parameters = [_parameter("config", Path, config)]
    defaults = Settings.model_construct().described()
    for name, field in Settings.model_fields.items():
        is_switch = field.annotation is bool
        option = typer.Option(
            f"--{name.replace('_', '-')}",
            help=field.description,
            show_default=False if is_switch else defaults[name],
            metavar=None if is_switch else "ADDRESS" if name == "listen" else "VALUE",
        )
        parameters.append(_parameter(name, bool if is_switch else list[str] if name in REPEATABLE else str, option))
    return parameters


def _parameter(name: str, kind: Any, option: Any) -> inspect.Parameter:
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
