"""The process: what it may open, how much it may compute, whom it sees."""

from __future__ import annotations

from service.doctor.facts import Facts
from service.doctor.findings import Finding, failure, not_applicable, ok, warning
from service.settings import Settings

FILES_BESIDES = 256


def pid_namespace(facts: Facts, settings: Settings) -> Finding:
    """Whether engines of other containers can be seen."""
    check = "PID namespace"
    if facts.process.is_in_host_pid_namespace:
        return ok(check, "the node's")
    if not facts.gpu.cuda.devices:
        return not_applicable(check, "of its own: engines share memory by name, in /dev/shm, and not by descriptor")
    return warning(
        check,
        "of its own: CUDA IPC reaches only engines that are in it",
        "hostPID: true for the depot and the engines, or shareProcessNamespace where they are in one pod",
    )


def ipc_namespace(facts: Facts, settings: Settings) -> Finding:
    """That it does not matter is worth being told."""
    check = "IPC namespace"
    if facts.process.is_in_host_ipc_namespace:
        return ok(check, "the node's")
    return not_applicable(
        check, "of its own, which hinders nothing: buffers are shared by way of /dev/shm and CUDA IPC"
    )


def cpus(facts: Facts, settings: Settings) -> Finding:
    """Whether threads that move bytes have CPUs to run on."""
    check, num_cpus = "CPUs", facts.process.num_cpus
    if num_cpus < settings.transfer_threads:
        return warning(
            check,
            f"{num_cpus:g}, and transfer_threads is {settings.transfer_threads} for each direction",
            "raise the CPU limit, or lower transfer_threads: threads that take turns are not quicker",
        )
    return ok(check, f"{num_cpus:g}, and transfer_threads is {settings.transfer_threads} for each direction")


def open_files(facts: Facts, settings: Settings) -> Finding:
    """Whether each attachment can have its file."""
    check, limit = "open files", facts.process.max_files
    if limit < settings.max_attachments + FILES_BESIDES:
        return warning(
            check,
            f"{limit} at most, and each of {settings.max_attachments} attachments keeps one or more open",
            "ulimit -Hn 65536, LimitNOFILE=65536 in the systemd unit, or lower max_attachments",
        )
    return ok(check, f"{limit} at most")


def streaming_copy(facts: Facts, settings: Settings) -> Finding:
    """Whether copies on the host are as quick as they can be."""
    check = "streaming copy"
    if not facts.why_no_streaming_copy:
        return ok(check, "compiled")
    return warning(
        check,
        f"the system copies on the host, which takes two to four times as long: {facts.why_no_streaming_copy}",
        "install a C compiler, or run `python -m kernels.host.streaming_copy` when the image is made",
    )


def subscribers(facts: Facts, settings: Settings) -> Finding:
    """Whether subscribers of one's own can be imported."""
    check = "subscribers"
    if not settings.subscriber:
        return not_applicable(check, "none are set")
    if facts.why_no_subscribers:
        return failure(check, "; ".join(facts.why_no_subscribers), "add the folder of the module to PYTHONPATH")
    return ok(check, f"{len(settings.subscriber)} can be imported")
