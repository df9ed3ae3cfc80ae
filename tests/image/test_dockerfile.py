"""The Dockerfile is sound as a text, and fits the chart and the packages that it names."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from service.load_settings import load
from tests.image.without_docker import Instruction, instructions

REPOSITORY = Path(__file__).parents[2]
DOCKERFILE = REPOSITORY / "Dockerfile"
INSTRUCTIONS = instructions(DOCKERFILE)
VALUES = yaml.safe_load((REPOSITORY / "helm" / "kvdepot" / "values.yaml").read_text())
POD = (REPOSITORY / "helm" / "kvdepot" / "templates" / "_pod.tpl").read_text()


def only(word: str) -> Instruction:
    (found,) = [line for line in INSTRUCTIONS if line.word == word]
    return found


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed (there is none for this machine on PyPI)")
    linted = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, check=False)
    assert (linted.returncode, linted.stdout) == (0, "")


def test_both_targets_are_built_by_make_image() -> None:
    stages = {line.words[-1] for line in INSTRUCTIONS if line.word == "FROM"}
    command = ["make", "-n", "--no-print-directory", "image"]
    printed = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    built = {words[words.index("--target") + 1] for words in map(str.split, printed.splitlines())}
    assert built == {"cpu", "cuda"} <= stages
    assert "kvdepot:0.1.0-cuda" in printed


def test_what_is_copied_is_there_and_let_through_to_the_builder() -> None:
    let_through = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert "*" in let_through
    copied = {
        source
        for line in INSTRUCTIONS
        if line.word == "COPY" and not line.words[0].startswith("--from")
        for source in line.words[:-1]
    }
    assert copied == {line.removeprefix("!") for line in let_through if line.startswith("!")}
    assert all((REPOSITORY / source).exists() for source in copied)


def test_the_installed_extras_exist() -> None:
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {"server", "kv-events", "cuda12", "cuda13"} <= extras.keys()
    installs = [line.value for line in INSTRUCTIONS if line.word == "RUN" and "pip install" in line.value]
    asked = ("[server,kv-events]", "[server,kv-events,cuda${CUDA}]")
    assert [any(extras in line for extras in asked) for line in installs] == [True, True]
    assert all("--constraint constraints.txt" in line for line in installs)


def test_it_runs_as_the_charts_user_which_is_not_root() -> None:
    context = VALUES["podSecurityContext"]
    assert only("USER").value == f"{context['runAsUser']}:{context['runAsGroup']}" != "0:0"


def test_the_chart_mounts_something_wherever_something_is_written() -> None:
    variables = {name: value for line in INSTRUCTIONS if line.word == "ENV" for name, value in pairs(line)}
    for path in (variables["CUPY_CACHE_DIR"], variables["CUDA_CACHE_PATH"]):
        assert path.startswith("/var/cache/kvdepot/")
    assert variables["HOME"] == "/tmp"
    for path in ("/var/cache/kvdepot", "/tmp"):
        assert f"mountPath: {path}}}" in POD


def test_the_chart_sets_each_setting_that_the_image_sets() -> None:
    """A variable of the image would override the chart's file."""
    variables = {name: value for line in INSTRUCTIONS if line.word == "ENV" for name, value in pairs(line)}
    settings = [name for name in variables if name.startswith("KVDEPOT_")]
    assert settings
    assert all(f"- name: {name}\n" in POD for name in settings)


def test_the_image_serves_everywhere_whatever_other_flags_it_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (pair for line in INSTRUCTIONS if line.word == "ENV" for pair in pairs(line)):
        if name.startswith("KVDEPOT_"):
            monkeypatch.setenv(name, value)
    (socket,) = [word for word in json.loads(only("HEALTHCHECK").value.partition("CMD")[2]) if "unix:" in word]
    settings = load({"l1_size": "8GiB"})
    assert settings.listen == (f"0.0.0.0:{VALUES['service']['port']}", socket)
    assert settings.prometheus_host == "0.0.0.0"
    assert only("CMD").words == ["serve"]


def pairs(line: Instruction) -> list[tuple[str, str]]:
    return [(name, value) for name, _, value in (word.partition("=") for word in line.words)]


def test_ports_and_probe_are_those_of_the_chart() -> None:
    assert only("EXPOSE").words == [str(VALUES["service"]["port"]), str(VALUES["metrics"]["port"])]
    assert '"python", "-m", "kvdepot.cli.health"' in only("HEALTHCHECK").value
    assert "[python, -m, kvdepot.cli.health, " in POD
