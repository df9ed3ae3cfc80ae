"""kvdepot is light: importing it does nothing to an engine's process."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import kvdepot

CLIENTS = Path(kvdepot.__file__).parents[1]

PROBE = """
import sys, threading, os
before = dict(os.environ)
import kvdepot
from google.protobuf import descriptor_pool
assert "grpc" not in sys.modules
heavy = {name.partition(".")[0] for name in sys.modules} & {"torch", "cupy", "pydantic", "opentelemetry", "service"}
assert not heavy, heavy
assert not [name for name in sys.modules if name.startswith("google.rpc")]
assert threading.active_count() == 1, threading.enumerate()
assert os.environ == before
for name in kvdepot.__all__:
    getattr(kvdepot, name)
assert threading.active_count() == 1, threading.enumerate()
import kvdepot.errors
kvdepot.errors.status_messages()  # made on first use
pool = descriptor_pool.Default()
for name in ("google.rpc.Status", "kvdepot_rpc.Status"):
    try:
        pool.FindMessageTypeByName(name)
    except KeyError:
        continue
    raise AssertionError(name)
"""


def run(script: str) -> None:
    ended = subprocess.run([sys.executable, "-c", script], cwd=CLIENTS, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_import_brings_neither_torch_nor_google_rpc_and_starts_nothing() -> None:
    run(PROBE)


def test_real_google_rpc_can_be_loaded_with_ours() -> None:
    run(
        "import kvdepot.errors\nkvdepot.errors.status_messages()\n"
        "from google.rpc import status_pb2, error_details_pb2\n"
        "assert status_pb2.Status(code=5).code == 5\n"
    )


def test_every_public_name_exists_and_is_documented() -> None:
    for name in kvdepot.__all__:
        assert getattr(kvdepot, name).__doc__, name


def test_what_is_imported_late_is_what_type_checkers_see() -> None:
    (checked,) = [node for node in ast.parse(Path(kvdepot.__file__).read_text()).body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    late = {name: module.removesuffix(f".{name}") for name, module in kvdepot._MODULES.items()}
    assert seen == late
    assert {*late, "__version__"} == set(kvdepot.__all__)


def test_an_unknown_name_is_named() -> None:
    with pytest.raises(AttributeError, match="'kvdepot' has no attribute 'DepotCleint'"):
        kvdepot.DepotCleint  # noqa: B018 - the access is the test
