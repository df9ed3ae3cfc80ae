"""The facts of the machine that the checks use, as plain values.

Each `error` says why a thing can't be used. It is empty if the thing can be used. A fact is None if the settings do not
need it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from kernels.cuda.probe import CudaProbe


class Holder(StrEnum):
    """Which kind of process listens on an address."""

    NONE = "none"
    DEPOT = "depot"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFacts:
    """The machine's memory and the limits of this process. None: no limit."""

    available_bytes: int
    cgroup_limit_bytes: int | None
    cgroup_used_bytes: int
    transparent_huge_pages: str
    reserved_huge_page_bytes: int
    memlock_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedMemoryFacts:
    """/dev/shm."""

    size_bytes: int
    free_bytes: int
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessFacts:
    """The limits and namespaces of this process. `num_cpus` includes the quota of its cgroup."""

    linux_version: tuple[int, int]
    num_cpus: float
    max_files: int
    is_in_host_pid_namespace: bool
    is_in_host_ipc_namespace: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketFacts:
    """The path and the folder of a unix socket. `folder_mode` is None if there is no such folder."""

    path_bytes: int
    folder: str
    folder_mode: int | None
    folder_is_writable: bool
    owner_error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressFacts:
    """An address to serve on. `bind_error` says why no process can bind it. Only unix sockets have a `socket`."""

    address: str
    holder: Holder
    bind_error: str = ""
    socket: SocketFacts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """The GPUs. `driver` is the version line of NVIDIA's kernel module, empty without one.

    `num_nodes` counts /dev/nvidia0 and so on. `hidden_by` names the variables that hide devices. `cache_folder` has the
    kernels that CuPy has compiled.
    """

    driver: str
    num_nodes: int
    hidden_by: str
    cuda: CudaProbe
    cache_folder: str
    cache_is_writable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateFacts:
    """The server's certificate."""

    error: str
    subject: str = ""
    seconds_left: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All facts."""

    memory: MemoryFacts
    shared_memory: SharedMemoryFacts
    process: ProcessFacts
    gpu: GpuFacts
    streaming_copy_error: str
    listeners: tuple[AddressFacts, ...]
    metrics: AddressFacts | None
    console: AddressFacts | None
    collector_error: str | None
    certificate: CertificateFacts | None
    tenants_error: str | None
    subscriber_errors: tuple[str, ...]

    @property
    def depot_is_running(self) -> bool:
        """Whether a depot with these settings runs, so that it has its memory and its addresses already."""
        return any(each.holder is Holder.DEPOT for each in self.listeners)
