"""The settings as options of a command: one flag for each setting, and --config for a file."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from service.load_settings import load
from service.setting_groups import group_of, setting_groups
from service.setting_types import LogFormat
from service.settings import Settings

NAMES_IN_ORDER = tuple(name for names in setting_groups().values() for name in names)
METAVARS = {
    "listen": "ADDRESS",
    "prometheus_host": "HOST",
    "otlp_endpoint": "URL",
    "l1_huge_pages": "KIND",
    "l2": "URL",
    "l2_write": "POLICY",
    "eviction": "POLICY",
    "kv_events": "URL",
    "kv_events_replay": "URL",
    "kv_events_format": "FORMAT",
    "kv_events_hashes": "KIND",
    "log_level": "LEVEL",
    "log_format": "FORMAT",
    **dict.fromkeys(("tls_cert", "tls_key", "tls_client_ca", "tenants", "l1_file", "record_trace"), "FILE"),
}
REPEATABLE = ("listen", "l2", "subscriber")


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
    return LogFormat.JSON if asked == LogFormat.JSON else LogFormat.TEXT


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
    for name in NAMES_IN_ORDER:
        field = Settings.model_fields[name]
        is_switch = field.annotation is bool
        default = f" (default: {defaults[name]})" if defaults[name] and not is_switch else ""
        option = typer.Option(
            f"--{name.replace('_', '-')}",
            help=f"{field.description}{default}",
            rich_help_panel=group_of(name),
            show_default=False,
            metavar=_metavar(name),
        )
        parameters.append(_parameter(name, bool if is_switch else list[str] if name in REPEATABLE else str, option))
    return parameters


def _metavar(name: str) -> str | None:
    """Return what a setting takes, for its help. A switch takes nothing."""
    field = Settings.model_fields[name]
    if field.annotation is bool:
        return None
    if name in METAVARS:
        return METAVARS[name]
    if Settings.has_unit(name):
        return "TIME" if field.annotation is float else "SIZE"
    return "NUMBER" if field.annotation in (int, float) else "TEXT"


def _parameter(name: str, kind: Any, option: Any) -> inspect.Parameter:
    annotation = Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
