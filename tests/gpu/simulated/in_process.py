"""The card's driver in a test's own process, with memory and events for the test, and a process that shares its own."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.gpu.engine_process import end_process
from tests.gpu.simulated.card import SITE, compile_driver

if TYPE_CHECKING:
    import torch

NUM_DEVICES = 2
_DISABLE_TIMING, _INTERPROCESS = 2, 4


class CardInProcess:
    """The library, as ctypes loads it. Tests call its functions ``library.card_…``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.library = ctypes.CDLL(str(path))

    @contextmanager
    def device_in_use(self) -> Iterator[None]:
        """Make the first device the calling thread's."""
        context = ctypes.c_void_p()
        assert self.library.cuInit(0) == 0
        assert self.library.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == 0
        assert self.library.cuCtxPushCurrent_v2(context) == 0
        yield
        assert self.library.cuCtxPopCurrent_v2(ctypes.byref(context)) == 0
        assert self.library.cuDevicePrimaryCtxRelease_v2(0) == 0

    def allocate(self, size_bytes: int, *, is_mapped_piecewise: bool = False) -> torch.Tensor:
        """Return random bytes that are an allocation, until the process ends. Without torch the test is skipped."""
        address = ctypes.c_uint64()
        name = "card_allocate_piecewise" if is_mapped_piecewise else "cuMemAlloc_v2"
        with self.device_in_use():
            assert getattr(self.library, name)(ctypes.byref(address), ctypes.c_size_t(size_bytes)) == 0
        buffer: Any = (ctypes.c_ubyte * size_bytes).from_address(address.value)
        module = pytest.importorskip("torch")
        tensor: torch.Tensor = module.frombuffer(buffer, dtype=module.uint8).random_()
        return tensor

    def event(self, *, interprocess: bool) -> int:
        """Return a new event."""
        event = ctypes.c_uint64()
        flags = _DISABLE_TIMING | _INTERPROCESS if interprocess else 0
        with self.device_in_use():
            assert self.library.cuEventCreate(ctypes.byref(event), flags) == 0
        return event.value


class SmallOwner:
    """A process that owns memory and an event: where the memory begins there, and the handles of both."""

    def __init__(self, library: Path) -> None:
        program = Path(__file__).with_name("small_owner.py")
        self._process = subprocess.Popen(
            [sys.executable, str(program), str(library)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        start, memory, event = self._answer()
        self.start, self.memory, self.event = int(start), bytes.fromhex(memory), bytes.fromhex(event)

    def ask(self, *words: object) -> list[str]:
        """Give an order; see small_owner.py."""
        assert self._process.stdin is not None
        print(*words, file=self._process.stdin, flush=True)
        return self._answer()

    def kill(self) -> None:
        """Kill the process; it is gone when this returns."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End the process, and its pipes."""
        end_process(self._process)

    def _answer(self) -> list[str]:
        assert self._process.stdout is not None
        return self._process.stdout.readline().split()


@functools.cache
def _compiled() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        compile_driver(Path(folder, "libcuda.so.1"))
        return Path(folder, "libcuda.so.1").read_bytes()


@contextmanager
def card_in_process(folder: Path) -> Iterator[CardInProcess]:
    """Load a driver of its own, with two devices and memory in a folder; at the end nothing is open or in use."""
    path = folder / "libcuda.so.1"
    path.write_bytes(_compiled())  # a file of its own, else the library would be the one of the last test
    for name in ("memory", "kernels"):
        (folder / name).mkdir()
    variables = {"SIMULATED_CARD": str(folder), "SIMULATED_CARD_DEVICES": str(NUM_DEVICES)}
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        card = CardInProcess(path)
        yield card
        assert card.library.card_left_over() == 0
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        shutil.rmtree(folder / "memory")


def stand_in() -> Any:
    """Return the stand-in for CuPy under another name, so that it does not hide the real one."""
    for name in [name for name in sys.modules if name.startswith("simulated_cupy")]:
        del sys.modules[name]
    folder = SITE / "cupy"
    spec = importlib.util.spec_from_file_location(
        "simulated_cupy", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    module = sys.modules["simulated_cupy"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
