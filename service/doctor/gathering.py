"""Looks at the machine: everything that the checks want to know is found out here, and nothing is changed."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import resource
import shutil
import socket
import ssl
import stat
import subprocess
import time
import urllib.request
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from kernels.cuda.probe import probe_cuda
from kernels.host.streaming_copy import built_library
from kvdepot import DepotClient, DepotError
from kvdepot.memory.available import in_control_groups, in_machine
from service.access.certificates import BadCertificate, read_certificate
from service.access.tenants import TenantLimits
from service.access.tenants_file import BadTenants, read_tenants
from service.doctor.cgroup import cpu_quota
from service.doctor.facts import (
    AddressFacts,
    CertificateFacts,
    Facts,
    GpuFacts,
    Holder,
    MemoryFacts,
    ProcessFacts,
    SharedMemoryFacts,
    SocketFacts,
)
from service.settings import Settings
from telemetry.loading import SubscriberSource

PATIENCE_SECONDS = 5.0

_SHARED_MEMORY = Path("/dev/shm")
_CAP_IPC_LOCK = 14
# The first namespaces of a machine have fixed numbers, in linux/proc_ns.h.
_HOST_PID_NAMESPACE, _HOST_IPC_NAMESPACE = 0xEFFF_FFFC, 0xEFFF_FFFF


def gather(settings: Settings, environment: Mapping[str, str]) -> Facts:
    """All facts; takes some seconds where an address does not answer."""
    return Facts(
        memory=_memory(),
        shared_memory=_shared_memory(),
        process=_process(),
        gpu=_gpu(environment),
        why_no_streaming_copy=_why_no_streaming_copy(),
        listeners=tuple(_listener(address, settings) for address in settings.listen),
        metrics=_metrics(settings),
        why_no_collector=_why_no_collector(settings.otlp_endpoint) if settings.otlp_endpoint else None,
        certificate=_certificate(settings) if settings.tls_cert else None,
        why_no_tenants=_why_no_tenants(settings) if settings.tenants else None,
        why_no_subscribers=tuple(filter(None, map(_why_no_subscriber, settings.subscriber))),
    )


def _memory() -> MemoryFacts:
    group = in_control_groups()
    free = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages")
    transparent = _read(Path("/sys/kernel/mm/transparent_hugepage/enabled"))
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    may_lock = bool(int(_status_line("CapEff"), 16) >> _CAP_IPC_LOCK & 1)
    return MemoryFacts(
        available_bytes=in_machine().left_bytes,
        cgroup_limit_bytes=group.limit_bytes if group is not None else None,
        cgroup_used_bytes=group.limit_bytes - group.left_bytes if group is not None else 0,
        transparent_huge_pages=transparent.partition("[")[2].partition("]")[0],
        reserved_huge_page_bytes=int(_read(free) or 0) << 21,
        memlock_bytes=None if may_lock or soft == resource.RLIM_INFINITY else soft,
    )


def _shared_memory() -> SharedMemoryFacts:
    if not _SHARED_MEMORY.is_dir():
        return SharedMemoryFacts(size_bytes=0, free_bytes=0, problem="it is not there")
    usage = shutil.disk_usage(_SHARED_MEMORY)
    mounts = [line.split() for line in _read(Path("/proc/self/mounts")).splitlines()]
    kinds = [kind for _, where, kind, *_ in mounts if where == str(_SHARED_MEMORY)]
    if kinds[-1:] != ["tmpfs"]:
        problem = "it is not a tmpfs"
    elif not os.access(_SHARED_MEMORY, os.W_OK | os.X_OK):
        problem = "this user may not write there"
    else:
        problem = ""
    return SharedMemoryFacts(size_bytes=usage.total, free_bytes=usage.free, problem=problem)


def _process() -> ProcessFacts:
    major, minor, *_ = os.uname().release.split(".")
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ProcessFacts(
        linux_version=(int(major), int("".join(filter(str.isdecimal, minor)) or 0)),
        num_cpus=min(len(os.sched_getaffinity(0)), cpu_quota()),
        max_files=most_files,
        is_in_host_pid_namespace=_namespace("pid") == _HOST_PID_NAMESPACE,
        is_in_host_ipc_namespace=_namespace("ipc") == _HOST_IPC_NAMESPACE,
    )


def _namespace(kind: str) -> int:
    return Path(f"/proc/self/ns/{kind}").stat().st_ino


def _gpu(environment: Mapping[str, str]) -> GpuFacts:
    hiding = [name for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES") if name in environment]
    hidden_by = [name for name in hiding if environment[name] in ("", "-1", "void", "none")]
    cache = Path(environment.get("CUPY_CACHE_DIR") or Path(environment.get("HOME") or "~").expanduser() / ".cupy")
    return GpuFacts(
        driver=_read(Path("/proc/driver/nvidia/version")).partition("\n")[0].removeprefix("NVRM version:").strip(),
        num_nodes=len(list(Path("/dev").glob("nvidia[0-9]*"))),
        hidden_by=", ".join(hidden_by),
        cuda=probe_cuda(),
        cache_folder=str(cache),
        cache_is_writable=_is_writable(cache),
    )


def _why_no_streaming_copy() -> str:
    try:
        built_library()
    except subprocess.CalledProcessError as error:
        return f"the compiler failed: {error.stderr.decode(errors='replace').strip()}"
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return ""


def _listener(address: str, settings: Settings) -> AddressFacts:
    if address.startswith("unix:"):
        return _socket(address, settings.unix_socket_owner)
    host, _, port = address.rpartition(":")
    is_ours = partial(_shows, address, Path(settings.tls_cert)) if settings.tls_cert else partial(_is_depot, address)
    return _tcp(address, host.strip("[]"), int(port), is_ours)


def _socket(address: str, owner: str) -> AddressFacts:
    path = Path(address.removeprefix("unix:").removeprefix("//"))
    folder = path.parent
    facts = SocketFacts(
        path_bytes=len(os.fsencode(path)),
        folder=str(folder),
        folder_mode=stat.S_IMODE(folder.stat().st_mode) if folder.is_dir() else None,
        folder_is_writable=os.access(folder, os.W_OK | os.X_OK),
        why_no_owner=_why_no_owner(owner),
    )
    holder = Holder.NOBODY
    if _answers(socket.AF_UNIX, str(path)):
        holder = Holder.DEPOT if _is_depot(address) else Holder.OTHER
    return AddressFacts(address=address, holder=holder, socket=facts)


def _why_no_owner(owner: str) -> str:
    user, _, group = owner.partition(":")
    for name, look_up in ((user, pwd.getpwnam), (group, grp.getgrnam)):
        if name and not name.isdecimal():
            try:
                look_up(name)
            except KeyError:
                return f"unix_socket_owner: this machine does not know {name}"
    return ""


def _metrics(settings: Settings) -> AddressFacts | None:
    if settings.disable_observability or settings.disable_metrics or settings.otlp_endpoint:
        return None
    host, port = settings.prometheus_host, settings.prometheus_port
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return _tcp(shown, host, port, partial(_is_page, shown))


def _tcp(shown: str, host: str, port: int, is_ours: Callable[[], bool]) -> AddressFacts:
    """Whether an address can be bound; what holds it is asked who it is."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what was closed a moment ago is free
            probe.bind(address)
            probe.listen()
    except OSError as error:
        if port and error.errno == errno.EADDRINUSE:
            return AddressFacts(address=shown, holder=Holder.DEPOT if is_ours() else Holder.OTHER)
        return AddressFacts(address=shown, holder=Holder.NOBODY, why_not=error.strerror or str(error))
    return AddressFacts(address=shown, holder=Holder.NOBODY)


