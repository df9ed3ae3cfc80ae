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
from kernels.block_views import Blocks
from kernels.streaming_copy import StreamingCopy, best_copy, built_library, copy_with_numpy

RUN_BYTES = st.one_of(st.integers(1, 700), st.sampled_from([1024, 4095, 4096, 4097, 8192, 20_000, 40_000]))


@pytest.fixture(scope="module")
def best() -> StreamingCopy:
    return StreamingCopy(built_library())


@st.composite
def copies(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]], list[list[int]], list[int]]:
    """Of either side: shape, what lies between the elements of each dimension, block ids, where the array begins."""
    rest = [*draw(st.lists(st.integers(1, 4), max_size=2)), draw(RUN_BYTES)]
    layers, kinds, num_copied = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 5))
    shapes, gaps, ids, starts = [], [], [], []
    for _ in range(2):
        num_blocks = draw(st.integers(num_copied, num_copied + 3))
        shapes.append([layers, kinds, num_blocks, *rest])
        gaps.append(draw(st.lists(st.integers(0, 70), min_size=len(rest) + 3, max_size=len(rest) + 3)))
        ids.append(draw(st.permutations(range(num_blocks)))[:num_copied])
        starts.append(draw(st.integers(0, 80)))
    return shapes, gaps, ids, starts


def view(counts: list[int], gaps: list[int], start: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Memory of random bytes, and a strided view into it, with bytes around it."""
    strides, step = [1], counts[-1] + gaps[-1]
    for count, gap in zip(reversed(counts[:-1]), reversed(gaps[:-1]), strict=True):
        strides.insert(0, step)
        step = step * count + gap
    memory = np.random.default_rng(step).integers(0, 256, start + step + 64, dtype=np.uint8)
    return memory, np.ndarray(counts, np.uint8, memory, start, strides)


def all_of(array: NDArray[np.uint8]) -> Blocks:
    return Blocks(array, np.arange(array.shape[2]))


@pytest.mark.parametrize("level", [*range(4), None], ids=["memcpy", "SSE2", "AVX2", "AVX-512", "NumPy"])
@settings(max_examples=150, deadline=None)
@given(case=copies(), threshold=st.sampled_from([1, streaming_copy.MIN_RUN_BYTES]))
def test_copies_what_it_should_and_nothing_else(best, level, case, threshold):
    if level is not None and level > best.level:
        pytest.skip("this processor does not have it")
    (to_shape, source_shape), (to_gaps, source_gaps), (to_ids, source_ids), (to_start, source_start) = case
    _, source = view(source_shape, source_gaps, source_start)
    memory, to = view(to_shape, to_gaps, to_start)
    expected_memory, expected = view(to_shape, to_gaps, to_start)
    expected[:, :, to_ids] = source[:, :, source_ids]
    before = source.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming_copy, "MIN_RUN_BYTES", threshold)
        copy = copy_with_numpy if level is None else StreamingCopy(built_library(), level)
        copy(Blocks(to, np.array(to_ids)), Blocks(source, np.array(source_ids)))
    assert (memory == expected_memory).all()
    assert (source == before).all()


def test_large_runs_in_another_order(best):
    """A chunk's worth of blocks: heads before tokens on one side, tokens before heads on the other."""
    engine = np.random.default_rng(0).integers(0, 256, (4, 2, 6, 8, 16, 256), dtype=np.uint8)
    chunk = np.zeros((4, 2, 6, 16, 8, 256), dtype=np.uint8)
    best(all_of(chunk.transpose(0, 1, 2, 4, 3, 5)), all_of(engine))
    assert (chunk == engine.transpose(0, 1, 2, 4, 3, 5)).all()


def test_without_a_compiler_numpy_copies_and_the_log_says_so(monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(streaming_copy, "BUILT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert best_copy() is copy_with_numpy
    assert "no C compiler" in caplog.text


@pytest.mark.parametrize("script", ["exit 1", "kill -9 $$"])
def test_a_compiler_that_fails_is_as_good_as_none(monkeypatch, tmp_path, caplog, script):
    caplog.set_level(logging.INFO)
    compiler = tmp_path / "cc"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(streaming_copy, "BUILT", tmp_path / "build")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert best_copy() is copy_with_numpy
    assert list((tmp_path / "build").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_no_reason_not_to_start(monkeypatch, tmp_path):
    (tmp_path / "build").write_text("a file")
    monkeypatch.setattr(streaming_copy, "BUILT", tmp_path / "build")
    assert best_copy() is copy_with_numpy


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
