"""docs/settings.md: each setting with its values, default and meaning."""

from __future__ import annotations

from typing import Any

from service.setting_groups import setting_groups
from service.settings import Settings
from tools.generate.tables import GENERATED, table
from tools.generate.tier_options import tier_options_table

_INTRODUCTION = f"""\
{GENERATED}
# Settings

Each setting is a flag of `kvdepot serve` (`--l1-size 64GiB`), a variable (`KVDEPOT_L1_SIZE=64GiB`) and a key
of the YAML file that `--config` or `KVDEPOT_CONFIG` names (`l1_size: 64GiB`). A flag overrides a variable, a variable
overrides the file. In the chart they are keys of `settings`, except those that the chart derives from other values.

A size is like `8GiB`, `500MB` or `4096`. A duration is like `60s`, `5m`, `250ms` or `1.5`. A switch is a flag without a
value, and `true` or `false` elsewhere. A list is a flag that is given several times. In a variable, commas separate its
texts; the variables of `subscriber` and `l2` are one text or a JSON array of texts.

`kvdepot serve --print-config` writes all settings with their meaning as YAML, for `--config`: those that are given
are set, and the defaults are comments.

An unknown setting or a bad value refuses the start. The message names every fault, and for an unknown key the nearest
setting. Settings are read once. The
files that `tls_cert`, `tls_key`, `tls_client_ca` and `tenants` name are read again when they change.
`kvdepot doctor` checks the settings on a machine without starting anything.
"""

_TIER_OPTIONS = """\
An address of `l2` is a URL. Its query has the options, as in `valkey://cache:6379?user=depot&password_file=/etc/kvdepot/password`.
[Tiers](tiers.md) says what each kind is for.
"""


def settings_page() -> str:
    """Return the whole page."""
    schema = Settings.model_json_schema()
    defaults = Settings.model_construct().described()
    parts = [_INTRODUCTION]
    for title, names in setting_groups().items():
        rows = [_row(name, schema["properties"][name], schema["$defs"], defaults[name]) for name in names]
        parts += [f"## {title}\n", table(("setting", "takes", "default", "meaning"), rows), ""]
        if "l2" in names:
            parts += [_TIER_OPTIONS, tier_options_table(), ""]
    return "\n".join(parts)


def _row(name: str, field: dict[str, Any], definitions: dict[str, Any], default: str) -> tuple[str, ...]:
    return (
        f"`{name}`",
        _takes(_resolved(field, definitions)),
        f"`{default}`" if default else "",
        f"{field['description'][0].upper()}{field['description'][1:]}.",
    )


def _resolved(field: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    return definitions[field["$ref"].rpartition("/")[2]] if "$ref" in field else field


def _takes(field: dict[str, Any]) -> str:
    """Return the kind of a value, from its JSON schema."""
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "anyOf" in field:  # a number or a text with a unit
        return "size" if field["anyOf"][0]["type"] == "integer" else "duration"
    kind = {"boolean": "switch", "array": "list", "string": "text", "integer": "number", "number": "number"}[
        field["type"]
    ]
    if "maximum" in field:
        return f"{kind}, {field['minimum']:,} to {field['maximum']:,}"
    return f"{kind}, {field['minimum']:,} or more" if "minimum" in field else kind
