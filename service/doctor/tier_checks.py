"""Checks of the tiers behind L1: whether each can be used, and whether it is safe to do so."""

from __future__ import annotations

from kvdepot.cli.terminal import readable_size
from service.doctor.facts import DiskTierFacts, Facts, FileSystem, TierFacts
from service.doctor.findings import Finding, failure, ok, warning
from service.rpc.listen import is_on_this_machine
from service.settings import Settings


def tier(found: TierFacts, facts: Facts, settings: Settings) -> Finding:
    """Check one tier. What makes it useless comes first, then what makes it slow or unsafe."""
    if found.missing_package:
        return failure("its package is not installed", f"pip install '{found.missing_package}'")
    if found.file_faults:
        return failure("; ".join(found.file_faults), "correct the file, or its name in the address")
    problem = (
        _disk_problem(found.disk, found, facts) if found.disk is not None else _server_problem(found, facts, settings)
    )
    if problem is not None:
        return problem
    if found.files_readable_by_all:
        files = ", ".join(found.files_readable_by_all)
        return warning(f"every user of this machine can read {files}", "chmod 600, or 440 with the depot's group")
    if found.disk is None:
        return ok(f"{found.server} answers")
    if found.disk.used_by is not None:
        return ok(f"{found.address.path}: the running depot uses it")
    kept = "starts empty" if found.disk.is_new else "keeps its chunks"
    return ok(f"{found.address.path} {kept}: {readable_size(_size_bytes(found))} of {_free(found.disk)}")


def _disk_problem(disk: DiskTierFacts, found: TierFacts, facts: Facts) -> Finding | None:
    folder = found.address.path
    if disk.error:
        return failure(
            f"{folder}: {disk.error}", f"install -d -m 700 -o USER {folder}, with the depot's user; or another folder"
        )
    if disk.used_by is not None:
        if facts.depot_is_running:
            return None
        user = f"the process {disk.used_by}" if disk.used_by else "another process"
        return failure(f"{folder}: {user} uses it", "end that process, or name another folder")
    if disk.file_system is FileSystem.NETWORK:
        return failure(
            f"{folder} is on the network: nothing can end a read that hangs", "name a folder on a disk of this machine"
        )
    if disk.free_bytes < _size_bytes(found):
        return failure(
            f"{folder}: {readable_size(_size_bytes(found))} do not fit, {_free(disk)}", "lower size, or free space"
        )
    if disk.file_system is FileSystem.MEMORY:
        return warning(
            f"{folder} is in memory: it takes what L1 could have", "name a folder on a disk; or raise l1_size instead"
        )
    if disk.file_system is FileSystem.OVERLAY:
        return warning(
            f"{folder} is in the layers of a container: its chunks go with the container", "mount a volume there"
        )
    if disk.can_read_directly is False:
        return warning(
            f"{folder}: its file system has no O_DIRECT: all that the tier moves also fills the page cache",
            "name a folder on ext4 or XFS",
        )
    return None


def _server_problem(found: TierFacts, facts: Facts, settings: Settings) -> Finding | None:
    if found.server_error:
        return failure(
            f"{found.server}: {found.server_error}",
            "check the address, the server, and the network policy; until then lookups find nothing there",
        )
    if found.open_error:
        return failure(
            f"{found.server}: {found.open_error.removeprefix(f'{found.server}: ')}",
            "correct the options of the address, the files that it names, or the server",
        )
    address = found.address
    segment_bytes = address.options.get("segment", 0)
    left_bytes = facts.memory.available_bytes - settings.l1_size
    if segment_bytes and not facts.depot_is_running and segment_bytes > left_bytes:
        return failure(
            f"its segment of {readable_size(segment_bytes)} does not fit: "
            f"L1 leaves {readable_size(max(0, left_bytes))} of memory",
            "lower segment or l1_size",
        )
    if is_on_this_machine(found.server):
        return None
    options = address.options
    if address.kind in ("valkey", "redis"):
        if "password_file" in options:
            return warning(
                f"{found.server}: others on the network can read the password and the chunks",
                "give the server TLS, and write valkeys:// or rediss://",
            )
        return warning(
            f"{found.server}: all that reach the server can read and write the chunks",
            "give the server TLS and a password (valkeys:// and password_file)",
        )
    if address.kind in ("valkeys", "rediss") and not ("password_file" in options or "cert_file" in options):
        return warning(
            f"{found.server}: all that reach the server can read and write the chunks",
            "give the server a password or let it ask for certificates (password_file, or cert_file and key_file)",
        )
    if options.get("endpoint", "").startswith("http://"):
        return warning(f"{found.server}: others on the network can read the chunks", "give the server TLS")
    return None


def _size_bytes(found: TierFacts) -> int:
    size_bytes: int = found.address.options["size"]
    return size_bytes


def _free(disk: DiskTierFacts) -> str:
    return f"{readable_size(disk.free_bytes)} that are free"
