"""Fixtures: a device, the depot's backend on it, and an engine in another process."""

from __future__ import annotations

import logging
import mmap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from kernels.cuda.backend import CudaBackend
from kernels.cuda.cupy_runtime import CupyRuntime, cuda_error
from kernels.cuda.settings import CudaSettings
from tests.gpu.engine_process import EngineProcess

L1_BYTES = 8 << 20

OpenBackend = Callable[..., CudaBackend]


@pytest.fixture(scope="session")
def runtime() -> CupyRuntime:
    """Return the CUDA runtime; skip the tests with the reason if there is none."""
    if reason := cuda_error():
        pytest.skip(reason)
    return CupyRuntime()


@pytest.fixture(autouse=True)
def no_warnings(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail a test in which something can't be given back to the device, which is only logged."""
    yield
    records = [*caplog.get_records("call"), *caplog.get_records("teardown")]
    assert [record.getMessage() for record in records if record.levelno >= logging.WARNING] == []


@pytest.fixture(scope="session")
def shared_engine(runtime: CupyRuntime) -> Iterator[EngineProcess]:
    """Share one engine process among the tests that don't kill it, because torch starts slowly."""
    engine = EngineProcess()
    yield engine
    engine.close()


@pytest.fixture
def engine(shared_engine: EngineProcess) -> Iterator[EngineProcess]:
    """An engine without memory."""
    yield shared_engine
    shared_engine.ask("free")


@pytest.fixture
def l1_bytes() -> int:
    """The size of the arena; a test that needs more has a parameter of this name."""
    return L1_BYTES


@pytest.fixture
def l1(l1_bytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return an arena full of noise. It begins at a page, as the depot's does, because CUDA pins whole pages."""
    arena = np.frombuffer(mmap.mmap(-1, l1_bytes), dtype=np.uint8)
    arena[:] = np.frombuffer(np.random.default_rng(5).bytes(l1_bytes), dtype=np.uint8)
    return arena


@pytest.fixture
def open_backend(runtime: CupyRuntime, l1: np.ndarray[Any, np.dtype[np.uint8]]) -> Iterator[OpenBackend]:
    """`open_backend(pin_bytes=…)` makes the CUDA backend of that arena with these settings, until the test ends."""
    with ExitStack() as stack:

        def open_backend(**settings: Any) -> CudaBackend:
            backend = CudaBackend(l1.data, runtime, CudaSettings(**settings))
            stack.callback(backend.close)
            return backend

        yield open_backend
