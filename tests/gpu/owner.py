"""An engine process: it owns CUDA memory, exports it, and carries out commands, one in each line of JSON.

It imports torch and NumPy, as an engine does, and our client when an order needs it.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch


class Handle(ctypes.Structure):
    """A CUipcMemHandle."""

    _fields_ = (("reserved", ctypes.c_ubyte * 64),)


class Owner:
    """The tensors that were ordered, by number, and their handles for the depot."""

    def __init__(self) -> None:
        self.tensors: list[torch.Tensor] = []
        self.events: list[Any] = []
        self.shared: list[Any] = []

    def uuid(self) -> str:
        """Return the device's UUID, as torch prints it."""
        return str(torch.cuda.get_device_properties(0).uuid)

    def load(self, path: str) -> dict[str, Any]:
        """Make a tensor of the bytes in a file."""
        return self._export(torch.from_numpy(np.fromfile(path, dtype=np.uint8)).cuda())

    def make(self, size_bytes: int) -> dict[str, Any]:
        """Make a tensor of some bytes."""
        return self._export(torch.empty(size_bytes, dtype=torch.uint8, device="cuda"))

    def random(self, shape: list[int], dtype: str, seed: int) -> dict[str, Any]:
        """Make a tensor of random values."""
        return self._export(self._random(shape, dtype, seed))

    def same(self, number: int, shape: list[int], dtype: str, seed: int) -> bool:
        """Return whether a tensor has the values that `random` gave it, bit by bit."""
        return torch.equal(self.tensors[number].view(torch.uint8), self._random(shape, dtype, seed).view(torch.uint8))

    def zero(self, number: int) -> None:
        """Forget the values of a tensor."""
        self.tensors[number].view(torch.uint8).zero_()
        torch.cuda.synchronize()

    def dump(self, number: int, path: str) -> None:
        """Write the bytes of a tensor to a file."""
        torch.cuda.synchronize()
        self.tensors[number].view(torch.uint8).cpu().numpy().tofile(path)

    def free(self) -> None:
        """Release all tensors."""
        self.tensors.clear()
        self.events.clear()
        self.shared.clear()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def load_late(self, number: int, path: str, seconds: float) -> str:
        """Write the bytes of a file into a tensor, on a busy stream; record an event behind that."""
        source = torch.from_numpy(np.fromfile(path, dtype=np.uint8)).cuda()
        torch.cuda.synchronize()
        sleep: Any = torch.cuda._sleep
        sleep(int(seconds * 1.5e9))  # cycles of a clock that has about so many a second
        target = self.tensors[number].view(torch.uint8)
        target.copy_(source.view(target.shape))
        event: Any = torch.cuda.Event(interprocess=True)
        self.events.append(event)
        event.record()
        return str(event.ipc_handle().hex())

    def share(self, num_layers: int, shape: list[int], dtype: str) -> dict[str, Any]:
        """Make a tensor for each layer, and describe them with the client: its messages, as bytes."""
        from kvdepot.layout import layouts
        from kvdepot.memory import cuda

        caches = [self._random(shape, dtype, seed) for seed in range(num_layers)]
        self.tensors += caches
        torch.cuda.synchronize()
        self.shared.append(cuda.CudaRegions())
        group = layouts.NL_X_TWO_NB_BS_NH_HS.from_tensors(caches, self.shared[-1])
        regions = [region.SerializeToString().hex() for region in self.shared[-1].regions]
        return {"group": group.SerializeToString().hex(), "regions": regions}

    def ready_event(self) -> str:
        """Return the client's handle of the event that was recorded last."""
        from kvdepot.memory import cuda

        return cuda.ready_event(self.events[-1]).hex()

    def why_memory_is_refused(self) -> str:
        """Return the client's error for memory that this process allocates."""
        from kvdepot.memory import cuda

        try:
            cuda.CudaRegions().locate(torch.zeros(1 << 20, device="cuda"))
        except cuda.NotShareable as error:
            return str(error)
        return ""

    def why_event_is_refused(self) -> str:
        """Return the client's error for an event of this process alone."""
        from kvdepot.memory import cuda

        event: Any = torch.cuda.Event()
        event.record()
        try:
            cuda.ready_event(event)
        except cuda.NotShareable as error:
            return str(error)
        return ""

    def multiply(self, size: int, seconds: float) -> float:
        """Multiply bf16 matrices for a while; return the median seconds of one product."""
        left, right = (torch.randn(size, size, dtype=torch.bfloat16, device="cuda") for _ in range(2))
        times = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            begin = time.perf_counter()
            for _ in range(10):
                torch.mm(left, right)
            torch.cuda.synchronize()
            times.append((time.perf_counter() - begin) / 10)
        return float(np.median(times))

    def _random(self, shape: list[int], dtype: str, seed: int) -> torch.Tensor:
        generator = torch.Generator("cuda").manual_seed(seed)
        return torch.randn(shape, generator=generator, device="cuda").to(getattr(torch, dtype))

    def _export(self, tensor: torch.Tensor) -> dict[str, Any]:
        """Return the handle of the tensor's allocation for cudaIpcOpenMemHandle, and the tensor's offset in it."""
        torch.cuda.synchronize()
        self.tensors.append(tensor)
        cuda = ctypes.CDLL("libcuda.so.1")
        base, size_bytes, handle = ctypes.c_uint64(), ctypes.c_size_t(), Handle()
        address = ctypes.c_uint64(tensor.data_ptr())
        for status in (
            cuda.cuMemGetAddressRange_v2(ctypes.byref(base), ctypes.byref(size_bytes), address),
            cuda.cuIpcGetMemHandle(ctypes.byref(handle), base),
        ):
            if status:
                raise RuntimeError(f"the driver says {status}")
        return {
            "number": len(self.tensors) - 1,
            "handle": bytes(handle).hex(),
            "offset_bytes": tensor.data_ptr() - base.value,
            "size_bytes": tensor.numel() * tensor.element_size(),
            "allocated_bytes": size_bytes.value,
        }


def main() -> None:
    """Answer each line on standard input with one on standard output."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # the output of a library is no answer
    owner = Owner()
    for line in sys.stdin:
        order = json.loads(line)
        method: Callable[..., Any] = getattr(owner, order.pop("do"))
        print(json.dumps(method(**order)), file=answers)


if __name__ == "__main__":
    main()
