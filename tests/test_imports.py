"""Dependencies point down, and importing changes nothing."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ROOTS = {"kernels": "kernels", "telemetry": "telemetry", "service": "service", "kvdepot": "clients/python/kvdepot"}
OURS = {*ROOTS, "examples", "benchmarks", "tests"}
GENERATED = "kvdepot/v1/*"
COMMANDS = ("service/__main__.py", "service/demo.py", "service/doctor/*")  # programs, which are clients, too
CONNECTOR = "kvdepot/vllm/connector.py"  # imported by vLLM alone, which has torch, as its program
# Who sees the contract's messages; what runs them is the rest.
CONTRACT = ("kvdepot.v1", "kvdepot.pieces")  # generated, and what of it is made by hand
# The server and what an engine installs must agree about the memory that is left. The client is installed alone, so the
# one module that finds it out is the client's. It imports nothing but the standard library.
MEMORY_LEFT = "kvdepot.memory.available"
TIMELINE = "kvdepot.timeline"  # of a session, which both show
MESSAGES = ("service/rpc/*", "service/server.py", *COMMANDS)


def modules() -> dict[str, ast.Module]:
    """The syntax trees of what we ship, by path from the package's parent."""
    found = {}
    for package, folder in ROOTS.items():
        root = REPOSITORY / folder
        for path in sorted(root.rglob("*.py")):
            found[f"{package}/{path.relative_to(root)}"] = ast.parse(path.read_text(), str(path))
    return found


MODULES = modules()


def imports(path: str) -> Iterator[tuple[str, int]]:
    """The full names of modules that a module imports, anywhere in it, with the line."""
    for node in ast.walk(MODULES[path]):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            for name in node.names:  # of `from kvdepot import v1` the name counts, too
                yield f"{node.module}.{name.name}", node.lineno


def matches(path: str, *patterns: str) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def faults(*patterns: str, forbidden: tuple[str, ...]) -> list[str]:
    """Where modules import what they may not."""
    return [
        f"{path}:{line} imports {name}"
        for path in MODULES
        if matches(path, *patterns)
        for name, line in imports(path)
        if within(name, *forbidden)
    ]


def others(*patterns: str) -> tuple[str, ...]:
    """Paths that match none of the patterns, the generated ones left out."""
    return tuple(path for path in MODULES if not matches(path, GENERATED, *patterns))


def test_the_modules_are_found() -> None:
    assert {path.partition("/")[0] for path in MODULES} == set(ROOTS)
    assert dict(imports("service/depot/depot.py"))["service.depot.leases.Leases"] > 0


@pytest.mark.parametrize("package", ["kernels", "telemetry"])
def test_the_lower_packages_import_nothing_of_ours(package: str) -> None:
    assert faults(f"{package}/*", forbidden=tuple(OURS - {package})) == []


def test_the_service_imports_the_lower_packages_and_the_contract() -> None:
    assert faults("service/*", forbidden=("tests", "benchmarks")) == []
    assert faults(*others(*COMMANDS, "kernels/*", "telemetry/*", "kvdepot/*"), forbidden=("examples",)) == []
    theirs = faults(*others(*COMMANDS, "kvdepot/*"), forbidden=("kvdepot",))
    assert set(theirs) <= set(faults(*others(*COMMANDS, "kvdepot/*"), forbidden=(*CONTRACT, MEMORY_LEFT, TIMELINE)))


def test_the_client_imports_nothing_of_the_servers() -> None:
    assert faults("kvdepot/*", forbidden=tuple(OURS - {"kvdepot"})) == []


def test_the_connector_knows_no_engine() -> None:
    assert faults("kvdepot/connector/*", forbidden=("kvdepot.vllm", "vllm")) == []


def test_only_servicers_and_commands_see_messages() -> None:
    assert faults(*others(*MESSAGES, "kvdepot/*"), forbidden=(*CONTRACT, "google", "grpc_health")) == []


def test_only_the_client_and_the_service_see_grpc() -> None:
    assert faults("kernels/*", "telemetry/*", forbidden=("grpc",)) == []


def test_only_kernels_see_torch_and_cupy() -> None:
    assert faults(*others("kernels/*", CONNECTOR), forbidden=("torch", "cupy", "cupy_backends", "cuda")) == []


def test_only_the_command_line_reads_the_environment() -> None:
    readers = {
        path
        for path, tree in MODULES.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb"))
        or (isinstance(node, ast.ImportFrom) and node.module == "os")
    }
    assert readers == {"service/__main__.py", "kvdepot/cli/processes.py", CONNECTOR}


PROBE = """
import importlib, json, os, sys, threading

environment = dict(os.environ)
descriptors = set(os.listdir("/proc/self/fd"))
for name in sys.argv[1:]:
    importlib.import_module(name)
torch = sys.modules.get("torch")
print(json.dumps({
    "threads": threading.active_count(),
    "environment": dict(os.environ) == environment,
    "descriptors": sorted(set(os.listdir("/proc/self/fd")) - descriptors),
    "cuda": bool(torch and torch.cuda.is_initialized()),
    "loggers": len(__import__("logging").getLogger().handlers),
}))
"""


def names(package: str) -> list[str]:
    """Modules of a package, but for the command line and the connector, which are programs' own."""
    paths = [
        path for path in MODULES if path.startswith(f"{package}/") and not matches(path, "*/__main__.py", CONNECTOR)
    ]
    return [path.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for path in paths]


@pytest.mark.parametrize("package", ROOTS)
def test_an_import_starts_nothing_opens_nothing_and_needs_no_environment(package: str) -> None:
    path = os.pathsep.join((str(REPOSITORY), str(REPOSITORY / "clients" / "python")))
    probe = subprocess.run(
        [sys.executable, "-c", PROBE, *names(package)],
        env={"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (probe.returncode, probe.stderr) == (0, "")
    assert json.loads(probe.stdout) == {
        "threads": 1,
        "environment": True,
        "descriptors": [],
        "cuda": False,
        "loggers": 0,
    }
