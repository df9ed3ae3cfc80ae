"""The facts of the machine that the checks use, as plain values.

Each `error` says why a thing can't be used. It is empty if the thing can be used. A fact is None if the settings do not
need it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from kernels.cuda.probe import CudaProbe
from service.tiers.address.address import TierAddress


class Holder(StrEnum):
    """Which kind of process listens on an address."""

    NONE = "none"
    DEPOT = "depot"
    OTHER = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFacts:
    """The machine's memory and the limits of this process. None: no limit.

    `huge_page_error` is the number of the error of an attempt to make a huge page of shared memory, 0 if it worked.
    """

    available_bytes: int
    cgroup_limit_bytes: int | None
    cgroup_used_bytes: int
    huge_page_error: int
    reserved_huge_page_bytes: int
    memlock_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedMemoryFacts:
    """/dev/shm."""

    size_bytes: int
    free_bytes: int
    error: str


@dataclass(frozen=True, slots=True, kw_only=True)
class L1FileFacts:
    """The file of the setting l1_file, as a depot that starts now would find it.

    `used_by` is the id of the process that uses it: 0 if it is unknown, None if there is none. `why_empty` says why its
    chunks can't be adopted.
    """

    path: str
    error: str = ""
    exists: bool = False
    is_blank: bool = False
    has_reserved_pages: bool = False
    allocated_bytes: int = 0
    used_by: int | None = None
    why_empty: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOverFacts:
    """An L1 file that no process uses. `owner` is the id of its user, None if that is the doctor's."""

    path: str
    size_bytes: int
    num_chunks: int
    seconds_since_store: float
    owner: int | None = None


class FileSystem(StrEnum):
    """What a disk tier's folder is on."""

    DISK = "a disk of this machine"
    NETWORK = "the network"
    MEMORY = "memory"
    OVERLAY = "the layers of a container"


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskTierFacts:
    """The folder of a disk tier, as a depot that starts now would find it.

    `is_new` says that it has no chunks. `free_bytes` includes what the tier's files have already. `can_read_directly`
    is None if it is unknown. `used_by` is the id of the process that uses it: 0 if that is unknown, None without one.
    """

    error: str = ""
    is_new: bool = True
    file_system: FileSystem = FileSystem.DISK
    free_bytes: int = 0
    can_read_directly: bool | None = None
    used_by: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TierFacts:
    """A tier behind L1. `address` is that of the settings.

    `file_faults` and `files_readable_by_all` are of the files that the address names. `missing_package` is the package
    to install, empty if it is there. `server` is HOST:PORT of the server that was tried, empty for a disk.
    `server_error` says why it does not answer, `open_error` why it refuses the depot. Only a disk tier has a `disk`.
    """

    address: TierAddress
    file_faults: tuple[str, ...] = ()
    files_readable_by_all: tuple[str, ...] = ()
    missing_package: str = ""
    server: str = ""
    server_error: str = ""
    open_error: str = ""
    disk: DiskTierFacts | None = None


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
class BindError:
    """Why an address of the setting can't be bound. `is_in_use`: because another socket has it."""

    setting: str
    address: str
    error: str
    is_in_use: bool


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
    """All facts. `kv_events_module` is the name of a module that KV events need and that is missing.

    `kv_events_bind_errors` has one for each of their addresses that can't be bound.
    """

    memory: MemoryFacts
    shared_memory: SharedMemoryFacts
    l1_file: L1FileFacts | None
    left_over_l1_files: tuple[LeftOverFacts, ...]
    tiers: tuple[TierFacts, ...]
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
    kv_events_module: str | None
    kv_events_bind_errors: tuple[BindError, ...] = ()

    @property
    def depot_is_running(self) -> bool:
        """Whether a depot with these settings runs, so that it has its memory and its addresses already."""
        return any(each.holder is Holder.DEPOT for each in self.listeners)
