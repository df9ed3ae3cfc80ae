"""Copies are exact for all strides, sizes and alignments, and end with an error where memory is gone."""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kernels.checksum import WORD_BYTES, kvsum64
from kernels.errors import BackendError, MemoryVanished
from kernels.host import streaming_copy, system_copy
from kernels.host.block_views import Blocks
from kernels.host.streaming_copy import StreamingCopy, best_copy, built_library
from kernels.host.system_copy import SystemCopy
from tests.kernels.checksum_vectors import VECTORS

RUN_BYTES = st.one_of(st.integers(1, 700), st.sampled_from([1024, 4095, 4096, 4097, 8192, 20_000, 40_000]))


@pytest.fixture(scope="module")
def best() -> StreamingCopy:
    return StreamingCopy(built_library())


@st.composite
def copies(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]], list[list[int]], list[int]]:
    """Return for either side: shape, gaps between elements of each dimension, block ids, the array's offset."""
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
    """Return memory of random bytes, and a strided view into it, with bytes around it."""
    strides, step = [1], counts[-1] + gaps[-1]
    for count, gap in zip(reversed(counts[:-1]), reversed(gaps[:-1]), strict=True):
        strides.insert(0, step)
        step = step * count + gap
    memory = np.random.default_rng(step).integers(0, 256, start + step + 64, dtype=np.uint8)
    return memory, np.ndarray(counts, np.uint8, memory, start, strides)


def addresses(memory: NDArray[np.uint8]) -> range:
    return range(memory.ctypes.data, memory.ctypes.data + memory.nbytes)


def all_of(array: NDArray[np.uint8]) -> Blocks:
    return Blocks(array, np.arange(array.shape[2]))


@pytest.mark.parametrize("foreign_is_source", [True, False], ids=["gather", "scatter"])
@pytest.mark.parametrize("level", [*range(4), None], ids=["memcpy", "SSE2", "AVX2", "AVX-512", "system"])
@settings(max_examples=100)
@given(case=copies(), most_runs=st.sampled_from([3, system_copy.MAX_RUNS]))
def test_copies_what_it_should_and_nothing_else(best, level, foreign_is_source, case, most_runs):
    if level is not None and level > best.level:
        pytest.skip("this processor does not have it")
    (to_shape, source_shape), (to_gaps, source_gaps), (to_ids, source_ids), (to_start, source_start) = case
    source_memory, source = view(source_shape, source_gaps, source_start)
    memory, to = view(to_shape, to_gaps, to_start)
    expected_memory, expected = view(to_shape, to_gaps, to_start)
    expected[:, :, to_ids] = source[:, :, source_ids]
    before = source.copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(system_copy, "MAX_RUNS", most_runs)
        copy = SystemCopy() if level is None else StreamingCopy(built_library(), level)
        foreign = addresses(source_memory if foreign_is_source else memory)
        copy(Blocks(to, np.array(to_ids)), Blocks(source, np.array(source_ids)), foreign)
    assert (memory == expected_memory).all()
    assert (source == before).all()


@pytest.mark.parametrize("level", [*range(4), None], ids=["memcpy", "SSE2", "AVX2", "AVX-512", "system"])
@pytest.mark.parametrize("vector", VECTORS, ids=str)
def test_each_copy_computes_the_results_of_the_table(best, level, vector):
    if level is not None and level > best.level:
        pytest.skip("this processor does not have it")
    copy = SystemCopy() if level is None else StreamingCopy(built_library(), level)
    for start in (0, 1):  # in memory
        data = np.concatenate([np.zeros(start, np.uint8), vector.data()])[start:]
        assert copy.checksum(data[np.newaxis], vector.offset_bytes) == vector.checksum


