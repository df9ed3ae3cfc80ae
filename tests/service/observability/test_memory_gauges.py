"""The metrics of L1's memory: what was adopted, what was not trusted and why."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.cache_memory import CacheMemory
from service.l1.adoption import Doubt
from service.l1.arena import HugePages
from service.l1.format import Layout
from service.observability.gauges import read_memory
from service.settings import Settings
from telemetry.metrics import attributes, definitions
from tests.fakes.l1_file import L1_BYTES, filled


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder) / "l1"


def memory(path: Path | None) -> CacheMemory:
    given = {"l1_size": L1_BYTES, "l1_file": str(path) if path is not None else "", "l1_huge_pages": HugePages.NONE}
    return CacheMemory(Settings.model_construct(**given))  # type: ignore[arg-type]  # of these types


def test_adopted_chunks_and_doubts_are_counted(path: Path) -> None:
    filled(path, [("red", "a"), ("red", "b"), ("blue", "a")]).close()
    with path.open("r+b") as file:
        file.seek(Layout(L1_BYTES).records_offset + 40)
        file.write(b"\xff")
    opened = memory(path)
    values = read_memory(opened)
    assert values[definitions.L1_ADOPTED] == {(): 2}
    assert values[definitions.L1_NOT_ADOPTED]["damaged",] == 1
    assert sum(values[definitions.L1_NOT_ADOPTED].values()) == 1
    assert values[definitions.L1_IN_FILE] == {(): 1}
    opened.close()


def test_memory_without_a_name_adopts_nothing() -> None:
    opened = memory(None)
    values = read_memory(opened)
    assert (values[definitions.L1_ADOPTED], values[definitions.L1_IN_FILE]) == ({(): 0}, {(): 0})
    assert (values[definitions.L1_WITHOUT_RECORD], values[definitions.L1_UNZEROED]) == ({(): 0}, {(): 0})
    opened.close()


def test_every_doubt_is_a_value_of_the_metric_and_explained_in_the_docs(path: Path) -> None:
    filled(path, []).close()
    opened = memory(path)
    reasons = {reason for (reason,) in read_memory(opened)[definitions.L1_NOT_ADOPTED]}
    opened.close()
    assert reasons == set(attributes.ADOPTION_DOUBT.values)
    assert len(reasons) == len(Doubt)
    page = (Path(__file__).parents[3] / "docs/memory.md").read_text()
    assert all(f"| {reason} | " in page for reason in reasons)
