"""Every package that the product imports is declared in pyproject.toml."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from importlib import metadata

import pytest

from tests.test_imports import MODULES, OURS, REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
DECLARED_FOR = {
    "kernels/cuda/*": ("server", "cuda12"),
    "kernels/*": ("server",),
    "telemetry/kv_events/*": ("server", "kv-events"),
    "telemetry/*": ("server",),
    "service/tiers/stores/s3*": ("server", "s3"),
    "service/tiers/stores/mooncake.py": ("server", "mooncake"),
    "service/*": ("server",),
    "kvdepot/*": (),
}
"""The extras that a file may need, by the first pattern that fits. All files may need the project's dependencies."""

NOT_INSTALLED = {
    "cupy": "cupy-cuda12x",
    "cupy_backends": "cupy-cuda12x",
    "mooncake": "mooncake-transfer-engine-non-cuda",
}
"""The distributions of what the checks may run without."""
OF_ENGINES = {
    "kvdepot/vllm/": {"vllm", "torch"},
    "kvdepot/sglang/": {"sglang", "torch"},
    "kvdepot/connector/model_files.py": {"huggingface_hub"},
}
"""A process that loads one of these has them, or the module does without."""


def normalized(name: str) -> str:
    """Return a distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(path: str) -> set[str]:
    """Return the distributions that a module may import from."""
    extras = next(extras for pattern, extras in DECLARED_FOR.items() if fnmatchcase(path, pattern))
    wanted = [*PROJECT["dependencies"], *(each for extra in extras for each in PROJECT["optional-dependencies"][extra])]
    return {normalized(re.split(r"[\[<>=;~ ]", requirement)[0]) for requirement in wanted}


def third_party_imports(tree: ast.Module) -> Iterator[str]:
    """Return the full names of third-party modules that a module imports at run time."""
    skipped = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name.name}" for name in node.names]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] not in {*OURS, *sys.stdlib_module_names})


@cache
def files_of(distribution: str) -> frozenset[str]:
    """Return the files that a distribution installs."""
    return frozenset(str(file) for file in metadata.files(distribution) or ())


@cache
def distributions() -> dict[str, list[str]]:
    """Return the distributions behind each top-level name that is installed."""
    return {name: sorted(set(found)) for name, found in metadata.packages_distributions().items()}


@cache
def distribution_of(name: str) -> str:
    """Return the distribution that a name is imported from. Several share a namespace such as `google`."""
    top = name.partition(".")[0]
    candidates = distributions().get(top) or [NOT_INSTALLED.get(top, top)]
    while len(candidates) > 1 and name:
        path = name.replace(".", "/")
        found = [each for each in candidates if {f"{path}.py", f"{path}/__init__.py"} & files_of(each)]
        candidates = found or candidates
        name = name.rpartition(".")[0]
    return normalized(candidates[0])


def test_packages_of_one_namespace_are_distinguished() -> None:
    assert distribution_of("google.rpc.status_pb2") == "googleapis-common-protos"
    assert distribution_of("google.protobuf.duration_pb2.Duration") == "protobuf"
    assert distribution_of("opentelemetry.trace.Span") == "opentelemetry-api"


@pytest.mark.parametrize("package", sorted({path.partition("/")[0] for path in MODULES}))
def test_every_import_is_declared(package: str) -> None:
    undeclared = {
        f"{path} imports {name} of {distribution_of(name)}"
        for path, tree in MODULES.items()
        if path.startswith(f"{package}/")
        for name in third_party_imports(tree)
        if distribution_of(name) not in declared(path)
        and not any(path.startswith(folder) and name.partition(".")[0] in of for folder, of in OF_ENGINES.items())
    }
    assert undeclared == set()
