"""Backends: memory goes to the backend of its kind, and a missing backend is named."""

from __future__ import annotations

import builtins
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, cast

import pytest

from kernels.backends import Backends
from kernels.checksum import kvsum64
from kernels.cuda import cupy_runtime
from kernels.cuda.cupy_runtime import CupyRuntime
from kernels.cuda.probe import probe_cuda
from kernels.cuda.runtime import canonical_uuid
from kernels.cuda.settings import CudaSettings
from kernels.errors import BackendError, GeometryError
from kernels.host.backend import HostBackend
from kernels.host.system_copy import SystemCopy
from tests.kernels.cuda.depot import CHUNK_BYTES, CHUNK_SIZE, LAYOUT, SECONDS, CudaDepot
from tests.kernels.reference import AlignedEngine, Bytes, Engine

HAS_DEVICE = cupy_runtime.cuda_error() is None


@pytest.fixture
def depot() -> CudaDepot:
    return CudaDepot(has_threads=True)


@pytest.fixture
def both(depot: CudaDepot) -> Iterator[Backends]:
    both = Backends(HostBackend(memoryview(depot.l1), 1), depot.backend)
    yield both
    both.close()


def test_each_attachment_is_served_by_its_own_backend(depot: CudaDepot, both: Backends) -> None:
    engine = Engine(LAYOUT)
    on_device = [depot.region(memory.bytes) for memory in engine._memory]
    for regions in (engine.regions, on_device):
        buffer = both.attach(engine.groups, regions, CHUNK_SIZE, allow_process_fd=True)
        copies = depot.random_copies(engine, 3)
        buffer.store(copies).future.result(SECONDS)
        for copy in copies:
            chunk = engine.read_chunk(copy.block_ids)
            assert depot.l1[copy.l1_offset_bytes : copy.l1_offset_bytes + len(chunk)] == chunk
        buffer.retrieve(copies).future.result(SECONDS)
        buffer.close()
    assert depot.fake.calls.count("gather") == 3
    assert depot.fake.calls.count("scatter") == 3
    assert (both.name, both.cuda_error) == ("host, cuda", "")
    both.close()
    assert depot.fake.left_over() == []


class SummingCopy(SystemCopy):
    """A copy that notes what it sums."""

    def __init__(self) -> None:
        super().__init__()
        self.summed: list[tuple[int, int]] = []

    def checksum(self, rows: Bytes, chunk_offset_bytes: int) -> int:
        self.summed.append((chunk_offset_bytes, rows.nbytes))
        return super().checksum(rows, chunk_offset_bytes)


def test_the_hosts_copy_sums_what_no_cuda_kernel_sums(depot: CudaDepot) -> None:
    copy, runtime = SummingCopy(), cast("CupyRuntime", depot.fake)
    settings = CudaSettings(staging_bytes=CHUNK_BYTES, pin_bytes=4096)
    backends = Backends.open(memoryview(depot.l1), 1, settings, copy=copy, runtime=lambda: runtime)
    engine = AlignedEngine(LAYOUT, alignment=16)
    regions = [depot.region(memory.bytes) for memory in engine._memory]
    buffer = backends.attach(engine.groups, regions, CHUNK_SIZE, allow_process_fd=False)
    (partial,) = depot.random_copies(engine, 1, skip_tokens=[4], with_checksum=True)
    transfer = buffer.store([partial])
    transfer.future.result(SECONDS)
    chunk = memoryview(depot.l1)[partial.l1_offset_bytes :][:CHUNK_BYTES]
    assert transfer.checksums.tolist() == [kvsum64(chunk)]
    plane_bytes = CHUNK_BYTES // len(engine.planes[0])
    assert copy.summed == [(plane * plane_bytes, plane_bytes // 3) for plane in range(len(engine.planes[0]))]
    buffer.close()
    backends.close()


def test_memory_of_two_kinds_is_refused(depot: CudaDepot, both: Backends) -> None:
    engine = Engine(LAYOUT)
    regions = [*engine.regions[:2], depot.region(engine._memory[2].bytes)]
    with pytest.raises(GeometryError, match=r"regions\[0\]"):
        both.attach(engine.groups, regions, CHUNK_SIZE, allow_process_fd=True)


def test_an_event_is_for_cuda_memory_only(depot: CudaDepot, both: Backends) -> None:
    engine = Engine(LAYOUT)
    buffer = both.attach(engine.groups, engine.regions, CHUNK_SIZE, allow_process_fd=True)
    for start in (buffer.store, buffer.retrieve):
        with pytest.raises(ValueError, match="event"):
            start(depot.random_copies(engine, 1), bytes(64))
    buffer.close()


def test_populated_memory_is_registered(depot: CudaDepot, both: Backends) -> None:
    both.register(0, 5_000)
    assert depot.fake.calls == ["register", "register"]


def test_without_cuda_the_host_serves_and_a_cuda_attach_says_what_is_missing(
    depot: CudaDepot,
) -> None:
    def missing() -> cupy_runtime.CupyRuntime:
        raise BackendError("there is no such thing")

    only_host = Backends.open(memoryview(depot.l1), 1, CudaSettings(), runtime=missing)
    assert (only_host.name, only_host.cuda_error) == ("host", "there is no such thing")
    only_host.register(0, 5_000)
    engine = Engine(LAYOUT)
    only_host.attach(engine.groups, engine.regions, CHUNK_SIZE, allow_process_fd=True).close()
    with pytest.raises(BackendError, match="there is no such thing"):
        only_host.attach(
            engine.groups, [depot.region(m.bytes) for m in engine._memory], CHUNK_SIZE, allow_process_fd=False
        )
    only_host.close()


def test_a_missing_cupy_is_named_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def no_cupy(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "cupy":
            raise ImportError("No module named 'cupy'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_cupy)
    assert cupy_runtime.cuda_error() == "CuPy can't be imported: No module named 'cupy'"
    with pytest.raises(BackendError, match="CuPy"):
        cupy_runtime.CupyRuntime()


def test_a_cupy_that_is_not_whole_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", ModuleType("cupy"))  # as a folder of that name is
    assert cupy_runtime.cuda_error() == "no CUDA device can be used: module 'cupy' has no attribute 'cuda'"
    with pytest.raises(BackendError, match="has no attribute 'cuda'"):
        cupy_runtime.CupyRuntime()
    found = probe_cuda()
    assert (found.cupy_version, found.devices) == ("", ())
    assert "has no attribute" in found.cupy_error


@pytest.mark.skipif(HAS_DEVICE, reason="there is a device")
def test_a_missing_device_is_named_in_the_error() -> None:
    pytest.importorskip("cupy")
    with pytest.raises(BackendError, match="device"):
        cupy_runtime.CupyRuntime()


def test_cupy_has_all_that_is_called_of_it() -> None:
    cupy = pytest.importorskip("cupy")
    names = set(re.findall(r"self\._runtime\.(\w+)", inspect.getsource(cupy_runtime)))
    assert len(names) > 20
    assert [name for name in names if not hasattr(cupy.cuda.runtime, name)] == []


def test_importing_the_backend_imports_no_cupy() -> None:
    program = "import kernels.backends, sys; sys.exit('cupy' in sys.modules or 'torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=SECONDS)


@pytest.mark.parametrize("printed", ["GPU-00Aa", "MIG-00aa", "00AA"])
def test_uuids_are_compared_by_their_digits(printed: str) -> None:
    assert canonical_uuid(printed) == "00aa"
