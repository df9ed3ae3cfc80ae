"""Imports point down, in no circle, and importing changes nothing."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
ROOTS = {"kernels": "kernels", "telemetry": "telemetry", "service": "service", "kvdepot": "clients/python/kvdepot"}
OURS = {*ROOTS, "examples", "benchmarks", "tests", "tools"}

ORDER = {
    "kernels": """
        *
        host cuda
        backends
    """,
    "telemetry": """
        kinds rate_limit resource
        events
        attributes delivery
        bus loading thread
        metrics
        traces logs l0 watch activity kv_events
    """,
    "service": """
        errors units process
        l1
        tiers sizing
        setting_faults setting_types
        settings
        load_settings
        setting_groups
        setting_options misspelt print_config access
        depot
        recording kv_events
        cache_memory depot_settings
        tier_setup
        rpc
        http
        observability
        console draining
        server inheritance
        takeover
        serve
        doctor
        commands l1_commands
    """,
    "kvdepot": """
        *
        aio sync
        connector
        vllm cli
        sglang
        __main__
    """,
}
"""Of each package, its folders and modules from the bottom up: one imports only what is in lines above its own, and
itself. `*` is all that has no name in the table."""

COMMANDS = ("service/commands.py", "service/l1_commands.py", "service/doctor/*")
MESSAGES = ("service/rpc/*", "service/server.py", *COMMANDS)
GENERATED = "kvdepot/v1/*"
CONTRACT = ("kvdepot.v1", "kvdepot.wire")  # the generated messages, and the ones that are encoded by hand
# The server and the engines must agree about the memory that is left, and both show sessions and durations. Engines
# install only the client, so these modules are the client's. They import nothing but the standard library.
SHARED_WITH_CLIENT = ("kvdepot.memory.available", "kvdepot.timeline", "kvdepot.quantiles", "kvdepot.version")
PROGRAMS = ("*/__main__.py", "kvdepot/cli/app.py")
CONNECTOR = "kvdepot/vllm/connector.py"  # vLLM alone imports it
BACKEND = "kvdepot/sglang/backend.py"  # and SGLang this one
ENGINE_FACTS = "kvdepot/sglang/engine_facts.py"
NEED_VLLM = (CONNECTOR, *(f"kvdepot/vllm/{name}.py" for name in ("kv_events", "metadata", "metrics")))


def modules() -> dict[str, ast.Module]:
    """Return the syntax trees of all shipped modules, by path from the package's parent."""
    found = {}
    for package, folder in ROOTS.items():
        root = REPOSITORY / folder
        for path in sorted(root.rglob("*.py")):
            found[f"{package}/{path.relative_to(root)}"] = ast.parse(path.read_text(), str(path))
    return found


MODULES = modules()


def imports(path: str) -> Iterator[tuple[str, int]]:
    """Yield the full names that a module imports, anywhere in it, with the line."""
    for node in ast.walk(MODULES[path]):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield name.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            for name in node.names:  # `from kvdepot import v1` imports `kvdepot.v1`
                yield f"{node.module}.{name.name}", node.lineno


