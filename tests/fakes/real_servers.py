"""Programs of others that tests run where they are there: `make test-servers` fetches them."""

from __future__ import annotations

import shutil

import pytest


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