@pytest.mark.parametrize("foreign_is_source", [True, False], ids=["store", "retrieve"])
@pytest.mark.parametrize("level", [*range(4), None], ids=["memcpy", "SSE2", "AVX2", "AVX-512", "system"])
@settings(max_examples=100)
@given(case=copies(), run_words=st.one_of(st.integers(1, 90), st.sampled_from([128, 512, 513, 2500, 5000])))
def test_a_copy_sums_exactly_what_it_copies(best, level, foreign_is_source, case, run_words):
    if level is not None and level > best.level:
        pytest.skip("this processor does not have it")
    copy = SystemCopy() if level is None else StreamingCopy(built_library(), level)
    (shape, _), (gaps, _), (ids, _), (start, chunk_start) = case
    shape = [*shape[:-1], run_words * WORD_BYTES]
    memory, engine = view(shape, gaps, start)
    chunk_memory, chunk = view(shape, [0] * len(shape), chunk_start)
    last = np.arange(shape[2] - len(ids), shape[2])
    theirs, ours = Blocks(engine, np.array(ids)), Blocks(chunk, last)
    before = memory.copy() if foreign_is_source else chunk_memory.copy()
    to, source = (ours, theirs) if foreign_is_source else (theirs, ours)
    part = copy.with_checksum(to, source, addresses(memory), chunk.ctypes.data)
    assert (chunk[:, :, last] == engine[:, :, ids]).all()
    assert ((memory if foreign_is_source else chunk_memory) == before).all()
    block_bytes = chunk[0, 0, 0].nbytes
    planes = chunk.reshape(-1, block_bytes)
    copied = [number for number in range(len(planes)) if number % shape[2] in last]
    assert part == sum(kvsum64(planes[number].copy(), number * block_bytes) for number in copied) % 2**64


def test_large_runs_in_another_order(best):
    """A chunk's worth of blocks: heads before tokens on one side, tokens before heads on the other."""
    engine = np.random.default_rng(0).integers(0, 256, (4, 2, 6, 8, 16, 256), dtype=np.uint8)
    chunk = np.zeros((4, 2, 6, 16, 8, 256), dtype=np.uint8)
    best(all_of(chunk.transpose(0, 1, 2, 4, 3, 5)), all_of(engine), addresses(engine))
    assert (chunk == engine.transpose(0, 1, 2, 4, 3, 5)).all()


