"""docs/settings.md: each setting with what it takes, its default and its meaning."""

from __future__ import annotations

from typing import Any

from service.settings import Settings
from tools.generate.tables import GENERATED, table

_INTRODUCTION = f"""\
{GENERATED}
# Settings

Each setting is a flag of `python -m service serve` (`--l1-size 64GiB`), a variable (`KVDEPOT_L1_SIZE=64GiB`), and a
key of the YAML file that `--config` or `KVDEPOT_CONFIG` names (`l1_size: 64GiB`). A flag overrides a variable, and a
variable overrides the file. In the chart, settings are keys of `settings`, except those that the chart derives from
other values.

A size looks like `8GiB`, `500MB` or `4096`. A duration looks like `60s`, `5m`, `250ms` or `1.5`. A switch is a flag
without a value; in a variable or in the file it is `true` or `false`. A list is a flag that you can repeat. In a
variable, commas separate the elements of a list; the variable of `subscriber` has one text, or a JSON array of texts.

An unknown setting or a wrong value stops the start, with one message for each fault. The server reads its settings
once. It reads the files of `tls_cert`, `tls_key`, `tls_client_ca` and `tenants` again when they change.
`python -m service doctor` checks the settings on a machine, and starts nothing.
"""


def settings_page() -> str:
    """The whole page."""
    schema = Settings.model_json_schema()
    defaults = Settings.model_construct().described()
    rows = [
        (
            f"`{name}`",
            _takes(_resolved(field, schema["$defs"])),
            f"`{defaults[name]}`" if defaults[name] else "",
            f"{field['description'][0].upper()}{field['description'][1:]}.",
        )
        for name, field in schema["properties"].items()
    ]
    return "\n".join((_INTRODUCTION, table(("setting", "takes", "default", "meaning"), rows))) + "\n"


def _resolved(field: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    return definitions[field["$ref"].rpartition("/")[2]] if "$ref" in field else field


def _takes(field: dict[str, Any]) -> str:
    """What a value may be, from its JSON schema."""
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "anyOf" in field:  # a number, or a text with a unit
        return "size" if field["anyOf"][0]["type"] == "integer" else "duration"
    kind = {"boolean": "switch", "array": "list", "string": "text", "integer": "number", "number": "number"}[
        field["type"]
    ]
    if "maximum" in field:
        return f"{kind}, {field['minimum']:,} to {field['maximum']:,}"
    return f"{kind}, {field['minimum']:,} or more" if "minimum" in field else kind
