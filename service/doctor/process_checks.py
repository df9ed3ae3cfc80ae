"""Checks of the process: namespaces, CPUs, open files, the compiled copy, subscribers, KV events."""

from __future__ import annotations

from service.doctor.facts import Facts
from service.doctor.findings import Finding, failure, not_applicable, ok, warning
from service.kv_events.setup import INSTALL
from service.settings import Settings

OTHER_FILES = 256
"""Files that the process opens in addition to one for each attachment."""


def pid_namespace(facts: Facts, settings: Settings) -> Finding:
    """Check whether the depot can see engines in other containers."""
    if facts.process.is_in_host_pid_namespace:
        return ok("the node's")
    if not facts.gpu.cuda.devices:
        return not_applicable("a separate one: engines share memory by name, in /dev/shm, and not by descriptor")
    return warning(
        "a separate one: CUDA IPC reaches only engines in the same namespace",
        "hostPID: true for the depot and the engines, or shareProcessNamespace if they are in one pod",
    )


def ipc_namespace(facts: Facts, settings: Settings) -> Finding:
    """Report the IPC namespace. It is never a problem, but users suspect it."""
    if facts.process.is_in_host_ipc_namespace:
        return ok("the node's")
    return not_applicable("a separate one; that is no problem: buffers are shared through /dev/shm and CUDA IPC")


def cpus(facts: Facts, settings: Settings) -> Finding:
    """Check whether the threads that copy have CPUs to run on."""
    num_cpus = facts.process.num_cpus
    what = f"{num_cpus:g}, and transfer_threads is {settings.transfer_threads} for each direction"
    if num_cpus < settings.transfer_threads:
        return warning(what, "raise the CPU limit, or lower transfer_threads: more threads than CPUs are not faster")
    return ok(what)


def open_files(facts: Facts, settings: Settings) -> Finding:
    """Check whether each attachment can keep a file open."""
    limit = facts.process.max_files
    if limit < settings.max_attachments + OTHER_FILES:
        return warning(
            f"{limit} at most, and each of {settings.max_attachments} attachments keeps one or more open",
            "ulimit -Hn 65536, LimitNOFILE=65536 in the systemd unit, or lower max_attachments",
        )
    return ok(f"{limit} at most")


def streaming_copy(facts: Facts, settings: Settings) -> Finding:
    """Check whether the fast copy of the host backend is compiled."""
    if not facts.streaming_copy_error:
        return ok("compiled")
    return warning(
        f"the slow copy is used, which takes two to four times as long: {facts.streaming_copy_error}",
        "install a C compiler, or run `python -m kernels.host.streaming_copy` when the image is made",
    )


def kv_events(facts: Facts, settings: Settings) -> Finding:
    """Check whether the packages of KV events are installed, and whether their addresses can be bound."""
    if not settings.kv_events:
        return not_applicable("none are published")
    if facts.kv_events_module is not None:
        return failure(f"there is no module {facts.kv_events_module}", INSTALL)
    for each in facts.kv_events_bind_errors:
        if not each.is_in_use:
            return failure(f"{each.address}: {each.error}", f"set {each.setting} to an address that this user can bind")
        if not facts.depot_is_running:
            return failure(
                f"another process has {each.address}",
                f"stop it (ss -lptn), or set {each.setting} to another port: vLLM's own events take 5557, too",
            )
    return ok(f"on {settings.kv_events}: whoever can reach it reads token ids")


def subscribers(facts: Facts, settings: Settings) -> Finding:
    """Check whether the subscribers of the settings can be imported."""
    if not settings.subscriber:
        return not_applicable("none are set")
    if facts.subscriber_errors:
        return failure("; ".join(facts.subscriber_errors), "add the folder of the module to PYTHONPATH")
    return ok(f"{len(settings.subscriber)} can be imported")
