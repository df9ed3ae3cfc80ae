"""The link's limit: one copy of pinned memory each way, on streams of its own."""

from __future__ import annotations

from functools import partial

from benchmarks.gpu.rig import Rig


class Link:
    """Copies of ``size_bytes`` between pinned memory of the host and memory of the device, until `close`.

    ``copies`` has a copy for each case of `rig.starts_of`; it returns when the copy is done.
    """

    def __init__(self, rig: Rig, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._runtime, self._device = rig.runtime, rig.device
        self._host = [self._runtime.allocate_pinned(size_bytes) for _ in range(2)]
        self._memory = [self._device.allocate(size_bytes) for _ in range(2)]
        self._streams = [self._device.new_stream() for _ in range(2)]
        self.copies = {
            "store": partial(self._copy, store=True),
            "retrieve": partial(self._copy, retrieve=True),
            "both": partial(self._copy, store=True, retrieve=True),
        }

    def close(self) -> None:
        """Give the memory back."""
        for stream in self._streams:
            self._device.destroy_stream(stream)
        for address in self._memory:
            self._device.free(address)
        for address in self._host:
            self._runtime.free_pinned(address)

    def bytes_of(self, case: str) -> int:
        """Return the bytes of a copy: twice as many for both ways at once."""
        return self.size_bytes * (2 if case == "both" else 1)

    def _copy(self, *, store: bool = False, retrieve: bool = False) -> None:
        to_host, to_device = self._streams
        if store:
            self._device.copy_to_host(self._host[0], self._memory[0], self.size_bytes, to_host)
        if retrieve:
            self._device.copy_to_device(self._memory[1], self._host[1], self.size_bytes, to_device)
        for stream in self._streams:
            self._device.drain(stream)
