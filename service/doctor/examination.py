"""All checks, one after the other."""

from __future__ import annotations

from collections.abc import Callable

from service.doctor import gpu_checks, memory_checks, network_checks, process_checks
from service.doctor.facts import Facts
from service.doctor.findings import Finding
from service.settings import Settings

CHECKS: tuple[Callable[[Facts, Settings], Finding], ...] = (
    memory_checks.l1_memory,
    memory_checks.huge_pages,
    memory_checks.populating,
    memory_checks.shared_memory,
    memory_checks.memory_lock,
    process_checks.cpus,
    process_checks.open_files,
    process_checks.pid_namespace,
    process_checks.ipc_namespace,
    process_checks.streaming_copy,
    gpu_checks.gpu,
    gpu_checks.cupy,
    gpu_checks.driver,
    gpu_checks.compiler,
    gpu_checks.compiled_kernels,
    gpu_checks.cuda_handles,
    network_checks.certificate,
    network_checks.tenants,
    network_checks.metrics,
    network_checks.collector,
    process_checks.subscribers,
)


def examine(facts: Facts, settings: Settings) -> list[Finding]:
    """What every check says, and one for each address."""
    addresses = [network_checks.listener(address, settings) for address in facts.listeners]
    return [check(facts, settings) for check in CHECKS] + addresses
