"""The simulated card: it offers no more than CuPy does, refuses what CUDA refuses, and leaves nothing behind."""

from __future__ import annotations

import ctypes
import inspect
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from kernels.cuda import driver
from kernels.cuda.runtime import Address, CudaError
from tests.gpu.simulated.in_process import CardInProcess, SmallOwner, stand_in

REPOSITORY = Path(__file__).parents[3]
ON_CARD = [sys.executable, "-m", "tests.gpu.simulated"]
MIB = 1 << 20

WRITE_A_BYTE = """
struct Target { unsigned long long address; };
extern "C" __global__ void write_a_byte(const Target target) {
    __stcs(reinterpret_cast<unsigned char*>(target.address), static_cast<unsigned char>(7));
}
"""


def names_of(thing: Any) -> list[str]:
    return [name for name in vars(thing) if not name.startswith("_")]


def parameters_of(function: Any) -> list[str]:
    """Return the names of a function's parameters. CuPy's functions have them in the first line of their docstrings."""
    try:
        return list(inspect.signature(function).parameters)
    except ValueError:
        listed = function.__doc__.splitlines()[0].partition("(")[2].rpartition(")")[0]
        return [each.partition("=")[0].split()[-1] for each in listed.split(",") if each.strip()]


@pytest.mark.skipif("SIMULATED_CARD" in os.environ, reason="this process has the stand-in only")
def test_the_stand_in_offers_nothing_that_cupy_lacks() -> None:
    real = pytest.importorskip("cupy")
    pairs, num_compared = [(stand_in(), real)], 0
    for ours, theirs in pairs:
        for name in names_of(ours):
            our_value = getattr(ours, name)
            assert hasattr(theirs, name), f"CuPy has no {name}"
            their_value = getattr(theirs, name)
            num_compared += 1
            if isinstance(our_value, ModuleType):
                pairs.append((our_value, their_value))
            elif isinstance(our_value, int):
                assert our_value == their_value, name
            elif isinstance(our_value, type):
                assert all(hasattr(their_value, each) for each in names_of(our_value)), name
            elif not inspect.isclass(their_value) and theirs.__name__.endswith("runtime"):
                assert parameters_of(our_value) == parameters_of(their_value), name
    assert num_compared > 50


def after(destroy: str, *, call: Callable[[Any, int], object], make: Callable[[Any], int]) -> Callable[[Any], object]:
    """Use a thing after it was destroyed."""

    def misuse(runtime: Any) -> object:
        thing = make(runtime)
        getattr(runtime, destroy)(thing)
        return call(runtime, thing)

    return misuse


def recorded(runtime: Any, flags: int = 0) -> int:
    event = int(runtime.eventCreateWithFlags(flags))
    runtime.eventRecord(event, 0)
    return event


