"""The facts of a machine on which the doctor finds nothing."""

from __future__ import annotations

from kernels.cuda.probe import CudaProbe
from service.doctor.facts import (
    AddressFacts,
    CertificateFacts,
    Facts,
    GpuFacts,
    Holder,
    L1FileFacts,
    MemoryFacts,
    ProcessFacts,
    SharedMemoryFacts,
    SocketFacts,
)

GIB, DAY_SECONDS = 1 << 30, 86_400.0
LISTEN, METRICS = "127.0.0.1:50051", "127.0.0.1:9464"
CONSOLE = "127.0.0.1:9465"
SOCKET = SocketFacts(path_bytes=24, folder="/run/kvdepot", folder_mode=0o755, folder_is_writable=True)

HEALTHY = Facts(
    memory=MemoryFacts(
        available_bytes=200 * GIB,
        cgroup_limit_bytes=100 * GIB,
        cgroup_used_bytes=GIB,
        huge_page_error=0,
        reserved_huge_page_bytes=0,
        memlock_bytes=None,
    ),
    shared_memory=SharedMemoryFacts(size_bytes=100 * GIB, free_bytes=50 * GIB, error=""),
    l1_file=L1FileFacts(path="/dev/shm/kvdepot/l1", exists=True),
    left_over_l1_files=(),
    tiers=(),
    process=ProcessFacts(
        linux_version=(6, 8),
        num_cpus=16,
        max_files=1 << 20,
        is_in_host_pid_namespace=True,
        is_in_host_ipc_namespace=True,
    ),
    gpu=GpuFacts(
        driver="NVIDIA UNIX x86_64 Kernel Module  570.10",
        num_nodes=2,
        hidden_by="",
        cuda=CudaProbe(
            cupy_version="14.2.0",
            runtime_version=12_090,
            driver_version=12_080,
            devices=("H100 (compute capability 9.0)", "H100 (compute capability 9.0)"),
            nvrtc_version="12.9",
        ),
        cache_folder="/home/kvdepot/.cupy",
        cache_is_writable=True,
    ),
    streaming_copy_error="",
    listeners=(
        AddressFacts(address=LISTEN, holder=Holder.NONE),
        AddressFacts(address="unix:/run/kvdepot/depot.sock", holder=Holder.NONE, socket=SOCKET),
    ),
    metrics=AddressFacts(address=METRICS, holder=Holder.NONE),
    console=AddressFacts(address=CONSOLE, holder=Holder.NONE),
    collector_error="",
    certificate=CertificateFacts(error="", subject="CN=depot", seconds_left=60 * DAY_SECONDS),
    tenants_error="",
    subscriber_errors=(),
    kv_events_module=None,
)
"""A healthy node with two GPUs. Every setting is set."""
