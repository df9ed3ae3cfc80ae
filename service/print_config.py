"""The settings as a YAML file that explains itself, and that `--config` reads back as the same settings."""

from __future__ import annotations

import textwrap
from enum import Enum

import yaml

from kvdepot.version import __version__
from service.setting_groups import setting_groups
from service.settings import Settings

WIDTH = 80
END_OF_SCALAR = "...\n"  # YAML's, of a document that is one value


def annotated_yaml(settings: Settings) -> str:
    """Return all settings with their help as comments. Those that are given are set, the defaults are comments.

    The arguments of subscribers are in it as they are, and may be secrets.
    """
    lines = [
        f"# Settings of kvdepot {__version__}, for `kvdepot serve --config FILE`.",
        "# What begins with #: is a default. Remove #: to set it.",
    ]
    for title, names in setting_groups().items():
        lines += ["", f"# {title} ".ljust(WIDTH, "-")]
        for name in names:
            lines += ["", *_help(name), _line(settings, name)]
    return "\n".join(lines) + "\n"


def _help(name: str) -> list[str]:
    text = Settings.model_fields[name].description or ""
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _line(settings: Settings, name: str) -> str:
    value = _plain(settings, name)
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1 << 20)
    line = f"{name}: {text.removesuffix(END_OF_SCALAR).rstrip()}"
    return line if name in settings.model_fields_set else f"#:{line}"


def _plain(settings: Settings, name: str) -> object:
    """Return a value as YAML has it: with its unit, where it has one."""
    value = getattr(settings, name)
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, Enum):
        return value.value
    text = settings.shown(name, value)
    return text if Settings.has_unit(name) else value