def registered_page(runtime: Any) -> int:
    pages = np.zeros(3 * 4096, dtype=np.uint8)
    PAGES.append(pages)  # CUDA's own rule: memory stays as long as it is registered
    page = int(-(-pages.ctypes.data // 4096) * 4096)
    runtime.hostRegister(page, 4096, 0)
    return page


PAGES: list[Any] = []
PAGEABLE = np.zeros(4096, dtype=np.uint8)
MISUSES: dict[str, tuple[int, Callable[[Any], object]]] = {
    "a copy over the end of an allocation": (
        1, lambda cuda: cuda.memcpyAsync(cuda.malloc(4096), cuda.hostAlloc(8192, 0), 4097, 1, 0)),
    "a copy over the end of a registration": (
        1, lambda cuda: cuda.memcpyAsync(registered_page(cuda), cuda.malloc(8192), 4097, 2, 0)),
    "an asynchronous copy of pageable memory": (
        1, lambda cuda: cuda.memcpyAsync(cuda.malloc(4096), PAGEABLE.ctypes.data, 4096, 1, 0)),
    "a copy in the wrong direction": (
        21, lambda cuda: cuda.memcpyAsync(cuda.malloc(64), cuda.hostAlloc(64, 0), 64, 2, 0)),
    "a copy of freed memory": (
        1, after("free", make=lambda cuda: cuda.malloc(64), call=lambda cuda, at: cuda.memsetAsync(at, 0, 64, 0))),
    "freeing twice": (1, after("free", make=lambda cuda: cuda.malloc(64), call=lambda cuda, at: cuda.free(at))),
    "freeing what is not the beginning": (1, lambda cuda: cuda.free(cuda.malloc(64) + 8)),
    "registering twice": (712, lambda cuda: cuda.hostRegister(registered_page(cuda), 64, 0)),
    "registering another part of a page": (712, lambda cuda: cuda.hostRegister(registered_page(cuda) + 64, 64, 0)),
    "unregistering what is not registered": (713, lambda cuda: cuda.hostUnregister(PAGEABLE.ctypes.data)),
    "unregistering inside of a registration": (713, lambda cuda: cuda.hostUnregister(registered_page(cuda) + 64)),
    "a destroyed stream": (400, after(
        "streamDestroy", make=lambda cuda: cuda.streamCreateWithPriority(1, 0),
        call=lambda cuda, stream: cuda.streamSynchronize(stream))),
    "a destroyed event": (400, after(
        "eventDestroy", make=recorded, call=lambda cuda, event: cuda.eventSynchronize(event))),
    "the time of an event that was not recorded": (
        400, lambda cuda: cuda.eventElapsedTime(recorded(cuda), cuda.eventCreateWithFlags(0))),
    "the time of an event without timing": (
        400, lambda cuda: cuda.eventElapsedTime(recorded(cuda), recorded(cuda, cuda.eventDisableTiming))),
    "an event for processes with timing": (1, lambda cuda: cuda.eventCreateWithFlags(cuda.eventInterprocess)),
    "more memory than there is": (2, lambda cuda: cuda.malloc(1 << 40)),
}  # fmt: skip


@pytest.mark.parametrize("misuse", MISUSES)
def test_misuse_is_refused(cupy: Any, misuse: str) -> None:
    status, call = MISUSES[misuse]
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError) as refused:
        call(cupy.cuda.runtime)
    assert refused.value.status == status


def test_a_kernel_that_strays_ends_the_context(cupy: Any) -> None:
    runtime = cupy.cuda.runtime
    write = cupy.RawModule(code=WRITE_A_BYTE).get_function("write_a_byte")
    memory, pinned = cupy.cuda.Memory(100), cupy.cuda.PinnedMemory(100)
    for address in (memory.ptr, memory.ptr + 99, pinned.ptr):
        write((1,), (1,), (np.array([address], dtype=np.uint64),))
    runtime.deviceSynchronize()
    assert (ctypes.c_ubyte * 100).from_address(memory.ptr)[99] == 7
    write((1,), (1,), (np.array([memory.ptr + 100], dtype=np.uint64),))
    for call in (runtime.deviceSynchronize, lambda: runtime.malloc(1), lambda: runtime.free(memory.ptr)):
        with pytest.raises(runtime.CUDARuntimeError) as refused:
            call()
        assert refused.value.status == 700


def test_a_source_that_cannot_be_compiled_is_refused(cupy: Any) -> None:
    with pytest.raises(cupy.cuda.compiler.CompileException, match="error"):
        cupy.RawModule(code='extern "C" __global__ void broken(const int n) { no }')


def test_two_processes_share_memory_at_two_addresses(card: CardInProcess, owner: SmallOwner) -> None:
    address = driver.open_memory(owner.memory)
    assert address != owner.start
    memory = (ctypes.c_ubyte * MIB).from_address(address)
    owner.ask("write", 5, 77)
    memory[6] = 88
    assert (memory[5], owner.ask("read", 6)) == (77, ["88"])
    with pytest.raises(CudaError, match="ALREADY_MAPPED"):
        driver.open_memory(owner.memory)
    driver.close_memory(address)
    with pytest.raises(CudaError, match="INVALID_VALUE"):
        driver.close_memory(address)


def test_the_exporting_process_opens_no_handle_of_its_own(card: CardInProcess) -> None:
    handle = (ctypes.c_ubyte * 64)()
    assert card.library.cuIpcGetMemHandle(handle, ctypes.c_uint64(card.allocate(64).data_ptr())) == 0
    with pytest.raises(CudaError, match="INVALID_CONTEXT"):
        driver.open_memory(bytes(handle))


def test_an_event_of_another_process_happens_when_its_device_gets_there(cupy: Any, owner: SmallOwner) -> None:
    runtime, event = cupy.cuda.runtime, driver.open_event(owner.event)
    assert runtime.eventQuery(event) == 0  # as of one that was never recorded
    owner.ask("issue")
    assert runtime.eventQuery(event) == 600
    with pytest.raises(runtime.CUDARuntimeError):
        runtime.streamWaitEvent(0, event)
    owner.ask("reach")
    assert runtime.eventQuery(event) == 0
    owner.ask("issue")
    owner.kill()
    assert runtime.eventQuery(event) == 600
    driver.destroy_event(event)


def test_memory_is_free_when_neither_the_owner_nor_an_importer_has_it(cupy: Any, owner: SmallOwner) -> None:
    def free_bytes() -> int:
        return int(cupy.cuda.runtime.memGetInfo()[0])

    before = free_bytes()
    address = driver.open_memory(owner.memory)
    owner.ask("write", 0, 55)
    owner.kill()
    assert free_bytes() == before
    assert (ctypes.c_ubyte * MIB).from_address(address)[0] == 55
    driver.close_memory(Address(address))
    assert free_bytes() == before + MIB
    for handle, open_it in ((owner.memory, driver.open_memory), (owner.event, driver.open_event)):
        with pytest.raises(CudaError):
            open_it(handle)


def test_freed_memory_is_free(cupy: Any, owner: SmallOwner) -> None:
    before = cupy.cuda.runtime.memGetInfo()[0]
    assert owner.ask("free") == ["0"]
    assert cupy.cuda.runtime.memGetInfo()[0] == before + MIB
    with pytest.raises(CudaError):
        driver.open_memory(owner.memory)


def in_shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("simulated-card-*")}


