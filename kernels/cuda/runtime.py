"""The seam to CUDA: what the depot asks of a device and of its driver, as Protocols."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NewType, Protocol

from kernels.cuda.kernel import BlockCopy

Address = NewType("Address", int)
"""Of a byte, in the one address space that the host and the devices share."""

Stream = NewType("Stream", int)
Event = NewType("Event", int)


HANDLE_BYTES = 64
"""Of what another process needs to open memory or an event."""


class CudaError(Exception):
    """The driver refused a call, or says that work which was issued before has failed."""


class CudaDevice(Protocol):
    """One device. Every call may be made from any thread and may raise CudaError.

    What takes a stream is done in the stream's order some time after the call has returned.
    """

    @property
    def uuid(self) -> str:
        """As `canonical_uuid` writes it."""

    def prepare(self) -> None:
        """Load the kernels, and compile them the first time. Raises BackendUnavailable."""

    def new_stream(self) -> Stream:
        """A stream that waits for no other and goes before those of lower priority."""

    def destroy_stream(self, stream: Stream) -> None:
        """Let go of a stream that is drained."""

    def drain(self, stream: Stream) -> None:
        """Wait until the stream has done all that was issued. If this raises, it will do nothing any more."""

    def new_event(self) -> Event:
        """An event that a thread can wait for without spinning, and that knows when it happened."""

    def destroy_event(self, event: Event) -> None:
        """Let go of an event, one of another process too."""

    def record(self, event: Event, stream: Stream) -> None:
        """The event happens when the stream gets here."""

    def wait(self, stream: Stream, event: Event) -> None:
        """The stream goes on when the event, as it was last recorded, has happened."""

    def synchronize(self, event: Event) -> None:
        """Wait until the event has happened. If this raises, the device will do nothing any more."""

    def has_happened(self, event: Event) -> bool:
        """Whether it has, as it was last recorded."""

    def seconds_between(self, first: Event, second: Event) -> float:
        """From when the first happened to when the second did, as they were last recorded; both have."""

    def allocate(self, size_bytes: int) -> Address:
        """Memory of the device, aligned to 256 bytes or more."""

    def free(self, address: Address) -> None:
        """Give memory back; may wait for whatever the device is doing."""

    def copy_to_host(self, target: Address, source: Address, size_bytes: int, stream: Stream) -> None:
        """Into registered or pinned memory, all of it in one registration."""

    def copy_to_device(self, target: Address, source: Address, size_bytes: int, stream: Stream) -> None:
        """From registered or pinned memory, all of it in one registration."""

    def gather(self, copy: BlockCopy, max_ctas: int, stream: Stream) -> None:
        """Copy blocks into chunks."""

    def scatter(self, copy: BlockCopy, max_ctas: int, stream: Stream) -> None:
        """Copy chunks into blocks."""

    def open_memory(self, handle: bytes) -> Address:
        """Map an allocation of another process. A handle must not be open twice."""

    def close_memory(self, address: Address) -> None:
        """Unmap it; may wait for whatever the device is doing."""

    def bytes_from(self, address: Address) -> int:
        """How many bytes there are from an address to the end of its allocation."""

    def open_event(self, handle: bytes) -> Event:
        """An event of another process."""


class CudaRuntime(Protocol):
    """The devices of this machine, and host memory that they can reach. Calls may raise CudaError."""

    @property
    def devices(self) -> Mapping[str, CudaDevice]:
        """Those that are visible, by UUID."""

    def allocate_pinned(self, size_bytes: int) -> Address:
        """Host memory, registered with every device."""

    def free_pinned(self, address: Address) -> None:
        """Give it back."""

    def register(self, address: Address, size_bytes: int) -> None:
        """Pin host memory, and let every device reach it."""

    def unregister(self, address: Address) -> None:
        """Undo the registration that begins there."""


def canonical_uuid(uuid: str) -> str:
    """The 32 digits and 4 hyphens of a device's UUID; what prints one may put ``GPU-`` or ``MIG-`` in front."""
    return uuid.lower().removeprefix("gpu-").removeprefix("mig-")
