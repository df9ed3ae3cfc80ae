"""The public names of `kvdepot.connector`: each is documented, and none needs a particular engine."""

from __future__ import annotations

import inspect

import pytest

import kvdepot.connector

PLAIN = {"BLOCK_HASH_SEED", "BlockIds"}  # a text and a type


@pytest.mark.parametrize("name", sorted({*kvdepot.connector.__all__} - PLAIN))
def test_a_public_name_is_documented_and_names_no_engine(name: str) -> None:
    documented = inspect.getdoc(getattr(kvdepot.connector, name)) or ""
    assert documented.split("\n\n")[0].endswith((".", ":"))
    assert "vllm" not in documented.lower()
