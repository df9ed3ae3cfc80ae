"""All checks, in the order of the report."""

from __future__ import annotations

from collections.abc import Callable

from service.doctor import gpu_checks, l1_file_checks, memory_checks, network_checks, process_checks, tier_checks
from service.doctor.facts import Facts
from service.doctor.findings import Finding
from service.settings import Settings

CHECKS: dict[str, Callable[[Facts, Settings], Finding]] = {
    "memory for L1": memory_checks.l1_memory,
    "L1 file": l1_file_checks.l1_file,
    "left-over L1 files": l1_file_checks.left_over_l1_files,
    "huge pages": memory_checks.huge_pages,
    "populating L1": memory_checks.populating,
    "shared memory": memory_checks.shared_memory,
    "memlock": memory_checks.memory_lock,
    "CPUs": process_checks.cpus,
    "open files": process_checks.open_files,
    "PID namespace": process_checks.pid_namespace,
    "IPC namespace": process_checks.ipc_namespace,
    "streaming copy": process_checks.streaming_copy,
    "GPU": gpu_checks.gpu,
    "CuPy": gpu_checks.cupy,
    "GPU driver": gpu_checks.driver,
    "NVRTC": gpu_checks.compiler,
    "kernel cache": gpu_checks.compiled_kernels,
    "CUDA handles": gpu_checks.cuda_handles,
    "TLS certificate": network_checks.certificate,
    "tenants": network_checks.tenants,
    "metrics": network_checks.metrics,
    "console": network_checks.console,
    "OTLP collector": network_checks.collector,
    "subscribers": process_checks.subscribers,
    "KV events": process_checks.kv_events,
}


def examine(facts: Facts, settings: Settings) -> dict[str, Finding]:
    """Return the finding of every check by the name of the check, then one for each tier and for each address."""
    findings = {name: check(facts, settings) for name, check in CHECKS.items()}
    tiers = {f"tier {each.address.name}": tier_checks.tier(each, facts, settings) for each in facts.tiers}
    addresses = {f"listen on {each.address}": network_checks.listener(each, settings) for each in facts.listeners}
    return findings | tiers | addresses
