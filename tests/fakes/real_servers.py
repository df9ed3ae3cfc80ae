"""Programs of others that tests run where they are there: `make test-servers` fetches them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

SERVERS_PYTHON = Path(__file__).parents[2] / ".venv-servers" / "bin" / "python"
"""The Python that has the servers which PyPI has: moto."""


def why_skipped(program: str) -> str:
    """Return the reason of a test that needs a program which is not there."""
    return f"{program} is not there: `make test-servers` fetches it"


def needs(program: str) -> pytest.MarkDecorator:
    """Return the mark of tests that need a program."""
    return pytest.mark.skipif(shutil.which(program) is None, reason=why_skipped(program))


def found(program: str) -> str:
    """Return the path of a program; skip the test if it is not there."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(why_skipped(program))
    return path


def libraries(program: str) -> dict[str, str]:
    """Return the environment in which a program finds the libraries that were fetched with it."""
    folder = Path(program).resolve().parents[1] / "lib" / f"{os.uname().machine}-linux-gnu"
    return {"LD_LIBRARY_PATH": str(folder)} if not folder.is_relative_to("/usr") else {}


def servers_python(module: str) -> str:
    """Return the Python that has a server's module; skip the test if it is not there."""
    if not list(SERVERS_PYTHON.parents[1].glob(f"lib/python*/site-packages/{module}")):
        pytest.skip(why_skipped(module))
    return str(SERVERS_PYTHON)
