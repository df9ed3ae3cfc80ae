"""Checks of L1 files: whether the one of the settings can be used, and whether others are left over."""

from __future__ import annotations

import shlex

from kvdepot.cli.terminal import counted, readable_size
from service.doctor.facts import Facts, LeftOverFacts
from service.doctor.findings import Finding, failure, not_applicable, ok, warning
from service.settings import Settings
from service.units import age_text


def l1_file(facts: Facts, settings: Settings) -> Finding:
    """Check whether a depot could use the file of the settings, and would find its chunks."""
    file = facts.l1_file
    if file is None:
        return not_applicable("without l1_file, L1 ends with the depot, unless a successor takes it over")
    if file.error:
        return failure(file.error, "correct it, or name another path with l1_file")
    if file.used_by is not None:
        if facts.depot_is_running:
            return ok(f"{file.path}: the running depot uses it")
        user = f"the process {file.used_by}" if file.used_by else "another process"
        return failure(f"{file.path}: {user} uses it", "end that process, or name another path with l1_file")
    if not file.exists or file.is_blank:
        return ok(f"{file.path}: it is new, and L1 starts empty")
    if file.why_empty:
        return warning(
            f"{file.path}: L1 starts empty, since {file.why_empty}",
            "change the setting back to keep the chunks; else nothing is to be done",
        )
    return ok(f"{file.path}: a depot adopts its chunks")


def left_over_l1_files(facts: Facts, settings: Settings) -> Finding:
    """Check whether L1 files lie around that hold prompts and memory for no depot."""
    files = facts.left_over_l1_files
    if not files:
        return ok("no L1 file is left over in memory")
    total = readable_size(sum(file.size_bytes for file in files))
    listed = "; ".join(map(_described, files))
    return warning(
        f"{counted(len(files), 'L1 file')} with {total} of memory that no process uses: {listed}",
        "; ".join(f"kvdepot l1 wipe {shlex.quote(file.path)}" for file in files),
    )


def _described(file: LeftOverFacts) -> str:
    owner = f", of the user {file.owner}" if file.owner is not None else ""
    what = f"{readable_size(file.size_bytes)}, {counted(file.num_chunks, 'chunk')}"
    return f"{file.path} ({what}, last store {age_text(file.seconds_since_store)} ago{owner})"
