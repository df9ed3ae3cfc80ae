"""The text that the demo's model learns: the documents of this repository, as prose."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent
REPOSITORY = FOLDER.parents[1]

_DOCUMENTS = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*.md", "helm/kvdepot/README.md", "telemetry/l0/*.md")
_PACKAGES = ("service", "kernels", "telemetry", "clients/python/kvdepot")
_GENERATED = "clients/python/kvdepot/v1/"
_FENCE = re.compile(r"```.*?```", re.DOTALL)
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")


def documents() -> list[str]:
    """Return the prose of each document: without code, tables, links and marks."""
    found = [_prose(path.read_text(encoding="utf-8")) for path in _files(REPOSITORY, _DOCUMENTS)]
    return [text for text in found if text]


def comments() -> list[str]:
    """Return the comments of each .proto file, and the docstrings of each package's modules."""
    protos = [_proto_comments(path.read_text(encoding="utf-8")) for path in _files(REPOSITORY, ("protos/**/*.proto",))]
    modules = [
        "\n\n".join(filter(None, _docstrings(path.read_text(encoding="utf-8"))))
        for path in _files(REPOSITORY, tuple(f"{package}/**/*.py" for package in _PACKAGES))
        if _GENERATED not in path.as_posix()
    ]
    return [text for text in (*protos, *modules) if text]


def questions() -> list[tuple[str, str]]:
    """Return the questions that the model learns to answer, with their answers."""
    pairs = (FOLDER / "questions.txt").read_text(encoding="utf-8").strip().split("\n\n")
    return [(question, answer) for question, answer in (pair.split("\n") for pair in pairs)]


def _files(root: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        yield from sorted(root.glob(pattern))


def _prose(markdown: str) -> str:
    """Return paragraphs on one line each, so that the model learns sentences and no line breaks."""
    text = _LINK.sub(r"\1", _FENCE.sub("", markdown)).replace("`", "").replace("**", "")
    paragraphs = re.split(r"\n\s*\n|\n(?=\s*(?:-|\d+\.) )", text)
    lines = (" ".join(each.split()) for each in paragraphs if not each.lstrip().startswith(("|", "<")))
    return "\n".join(filter(None, lines))


def _proto_comments(source: str) -> str:
    lines = (line.strip() for line in source.splitlines())
    text = "\n".join(line[2:].strip() if line.startswith("//") else "" for line in lines)
    return _prose(text)


def _docstrings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield _prose(ast.get_docstring(node) or "")
