"""What the checks know of the machine; nothing here looks anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from kernels.cuda.probe import CudaProbe


class Holder(StrEnum):
    """Who has an address."""

    NOBODY = "nobody"
    DEPOT = "depot"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFacts:
    """In bytes; a limit that is None is none for this process."""

    available_bytes: int
    cgroup_limit_bytes: int | None
    cgroup_used_bytes: int
    transparent_huge_pages: str
    reserved_huge_page_bytes: int
    memlock_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedMemoryFacts:
    """/dev/shm; ``problem`` says why nothing can be shared there, empty if it can."""

    size_bytes: int
    free_bytes: int
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFacts:
    """What this process may and sees. ``num_cpus`` counts a cgroup's quota, too."""

    linux_version: tuple[int, int]
    num_cpus: float
    max_files: int
    is_in_host_pid_namespace: bool
    is_in_host_ipc_namespace: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketFacts:
    """A unix socket's folder and path. ``mode`` is the folder's, None: it is not there."""

    path_bytes: int
    folder: str
    folder_mode: int | None
    folder_is_writable: bool
    why_no_owner: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressFacts:
    """Where something is to be served; ``why_not`` is why it could not be bound by anybody. ``socket`` of unix ones."""

    address: str
    holder: Holder
    why_not: str = ""
    socket: SocketFacts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """``driver`` is the kernel's line about NVIDIA's module, empty: none; ``num_nodes`` counts /dev/nvidia0, …

    ``hidden_by`` names the variables that hide devices. The cache is CuPy's, of compiled kernels.
    """

    driver: str
    num_nodes: int
    hidden_by: str
    cuda: CudaProbe
    cache_folder: str
    cache_is_writable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFacts:
    """The server's certificate; ``problem`` says why its files can't be used, empty if they can."""

    problem: str
    subject: str = ""
    seconds_left: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All of it. What is None is not set: nothing was to be found out."""

    memory: MemoryFacts
    shared_memory: SharedMemoryFacts
    process: ProcessFacts
    gpu: GpuFacts
    why_no_streaming_copy: str
    listeners: tuple[AddressFacts, ...]
    metrics: AddressFacts | None
    why_no_collector: str | None
    certificate: CertificateFacts | None
    why_no_tenants: str | None
    why_no_subscribers: tuple[str, ...]

    @property
    def depot_is_running(self) -> bool:
        """Whether a depot with these settings has its memory and its addresses already."""
        return any(each.holder is Holder.DEPOT for each in self.listeners)