def test_without_a_compiler_the_system_copies_and_the_log_says_so(monkeypatch, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(streaming_copy, "BUILT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert isinstance(best_copy(), SystemCopy)
    assert "no C compiler" in caplog.text


@pytest.mark.parametrize("script", ["exit 1", "kill -9 $$"])
def test_a_compiler_that_fails_is_as_good_as_none(monkeypatch, tmp_path, caplog, script):
    caplog.set_level(logging.INFO)
    compiler = tmp_path / "cc"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(streaming_copy, "BUILT", tmp_path / "build")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert isinstance(best_copy(), SystemCopy)
    assert list((tmp_path / "build").iterdir()) == []


def test_a_folder_that_cannot_be_written_is_no_reason_not_to_start(monkeypatch, tmp_path):
    (tmp_path / "build").write_text("a file")
    monkeypatch.setattr(streaming_copy, "BUILT", tmp_path / "build")
    assert isinstance(best_copy(), SystemCopy)


@pytest.fixture
def not_writable(monkeypatch, tmp_path):
    """An installation in which nothing can be made, not even by root, and a user with an empty home."""
    monkeypatch.setattr(streaming_copy, "BUILT", Path("/sys/kvdepot"))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".cache" / "kvdepot"


def test_an_installation_that_cannot_be_written_has_the_library_in_the_users_cache(not_writable):
    library = built_library()
    assert library.parent == not_writable
    made_at = library.stat().st_mtime_ns
    assert isinstance(best_copy(), StreamingCopy)
    assert library.stat().st_mtime_ns == made_at


def test_a_library_that_other_users_could_have_written_is_not_run(not_writable):
    not_writable.mkdir(parents=True)
    not_writable.chmod(0o777)
    assert isinstance(best_copy(), SystemCopy)
    assert list(not_writable.iterdir()) == []


def test_a_user_without_a_home_gets_the_copies_of_the_system(not_writable, monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for a user id that no file knows
    assert isinstance(best_copy(), SystemCopy)


def test_what_is_built_already_needs_no_compiler(monkeypatch):
    built_library()
    monkeypatch.setenv("PATH", "")
    assert isinstance(best_copy(), StreamingCopy)


def test_a_changed_source_is_compiled_anew(monkeypatch, tmp_path):
    changed = tmp_path / "streaming_copy.c"
    changed.write_bytes(streaming_copy.SOURCE.read_bytes() + b"\n// changed\n")
    shutil.copy(streaming_copy.INCLUDED, tmp_path)
    monkeypatch.setattr(streaming_copy, "SOURCE", changed)
    monkeypatch.setattr(streaming_copy, "BUILT", tmp_path)
    first = built_library()
    changed.write_bytes(changed.read_bytes() + b"// again\n")
    assert built_library() != first
    assert len(list(Path(tmp_path).glob("*.so"))) == 2


def test_the_source_has_no_warnings(tmp_path):
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-fsyntax-only"]
    subprocess.run(["cc", *flags, str(streaming_copy.SOURCE)], check=True)


@pytest.mark.parametrize("foreign_is_source", [True, False], ids=["gather", "scatter"])
@pytest.mark.parametrize(
    ("run_bytes", "is_summed"), [(7, False), (200, False), (5000, False), (200, True), (5000, True)]
)
@pytest.mark.parametrize("level", [*range(4), None], ids=["memcpy", "SSE2", "AVX2", "AVX-512", "system"])
def test_memory_that_is_gone_ends_a_copy_and_the_next_one_is_right(
    best, level, run_bytes, is_summed, foreign_is_source
):
    if level is not None and level > best.level:
        pytest.skip("this processor does not have it")
    copy = SystemCopy() if level is None else StreamingCopy(built_library(), level)
    fd = os.memfd_create("foreign")
    size_bytes = 40 * run_bytes
    os.ftruncate(fd, size_bytes)
    theirs = np.frombuffer(mmap.mmap(fd, size_bytes), np.uint8)
    ours = np.arange(size_bytes, dtype=np.uint8)
    shape = (1, 1, 40, run_bytes)
    blocks = {"theirs": all_of(theirs.reshape(shape)), "ours": all_of(ours.reshape(shape))}
    to, source = ("ours", "theirs") if foreign_is_source else ("theirs", "ours")
    more = (ours.ctypes.data,) if is_summed else ()
    run = copy.with_checksum if is_summed else copy
    os.ftruncate(fd, 0)
    for _ in range(3):
        with pytest.raises(MemoryVanished):
            run(blocks[to], blocks[source], addresses(theirs), *more)
    os.ftruncate(fd, size_bytes)
    theirs[:] = 5
    part = run(blocks[to], blocks[source], addresses(theirs), *more)
    assert (theirs == ours).all()
    assert part == (kvsum64(ours) if is_summed else None)
    os.close(fd)


CRASH = """
import faulthandler, mmap, os, sys
import numpy as np
from kernels.host.block_views import Blocks
from kernels.host.streaming_copy import StreamingCopy, built_library

if sys.argv[2] == "before":
    faulthandler.enable()
copy = StreamingCopy(built_library())

def blocks(array):
    return Blocks(array.reshape(1, 1, 1, -1), np.zeros(1, np.int64))

def shared():
    fd = os.memfd_create("foreign")
    os.ftruncate(fd, 8192)
    return fd, np.frombuffer(mmap.mmap(fd, 8192), np.uint8)

fd, theirs = shared()
ours = np.zeros(8192, np.uint8)
foreign = range(theirs.ctypes.data, theirs.ctypes.data + 8192)
copy(blocks(ours), blocks(theirs), foreign)
if sys.argv[2] == "after":
    faulthandler.enable()
    os.ftruncate(fd, 0)
    try:
        copy(blocks(ours), blocks(theirs), foreign)
    except Exception as error:
        print(type(error).__name__, flush=True)
other_fd, others = shared()
os.ftruncate(other_fd, 0)
match sys.argv[1]:
    case "elsewhere":
        others[0]
    case "ours":  # the side of a copy that is not the engine's
        copy(blocks(others), blocks(theirs if sys.argv[2] != "after" else ours), range(foreign.start, foreign.stop))
    case "signal":
        import signal
        os.kill(os.getpid(), signal.SIGBUS)
"""


@pytest.mark.parametrize("handler", ["none", "before", "after"])
@pytest.mark.parametrize("fault", ["elsewhere", "ours", "signal"])
def test_a_fault_that_is_not_the_engines_ends_the_process_as_ever(fault, handler):
    done = subprocess.run([sys.executable, "-c", CRASH, fault, handler], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGBUS
    assert ("Fatal Python error: Bus error" in done.stderr) == (handler != "none")
    assert done.stdout == ("MemoryVanished\n" if handler == "after" else "")


def test_where_nothing_can_copy_it_is_said_why(monkeypatch, tmp_path):
    monkeypatch.setattr(streaming_copy, "BUILT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))

    def refused(*arguments: object) -> int:
        ctypes.set_errno(1)
        return -1

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: FakeLibc(refused))
    with pytest.raises(BackendError, match="Operation not permitted"):
        best_copy()


class FakeLibc:
    """A libc of a container with a seccomp profile that forbids the calls."""

    def __init__(self, call):
        self.process_vm_readv = self.process_vm_writev = call