def name_of(path: str) -> str:
    """Return a module's name, as it is imported."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


PATHS = {name_of(path): path for path in MODULES}


@cache
def modules_imported_by(path: str) -> frozenset[str]:
    """Return the paths of our modules that a module imports."""
    found = set()
    for name, _ in imports(path):
        while name and name not in PATHS:
            name = name.rpartition(".")[0]  # the last part may be a class or a function
        if name and PATHS[name] != path:
            found.add(PATHS[name])
    return frozenset(found)


def matches(path: str, *patterns: str) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in patterns)


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def faults(*patterns: str, forbidden: tuple[str, ...]) -> list[str]:
    """Return the forbidden imports of modules."""
    return [
        f"{path}:{line} imports {name}"
        for path in MODULES
        if matches(path, *patterns)
        for name, line in imports(path)
        if within(name, *forbidden)
    ]


def others(*patterns: str) -> tuple[str, ...]:
    """Return the paths that match none of the patterns, without the generated ones."""
    return tuple(path for path in MODULES if not matches(path, GENERATED, *patterns))


REST = "*"


def line_of(package: str, folder: str) -> int:
    """Return the line of the table that a folder or module is in."""
    lines = [line.split() for line in ORDER[package].strip().splitlines()]
    return next(number for name in (folder, REST) for number, line in enumerate(lines) if name in line)


def folder_of(path: str) -> tuple[str, str]:
    """Return a module's package, and the folder or module below it; an empty one for the package's own `__init__`."""
    package, _, rest = path.removesuffix(".py").partition("/")
    folder = rest.partition("/")[0]
    return package, "" if folder == "__init__" else folder


def test_the_modules_are_found() -> None:
    assert {path.partition("/")[0] for path in MODULES} == set(ROOTS)
    assert dict(imports("service/depot/depot.py"))["service.depot.leases.Leases"] > 0
    assert "service/depot/leases.py" in modules_imported_by("service/depot/depot.py")


@pytest.mark.parametrize("package", [package for package, order in ORDER.items() if REST not in order])
def test_every_folder_and_module_is_in_the_order(package: str) -> None:
    folders = {folder for owner, folder in map(folder_of, MODULES) if owner == package}
    assert folders - {"", *ORDER[package].split()} == set()


def points_down(path: str, other: str) -> bool:
    """Return whether a module may import another one of its package."""
    package, folder = folder_of(path)
    _, other_folder = folder_of(other)
    if "" in (folder, other_folder) or folder == other_folder:
        return True
    line, other_line = line_of(package, folder), line_of(package, other_folder)
    is_rest = REST in ORDER[package].strip().splitlines()[line].split()
    return other_line < line or (other_line == line and is_rest)


def test_imports_point_down() -> None:
    within_package = [
        (path, other)
        for path in MODULES
        for other in modules_imported_by(path)
        if folder_of(path)[0] == folder_of(other)[0]
    ]
    assert [f"{path} imports {other}" for path, other in within_package if not points_down(path, other)] == []


def test_no_imports_form_a_circle() -> None:
    try:
        TopologicalSorter({path: modules_imported_by(path) for path in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


@pytest.mark.parametrize("package", ["kernels", "telemetry", "kvdepot"])
def test_the_lower_packages_import_nothing_of_ours(package: str) -> None:
    assert faults(f"{package}/*", forbidden=tuple(OURS - {package})) == []


def test_the_service_imports_the_lower_packages_and_the_contract() -> None:
    assert faults("service/*", forbidden=("tests", "benchmarks", "tools", "examples")) == []
    not_commands = others(*COMMANDS, "kvdepot/*")
    allowed = faults(*not_commands, forbidden=(*CONTRACT, *SHARED_WITH_CLIENT))
    assert set(faults(*not_commands, forbidden=("kvdepot",))) <= set(allowed)


def test_the_connector_imports_no_engine() -> None:
    assert faults("kvdepot/connector/*", forbidden=("kvdepot.vllm", "vllm", "kvdepot.sglang", "sglang")) == []
    assert faults(*others("kvdepot/vllm/*"), forbidden=("vllm",)) == []


def test_only_servicers_and_commands_see_messages() -> None:
    assert faults(*others(*MESSAGES, "kvdepot/*"), forbidden=(*CONTRACT, "google", "grpc_health")) == []


def test_only_the_client_and_the_service_see_grpc() -> None:
    assert faults("kernels/*", "telemetry/*", forbidden=("grpc",)) == []


def test_only_kernels_see_torch_and_cupy() -> None:
    not_kernels = others("kernels/*", CONNECTOR, ENGINE_FACTS)
    assert faults(*not_kernels, forbidden=("torch", "cupy", "cupy_backends", "cuda")) == []


def test_only_the_command_line_reads_the_environment() -> None:
    readers = {
        path
        for path, tree in MODULES.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb"))
        or (isinstance(node, ast.ImportFrom) and node.module == "os")
    }
    hands_it_on = {"service/tier_setup.py", "kvdepot/cli/processes.py"}  # to child processes
    sets_it = {"service/tiers/stores/mooncake.py"}  # for a library, in a process of its own
    assert readers == {"service/commands.py", "kvdepot/cli/app.py", CONNECTOR, BACKEND} | hands_it_on | sets_it


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
    """Return the modules of a package, without the command line and what engines import, which programs use."""
    engines = (*NEED_VLLM, BACKEND)
    paths = [path for path in MODULES if path.startswith(f"{package}/") and not matches(path, *PROGRAMS, *engines)]
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
