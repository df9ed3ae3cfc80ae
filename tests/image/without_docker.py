"""Carry out a Dockerfile's steps in plain folders, one for each stage, to test an image without Docker.

Absolute paths are placed below the stage's folder, wherever they stand in a step. What only root can do, and what
installs packages of the system, is left out; the host has to have them.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from dockerfile_parse import DockerfileParser

OURS = re.compile(r"(?<![\w./-])/(?:opt|etc/kvdepot|run/kvdepot|var/cache/kvdepot|tmp)(?=[/\s:]|$)")
RUN_HERE = {"python", "pip", "mkdir", "kvdepot"}
LEFT_OUT = {"apt-get", "rm", "groupadd", "useradd", "chown"}
STEP_SECONDS = 900
FROM_THE_HOST = ("PIP_CERT", "PIP_FIND_LINKS", "PIP_INDEX_URL", "SSL_CERT_FILE", "https_proxy", "HTTPS_PROXY")


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One line of a Dockerfile: its word, and its arguments."""

    word: str
    value: str

    @property
    def words(self) -> list[str]:
        """The value as a shell reads it, or as the array that it is."""
        return json.loads(self.value) if self.value.startswith("[") else shlex.split(self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A stage that was carried out: its files below ``root``, and the command and environment of its containers."""

    root: Path
    variables: dict[str, str] = field(default_factory=dict)
    arguments: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "0"
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    healthcheck: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()

    def placed(self, text: str) -> str:
        """Return a text with the image's paths as they are here."""
        return OURS.sub(lambda match: f"{self.root}{match.group()}", text)

    def environment(self) -> dict[str, str]:
        """Return the image's variables, and none of the host's."""
        path = os.pathsep.join((str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"))
        variables = {"PATH": path} | {name: self.placed(value) for name, value in self.variables.items()}
        return variables | {"PATH": variables["PATH"].replace("$PATH", path)}

    @property
    def folder(self) -> Path:
        """The working directory, here."""
        return Path(self.placed(self.workdir))

    def files(self) -> dict[Path, tuple[int, int]]:
        """Return every file with its size and time of change."""
        found = {path: path.lstat() for path in self.root.rglob("*") if not path.is_dir()}
        return {path.relative_to(self.root): (stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


def instructions(dockerfile: Path) -> list[Instruction]:
    """Return the instructions of a Dockerfile, without its comments."""
    with dockerfile.open("rb") as opened:
        lines = DockerfileParser(fileobj=opened).structure
    found = [Instruction(word=line["instruction"], value=line["value"]) for line in lines]
    return [line for line in found if line.word != "COMMENT"]


class Builder:
    """Carries out the stages of a Dockerfile below ``folder``, each once."""

    def __init__(self, dockerfile: Path, context: Path, folder: Path) -> None:
        self._context = context
        self._folder = folder
        self._lines: dict[str, list[Instruction]] = {}
        self._stages: dict[str, Stage] = {}
        name = ""  # of what stands before the first stage
        for line in instructions(dockerfile):
            if line.word == "FROM":
                name = line.words[-1]
            self._lines.setdefault(name, []).append(line)

    def stage(self, name: str) -> Stage:
        """Return a stage, and before it those that it is made from."""
        if name not in self._stages:
            start, *steps = self._lines[name]
            base = start.words[0]
            root = self._folder / name
            if base in self._lines:
                stage = replace(self.stage(base), root=root)
                shutil.copytree(self.stage(base).root, root, symlinks=True)
            else:
                stage = Stage(root=root)
                root.mkdir(parents=True)
            for step in steps:
                stage = self._carried_out(step, stage)
            self._stages[name] = stage
        return self._stages[name]

    def _carried_out(self, step: Instruction, stage: Stage) -> Stage:
        match step.word:
            case "ENV":
                return replace(stage, variables={**stage.variables, **_pairs(step.words)})
            case "ARG":
                return replace(stage, arguments={**stage.arguments, **_pairs(step.words)})
            case "WORKDIR":
                stage = replace(stage, workdir=step.value)
                stage.folder.mkdir(parents=True, exist_ok=True)
            case "COPY":
                self._copy(step.words, stage)
            case "RUN":
                _run(step.value, stage)
            case "USER":
                return replace(stage, user=step.value)
            case "EXPOSE":
                return replace(stage, ports=tuple(map(int, step.words)))
            case "ENTRYPOINT":
                return replace(stage, entrypoint=tuple(step.words))
            case "CMD":
                return replace(stage, command=tuple(step.words))
            case "HEALTHCHECK":
                return replace(stage, healthcheck=tuple(json.loads(step.value[step.value.index("[") :])))
            case "LABEL":
                pass
            case other:
                raise ValueError(f"what does {other} do?")
        return stage

    def _copy(self, words: list[str], stage: Stage) -> None:
        first, *sources, to = words if words[0].startswith("--from=") else ("", *words)
        for source in sources:
            if first:
                other = self.stage(first.removeprefix("--from="))
                shutil.copytree(other.placed(source), stage.placed(to), symlinks=True, dirs_exist_ok=True)
            elif (self._context / source).is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")  # as .dockerignore says
                shutil.copytree(self._context / source, stage.folder / to, ignore=ignored, dirs_exist_ok=True)
            else:
                (stage.folder / to).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self._context / source, stage.folder / to)


def _pairs(words: list[str]) -> dict[str, str]:
    return dict(word.split("=", 1) for word in words)


def _run(command: str, stage: Stage) -> None:
    variables = stage.environment() | stage.arguments
    variables |= {name: os.environ[name] for name in FROM_THE_HOST if name in os.environ}
    for part in re.split(r"\s*&&\s*", command):
        word = part.split()[0]
        if word in LEFT_OUT:
            continue
        assert word in RUN_HERE, f"{word}: is it to be run here, or left out?"
        words = ["bash", "-c", stage.placed(part)]
        folder = stage.folder if stage.workdir != "/" else stage.root
        done = subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True, timeout=STEP_SECONDS)
        assert done.returncode == 0, f"{part}\n{done.stdout}{done.stderr}"
