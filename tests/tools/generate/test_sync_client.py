"""The client with blocking calls is the one for an event loop, with every asynchronous word replaced."""

from __future__ import annotations

import re

import pytest

from tools.generate.sync_client import CLIENT, NAMES, SUBSTITUTIONS, sync_module

SOURCES = [(CLIENT / "aio" / name).read_text() for name in NAMES]


@pytest.mark.parametrize("pattern", [pattern for pattern, _ in SUBSTITUTIONS])
def test_each_substitution_is_needed(pattern: str) -> None:
    assert any(re.search(pattern, source) for source in SOURCES)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_asynchronous_is_left(name: str) -> None:
    module = sync_module(name)
    assert re.findall(r"(?i)async\w*|await\w*|__a\w+|\baio\.|event loop", module) == []
    assert module.startswith(f"# Generated from aio/{name} ")
