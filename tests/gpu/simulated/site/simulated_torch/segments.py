"""Memory of the card for tensors: several share a segment, as with torch's own allocator."""

import ctypes
import os
import threading

from .driver import call, u64

_MIB = 1 << 20
_ROUND_BYTES = 512


def _segment_bytes(size_bytes):
    """The sizes are torch's: 2 MiB for small tensors, 20 MiB for larger ones, a segment for each of the largest."""
    if size_bytes <= _MIB:
        return 2 * _MIB
    return 20 * _MIB if size_bytes < 10 * _MIB else -(-size_bytes // (2 * _MIB)) * 2 * _MIB


class Segments:
    """Allocations of the card, cut into pieces for tensors. A piece that comes back is used again."""

    def __init__(self):
        self._sizes = {}  # of segments, by address
        self._free = {}  # sizes of free pieces, by address
        self._used = {}  # (size, segment), by address
        self._lock = threading.RLock()  # a tensor may end while another one is made

    @property
    def used_bytes(self):
        """Of tensors that live."""
        return sum(size for size, _ in self._used.values())

    def holds(self, address):
        """Return whether this is memory of the card."""
        return any(start <= address < start + size for start, size in tuple(self._sizes.items()))

    def allocate(self, size_bytes):
        """Return the address of a piece. It has the bytes that its last user left."""
        size_bytes = max(1, -(-size_bytes // _ROUND_BYTES)) * _ROUND_BYTES
        with self._lock:
            whole = _segment_bytes(size_bytes)
            fits = [at for at, size in self._free.items() if size >= size_bytes and self._sizes[self._of(at)] == whole]
            address = min(fits, key=self._free.__getitem__) if fits else self._new_segment(whole)
            rest = self._free.pop(address) - size_bytes
            if rest:
                self._free[address + size_bytes] = rest
            self._used[address] = size_bytes, self._of(address)
            return address

    def release(self, address):
        """Take a piece back, and join it with its free neighbours in the segment."""
        with self._lock:
            size, segment = self._used.pop(address)
            after = address + size
            if after < segment + self._sizes[segment]:
                size += self._free.pop(after, 0)
            for before, before_size in self._free.items():
                if before + before_size == address and before >= segment:
                    self._free[before] += size
                    return
            self._free[address] = size

    def empty_cache(self):
        """Give segments back to the driver that have no tensor."""
        with self._lock:
            for segment, size in list(self._sizes.items()):
                if self._free.get(segment) == size:
                    call("cuMemFree_v2", u64(segment))
                    del self._free[segment], self._sizes[segment]

    def _of(self, address):
        return next(start for start, size in self._sizes.items() if start <= address < start + size)

    def _new_segment(self, size_bytes):
        is_expandable = "expandable_segments:True" in os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")
        address = u64()
        name = "card_allocate_piecewise" if is_expandable else "cuMemAlloc_v2"
        call(name, ctypes.byref(address), ctypes.c_size_t(size_bytes))
        self._sizes[address.value] = self._free[address.value] = size_bytes
        return address.value


segments = Segments()