def _is_depot(address: str) -> bool:
    """Whether a depot answers; one that asks for credentials does."""
    try:
        with DepotClient(_to_call(address), timeout_seconds=PATIENCE_SECONDS) as client:
            client.get_status()
    except DepotError as error:
        return error.reason in ("CREDENTIALS_MISSING", "ADMIN_ONLY")
    return True


def _shows(address: str, tls_cert: Path) -> bool:
    """Whether who serves there shows this certificate: it is the depot that was started with it."""
    host, _, port = _to_call(address).rpartition(":")
    try:
        shown = ssl.get_server_certificate((host.strip("[]"), int(port)), timeout=PATIENCE_SECONDS)
        return shown.strip() in tls_cert.read_text()
    except (OSError, ValueError):
        return False


def _is_page(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{_to_call(address)}/metrics", timeout=PATIENCE_SECONDS) as page:
            return b"kvdepot_l1_capacity_bytes" in page.read()
    except (OSError, ValueError):
        return False


def _to_call(address: str) -> str:
    """An address to connect to: one that stands for all of a machine's is none."""
    for everywhere, here in (("0.0.0.0:", "127.0.0.1:"), ("[::]:", "[::1]:")):
        if address.startswith(everywhere):
            return here + address.removeprefix(everywhere)
    return address


def _answers(family: socket.AddressFamily, address: str) -> bool:
    with socket.socket(family) as probe:
        probe.settimeout(PATIENCE_SECONDS)
        try:
            probe.connect(address)
        except OSError:
            return False
    return True


def _why_no_collector(endpoint: str) -> str:
    try:
        url = urlsplit(endpoint)
        port = url.port or (443 if url.scheme == "https" else 80)
        with socket.create_connection((url.hostname or "", port), timeout=PATIENCE_SECONDS):
            return ""
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)


def _certificate(settings: Settings) -> CertificateFacts:
    client_ca = Path(settings.tls_client_ca) if settings.tls_client_ca else None
    try:
        certificate = read_certificate(Path(settings.tls_cert), Path(settings.tls_key), client_ca)
    except BadCertificate as error:
        return CertificateFacts(problem=str(error))
    return CertificateFacts(problem="", subject=certificate.subject, seconds_left=certificate.end_time - time.time())


def _why_no_tenants(settings: Settings) -> str:
    any_limits = TenantLimits(max_concurrent_rpcs=1, max_attachments=1, max_bytes_in_flight=1)
    try:
        read_tenants(Path(settings.tenants), any_limits)
    except BadTenants as error:
        return str(error)
    return ""


def _why_no_subscriber(text: str) -> str:
    module = SubscriberSource.parse(text).module
    try:
        return "" if find_spec(module) is not None else f"there is no module {module}"
    except (ImportError, ValueError) as error:
        return f"{module}: {error}"


def _is_writable(folder: Path) -> bool:
    """Whether files can be made there, with the folders above it if these are missing."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK | os.X_OK)


def _status_line(name: str) -> str:
    lines = _read(Path("/proc/self/status")).splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:"))


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