@pytest.mark.parametrize("is_killed", [False, True], ids=["ends", "killed"])
def test_a_command_leaves_nothing_in_shared_memory(is_killed: bool) -> None:
    before = in_shared_memory()
    program = "from cupy.cuda import runtime; runtime.malloc(1 << 20); print('made', flush=True); input()"
    process = subprocess.Popen(
        [*ON_CARD, sys.executable, "-c", program], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == b"made\n"
    assert len(in_shared_memory() - before) == 1
    if is_killed:
        process.kill()
    process.communicate(b"\n")
    end = time.monotonic() + 10
    while in_shared_memory() - before and time.monotonic() < end:
        time.sleep(0.01)
    assert in_shared_memory() <= before


@pytest.mark.parametrize(
    ("program", "code"),
    [("exit(7)", 7), ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL)],
    ids=["exit code", "signal"],
)
def test_the_exit_code_is_the_commands(program: str, code: int) -> None:
    assert subprocess.run([*ON_CARD, sys.executable, "-c", program], cwd=REPOSITORY).returncode == code


def test_gpu_tests_run_on_the_card() -> None:
    pytest.importorskip("torch")
    selected = "gone or waits_for_the_engine or (every_layout and LBHNC and one-region-aligned)"
    pytest_on_card = [*ON_CARD, sys.executable, "-m", "pytest", "-c", "tests/gpu/pytest.ini", "--rootdir", "."]
    done = subprocess.run(
        [*pytest_on_card, "-m", "gpu", "-k", selected, "tests/gpu/test_ipc.py", "tests/gpu/test_blocks.py"],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
