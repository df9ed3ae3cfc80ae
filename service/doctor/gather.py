"""Gathers the facts of the machine. It changes nothing."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from kernels.cuda.probe import probe_cuda
from kernels.host.streaming_copy import built_library
from kvdepot.memory.available import CGROUP_MEMBERSHIP, CGROUP_ROOT, control_groups, in_control_groups, in_machine
from service.access.certificates import BadCertificate, read_certificate
from service.access.tenants import TenantLimits
from service.access.tenants_file import BadTenants, read_tenants
from service.doctor import addresses, kv_events, l1_files, tiers
from service.doctor.facts import CertificateFacts, Facts, GpuFacts, MemoryFacts, ProcessFacts, SharedMemoryFacts
from service.kv_events.setup import MISSING_PACKAGE
from service.l1.arena import huge_page_error
from service.settings import Settings
from service.tiers.disk.disk_layout import smallest_disk_bytes
from telemetry.loading import SubscriberSource

_SHARED_MEMORY = Path("/dev/shm")
_CAP_IPC_LOCK = 14
# The first namespaces of a machine have fixed numbers, in linux/proc_ns.h.
_HOST_PID_NAMESPACE, _HOST_IPC_NAMESPACE = 0xEFFF_FFFC, 0xEFFF_FFFF


def gather(settings: Settings, environment: Mapping[str, str]) -> Facts:
    """Return all facts. This takes some seconds if an address does not answer."""
    return Facts(
        memory=_memory(),
        shared_memory=_shared_memory(),
        l1_file=l1_files.configured(settings),
        left_over_l1_files=l1_files.left_over(settings),
        tiers=tiers.all_of(settings, environment),
        process=_process(),
        gpu=_gpu(environment),
        streaming_copy_error=_streaming_copy_error(),
        listeners=tuple(addresses.listener(address, settings) for address in settings.listen),
        metrics=addresses.metrics(settings),
        console=addresses.console(settings),
        collector_error=addresses.collector_error(settings.otlp_endpoint) if settings.otlp_endpoint else None,
        certificate=_certificate(settings) if settings.tls_cert else None,
        tenants_error=_tenants_error(settings) if settings.tenants else None,
        subscriber_errors=tuple(filter(None, map(_subscriber_error, settings.subscriber))),
        kv_events_module=MISSING_PACKAGE,
        kv_events_bind_errors=kv_events.bind_errors(settings),
    )


def cpu_quota(root: Path = CGROUP_ROOT, membership: Path = CGROUP_MEMBERSHIP) -> float:
    """Return how many CPUs' time the process's control groups allow, of version 1 and 2. Infinite without a limit."""
    quotas = [float("inf")]
    for folder in control_groups("cpu", root, membership):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdecimal() and period.isdecimal():
            quotas.append(int(quota) / int(period))
    return min(quotas)


def _memory() -> MemoryFacts:
    group = in_control_groups()
    num_free = _read(Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages"))
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    capabilities = _read(Path("/proc/self/status")).partition("CapEff:")[2].split()[0]
    may_lock = bool(int(capabilities, 16) >> _CAP_IPC_LOCK & 1)
    return MemoryFacts(
        available_bytes=in_machine().left_bytes,
        cgroup_limit_bytes=group.limit_bytes if group is not None else None,
        cgroup_used_bytes=group.limit_bytes - group.left_bytes if group is not None else 0,
        huge_page_error=huge_page_error(),
        reserved_huge_page_bytes=int(num_free or 0) << 21,
        memlock_bytes=None if may_lock or soft == resource.RLIM_INFINITY else soft,
    )


def _shared_memory() -> SharedMemoryFacts:
    if not _SHARED_MEMORY.is_dir():
        return SharedMemoryFacts(size_bytes=0, free_bytes=0, error="it is not there")
    usage = shutil.disk_usage(_SHARED_MEMORY)
    mounts = [line.split() for line in _read(Path("/proc/self/mounts")).splitlines()]
    kinds = [kind for _, where, kind, *_ in mounts if where == str(_SHARED_MEMORY)]
    error = ""
    if kinds[-1:] != ["tmpfs"]:
        error = "it is not a tmpfs"
    elif not os.access(_SHARED_MEMORY, os.W_OK | os.X_OK):
        error = "this user may not write there"
    return SharedMemoryFacts(size_bytes=usage.total, free_bytes=usage.free, error=error)


def _process() -> ProcessFacts:
    major, minor, *_ = os.uname().release.split(".")
    _, max_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ProcessFacts(
        linux_version=(int(major), int("".join(filter(str.isdecimal, minor)) or 0)),
        num_cpus=min(len(os.sched_getaffinity(0)), cpu_quota()),
        max_files=max_files,
        is_in_host_pid_namespace=Path("/proc/self/ns/pid").stat().st_ino == _HOST_PID_NAMESPACE,
        is_in_host_ipc_namespace=Path("/proc/self/ns/ipc").stat().st_ino == _HOST_IPC_NAMESPACE,
    )


def _gpu(environment: Mapping[str, str]) -> GpuFacts:
    variables = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES")
    hidden_by = [name for name in variables if environment.get(name) in ("", "-1", "void", "none")]
    cache = Path(environment.get("CUPY_CACHE_DIR") or Path(environment.get("HOME") or "~").expanduser() / ".cupy")
    return GpuFacts(
        driver=_read(Path("/proc/driver/nvidia/version")).partition("\n")[0].removeprefix("NVRM version:").strip(),
        num_nodes=len(list(Path("/dev").glob("nvidia[0-9]*"))),
        hidden_by=", ".join(hidden_by),
        cuda=probe_cuda(),
        cache_folder=str(cache),
        cache_is_writable=_is_writable(cache),
    )


def _streaming_copy_error() -> str:
    try:
        built_library()
    except subprocess.CalledProcessError as error:
        return f"the compiler failed: {error.stderr.decode(errors='replace').strip()}"
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return ""


def _certificate(settings: Settings) -> CertificateFacts:
    client_ca = Path(settings.tls_client_ca) if settings.tls_client_ca else None
    try:
        certificate = read_certificate(Path(settings.tls_cert), Path(settings.tls_key), client_ca)
    except BadCertificate as error:
        return CertificateFacts(error=str(error))
    return CertificateFacts(error="", subject=certificate.subject, seconds_left=certificate.end_time - time.time())


def _tenants_error(settings: Settings) -> str:
    any_limits = TenantLimits(max_concurrent_rpcs=1, max_attachments=1, max_bytes_in_flight=1, max_pinned_bytes=1)
    try:
        read_tenants(
            Path(settings.tenants), any_limits, settings.l1_size, smallest_disk_bytes(settings.tier_addresses())
        )
    except BadTenants as error:
        return str(error)
    return ""


def _subscriber_error(text: str) -> str:
    module = SubscriberSource.parse(text).module
    try:
        return "" if find_spec(module) is not None else f"there is no module {module}"
    except (ImportError, ValueError) as error:
        return f"{module}: {error}"


def _is_writable(folder: Path) -> bool:
    """Return whether files can be made in the folder, or the folder itself if it does not exist yet."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK | os.X_OK)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
