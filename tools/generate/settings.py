"""docs/settings.md: each setting with its values, default and meaning."""

from __future__ import annotations

from typing import Any

from service.settings import Settings
from tools.generate.tables import GENERATED, table

_INTRODUCTION = f"""\
{GENERATED}
# Settings

Each setting is a flag of `kvdepot serve` (`--l1-size 64GiB`), a variable (`KVDEPOT_L1_SIZE=64GiB`) and a key
of the YAML file that `--config` or `KVDEPOT_CONFIG` names (`l1_size: 64GiB`). A flag overrides a variable, a variable
overrides the file. In the chart they are keys of `settings`, except those that the chart derives from other values.

A size is like `8GiB`, `500MB` or `4096`. A duration is like `60s`, `5m`, `250ms` or `1.5`. A switch is a flag without a
value, and `true` or `false` elsewhere. A list is a flag that is given several times. In a variable, commas separate its
texts; the variable of `subscriber` is one text or a JSON array of texts.

An unknown setting or a bad value refuses the start, and the message names every fault. Settings are read once. The
files that `tls_cert`, `tls_key`, `tls_client_ca` and `tenants` name are read again when they change.
`kvdepot doctor` checks the settings on a machine without starting anything.
"""


def settings_page() -> str:
    """Return the whole page."""
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
