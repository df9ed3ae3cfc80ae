"""The seam to CUDA: what the depot needs of a device and of its driver, as Protocols."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NewType, Protocol

from kernels.cuda.kernel import KernelParams
from kernels.transfer import Direction

Address = NewType("Address", int)
"""The address of a byte, in the address space that the host and the devices share."""

Stream = NewType("Stream", int)
Event = NewType("Event", int)

HANDLE_BYTES = 64
"""Size of the handle with which another process opens memory or an event."""


class CudaError(Exception):
    """The driver refused a call, or reports that earlier work has failed."""


class CudaDevice(Protocol):
    """One device. Any thread may make any call, and each call may raise CudaError.

    A call with a stream returns at once; its work is done later, in the order of the stream.
    """

    @property
    def uuid(self) -> str:
        """The UUID, as `canonical_uuid` writes it."""

    def prepare(self) -> None:
        """Load the kernels, and compile them the first time.

        Raises: BackendError.
        """

    def new_stream(self) -> Stream:
        """Return a stream of the highest priority that waits for no other stream."""

    def destroy_stream(self, stream: Stream) -> None:
        """Destroy a stream that is drained."""

    def drain(self, stream: Stream) -> None:
        """Wait until the stream has done all that was issued. If this raises, the stream does nothing more."""

    def new_event(self) -> Event:
        """Return an event that a thread can wait for without spinning, and that has a time."""

    def destroy_event(self, event: Event) -> None:
        """Destroy an event, also one of another process."""

    def record(self, event: Event, stream: Stream) -> None:
        """Make the event happen when the stream gets here."""

    def wait(self, stream: Stream, event: Event) -> None:
        """Make the stream wait for the event as it was last recorded."""

    def synchronize(self, event: Event) -> None:
        """Wait until the event has happened. If this raises, the device does nothing more."""

    def has_happened(self, event: Event) -> bool:
        """Return whether the event has happened, as it was last recorded."""

    def seconds_between(self, first: Event, second: Event) -> float:
        """Return the time between two events that have happened, as they were last recorded."""

    def allocate(self, size_bytes: int) -> Address:
        """Return memory of the device, aligned to 256 bytes or more."""

    def free(self, address: Address) -> None:
        """Give memory back; may wait for all work of the device."""

    def copy_to_host(self, target: Address, source: Address, size_bytes: int, stream: Stream) -> None:
        """Copy into registered or pinned memory, all of it in one registration."""

    def copy_to_device(self, target: Address, source: Address, size_bytes: int, stream: Stream) -> None:
        """Copy from registered or pinned memory, all of it in one registration."""

    def launch(self, direction: Direction, params: KernelParams, max_ctas: int, stream: Stream) -> None:
        """Gather blocks into chunks, or scatter chunks into blocks."""

    def open_memory(self, handle: bytes) -> Address:
        """Map an allocation of another process. Its handle must not be open yet."""

    def close_memory(self, address: Address) -> None:
        """Unmap an allocation of another process; may wait for all work of the device."""

    def bytes_from(self, address: Address) -> int:
        """Return the number of bytes from an address to the end of its allocation."""

    def open_event(self, handle: bytes) -> Event:
        """Open an event of another process."""


class CudaRuntime(Protocol):
    """The devices of this machine, and host memory that they can reach. Calls may raise CudaError."""

    @property
    def devices(self) -> Mapping[str, CudaDevice]:
        """The visible devices by UUID."""

    def allocate_pinned(self, size_bytes: int) -> Address:
        """Return host memory that is registered with every device."""

    def free_pinned(self, address: Address) -> None:
        """Give pinned memory back."""

    def register(self, address: Address, size_bytes: int) -> None:
        """Pin host memory and make it accessible to every device."""

    def unregister(self, address: Address) -> None:
        """Undo the registration that begins at an address."""


def canonical_uuid(uuid: str) -> str:
    """Return the 32 digits and 4 hyphens of a device's UUID, without a prefix such as `GPU-` or `MIG-`."""
    return uuid.lower().removeprefix("gpu-").removeprefix("mig-")
