"""Every generated file equals the output of its generator."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.generate.__main__ import FILES

REPOSITORY = Path(__file__).parents[3]


@pytest.mark.parametrize("name", FILES)
def test_the_file_is_fresh(name: str) -> None:
    assert (REPOSITORY / name).read_text() == FILES[name](), "run `make docs`"
