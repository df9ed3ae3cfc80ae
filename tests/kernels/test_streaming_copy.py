"""The compiled copy equals NumPy's, whatever the strides, sizes and alignments, on every level of the processor."""

from __future__ import annotations

import logging
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels import streaming_copy
from kernels.streaming_copy import StreamingCopy, best_copy, built_library

RUN_BYTES = st.one_of(st.integers(1, 700), st.sampled_from([1024, 4095, 4096, 4097, 8192, 20_000, 40_000]))


@pytest.fixture(scope="module")
def best() -> StreamingCopy:
    return StreamingCopy(built_library())


@st.composite
def copies(draw: st.DrawFn) -> tuple[list[int], list[int], list[int], int, int]:
    """Counts with the last one a run, and what lies between the elements on either side; where each side begins."""
    counts = [*draw(st.lists(st.integers(1, 5), max_size=3)), draw(RUN_BYTES)]
    gaps = st.lists(st.integers(0, 70), min_size=len(counts), max_size=len(counts))
    return counts, draw(gaps), draw(gaps), draw(st.integers(0, 80)), draw(st.integers(0, 80))


def view(counts: list[int], gaps: list[int], start: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Memory of random bytes, and a strided view into it, with bytes around it."""
    strides, step = [1], counts[-1] + gaps[-1]
    for count, gap in zip(reversed(counts[:-1]), reversed(gaps[:-1]), strict=True):
        strides.insert(0, step)
        step = step * count + gap
    memory = np.random.default_rng(step).integers(0, 256, start + step + 64, dtype=np.uint8)
    return memory, np.ndarray(counts, np.uint8, memory, start, strides)


@pytest.mark.parametrize("level", range(4))
@settings(max_examples=150, deadline=None)
@given(case=copies(), threshold=st.sampled_from([1, streaming_copy.MIN_RUN_BYTES]))
def test_copies_what_it_should_and_nothing_else(best, level, case, threshold):
    if level > best.level:
        pytest.skip("this processor does not have it")
    counts, to_gaps, source_gaps, to_start, source_start = case
    _, source = view(counts, source_gaps, source_start)
    memory, to = view(counts, to_gaps, to_start)
    expected_memory, expected = view(counts, to_gaps, to_start)
    np.copyto(expected, source)
    before = source.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming_copy, "MIN_RUN_BYTES", threshold)
        StreamingCopy(built_library(), level)(to, source)
    assert (memory == expected_memory).all()
    assert (source == before).all()


def test_large_runs_in_another_order(best):
    """A chunk's worth of blocks: heads before tokens on one side, tokens before heads on the other."""
    engine = np.random.default_rng(0).integers(0, 256, (4, 2, 8, 16, 256), dtype=np.uint8)
    chunk = np.zeros((4, 2, 16, 8, 256), dtype=np.uint8)
    best(chunk.transpose(0, 1, 3, 2, 4), engine)
    assert (chunk == engine.transpose(0, 1, 3, 2, 4)).all()


def test_without_a_compiler_numpy_copies_and_the_log_says_so(monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(streaming_copy, "BUILT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert best_copy() is np.copyto
    assert "no C compiler" in caplog.text


@pytest.mark.parametrize("script", ["exit 1", "kill -9 $$"])
def test_a_compiler_that_fails_is_as_good_as_none(monkeypatch, tmp_path, caplog, script):
    caplog.set_level(logging.INFO)
    compiler = tmp_path / "cc"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(streaming_copy, "BUILT", tmp_path / "build")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert best_copy() is np.copyto
    assert list((tmp_path / "build").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_no_reason_not_to_start(monkeypatch, tmp_path):
    (tmp_path / "build").write_text("a file")
    monkeypatch.setattr(streaming_copy, "BUILT", tmp_path / "build")
    assert best_copy() is np.copyto


def test_what_is_built_already_needs_no_compiler(monkeypatch):
    built_library()
    monkeypatch.setenv("PATH", "")
    assert isinstance(best_copy(), StreamingCopy)


def test_a_changed_source_is_compiled_anew(monkeypatch, tmp_path):
    changed = tmp_path / "streaming_copy.c"
    changed.write_bytes(streaming_copy.SOURCE.read_bytes() + b"\n// changed\n")
    monkeypatch.setattr(streaming_copy, "SOURCE", changed)
    monkeypatch.setattr(streaming_copy, "BUILT", tmp_path)
    first = built_library()
    changed.write_bytes(changed.read_bytes() + b"// again\n")
    assert built_library() != first
    assert len(list(Path(tmp_path).glob("*.so"))) == 2


def test_the_source_has_no_warnings(tmp_path):
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    subprocess.run(["cc", *flags, str(streaming_copy.SOURCE)], check=True)
