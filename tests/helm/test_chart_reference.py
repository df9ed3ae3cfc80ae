"""Generated files of the chart are fresh, and the schema has the server's settings."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from kvdepot.version import __version__
from service.settings import Settings
from tests.helm.conftest import CHART
from tools.generate.chart_readme import Undescribed, read_values
from tools.generate.chart_schema import SET_BY_THE_CHART

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())


def test_every_setting_is_in_the_schema_or_set_by_the_chart() -> None:
    given = set(SCHEMA["properties"]["settings"]["properties"])
    assert given | SET_BY_THE_CHART.keys() == set(Settings.model_fields)
    assert not given & SET_BY_THE_CHART.keys()
    assert SCHEMA["properties"]["settings"]["additionalProperties"] is False


def test_what_follows_from_a_value_names_one_that_there_is() -> None:
    for text in SET_BY_THE_CHART.values():
        for path in text.split(", "):
            found: Any = VALUES
            for name in path.split("."):
                found = found[name]


def objects(schema: dict[str, Any], path: str = "") -> dict[str, dict[str, Any]]:
    """Return the schemas of objects with known keys, by path."""
    found = {path: schema} if "properties" in schema else {}
    for name, inner in schema.get("properties", {}).items():
        found |= objects(inner, f"{path}.{name}".lstrip("."))
    return found


OF_KUBERNETES = {"podSecurityContext", "securityContext"}  # handed on as they are, but for what is refused
GENERATED = {"settings", "alerts.rules"}  # by tools.generate


def test_no_unknown_value_is_let_through() -> None:
    for path, schema in objects(SCHEMA).items():
        if path not in OF_KUBERNETES | {"global"}:  # other charts read more of `global`
            assert schema["additionalProperties"] is False, path


def test_the_schema_and_the_values_have_the_same_keys() -> None:
    for path, schema in objects(SCHEMA).items():
        if path in OF_KUBERNETES or path.startswith(tuple(GENERATED)):
            continue
        values = VALUES
        for name in path.split(".") if path else ():
            values = values[name]
        if path != "updateStrategy":  # empty by default
            assert set(schema["properties"]) == set(values), path


def test_every_key_has_a_comment() -> None:
    with pytest.raises(Undescribed, match=r"values\.yaml:3: b\.d has no comment"):
        read_values("# About.\nb: {c: 1}\n".replace("{c: 1}", "\n  d: 1\n  # Told.\n  e: 2"))
    paths = {value.path for value in read_values((CHART / "values.yaml").read_text())}
    assert paths == set(VALUES)


def test_a_comment_of_several_lines_and_a_map_without_comments_within() -> None:
    (value,) = read_values("# One\n# two.\na:\n  b: [1]\n")
    assert (value.comment, value.default, value.children) == ("One two.", '{"b": [1]}', ())


def leaves(schema: dict[str, Any], path: str) -> Iterator[str]:
    """Yield the paths of the values that the schema has under one, down to those that it does not divide."""
    if not schema.get("properties"):
        yield path
    for name, inner in schema.get("properties", {}).items():
        yield from leaves(inner, f"{path}.{name}")


@pytest.mark.parametrize("section", ["l1", "hostAccess", "probes"])
def test_the_readme_has_each_key_of_a_section(section: str) -> None:
    page = (CHART / "README.md").read_text()
    assert [path for path in leaves(SCHEMA["properties"][section], section) if f"| `{path}` |" not in page] == []


def test_helm_lint_finds_nothing() -> None:
    lint = f"print(asyncio.run(Lint(Configuration('kv', 'kind: Config')).run({str(CHART)!r}))['Messages'])"
    code = f"import asyncio; from helm_sdkpy import Configuration, Lint; {lint}"
    linted = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if "HelmLibraryNotFound" in linted.stderr or "ModuleNotFoundError" in linted.stderr:
        pytest.skip("the Helm engine can't be loaded")
    assert linted.stdout == "None\n", linted.stderr


def test_the_charts_version_is_the_servers() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == chart["version"] == __version__
