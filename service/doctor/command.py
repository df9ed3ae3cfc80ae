"""The command: prints the findings as a table or as JSON, and exits with a code for scripts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvdepot.cli.terminal import printable
from service.doctor.examine import examine
from service.doctor.findings import Finding, Status, failure
from service.doctor.gather import gather
from service.load_settings import BadSettings
from service.setting_options import load_given

FAILED, BAD_SETTINGS = 1, 2

_STYLES = {
    Status.OK: ("ok", "green"),
    Status.WARNING: ("warning", "yellow"),
    Status.FAILURE: ("FAILURE", "bold red"),
    Status.NOT_APPLICABLE: ("n/a", "dim"),
}


def examine_and_exit(given: Mapping[str, Any], environment: Mapping[str, str], *, as_json: bool, strict: bool) -> None:
    """Examine this machine for the settings of `serve`, print the findings, and exit.

    The exit code is 0 if nothing fails, 1 if a check fails (with `strict` also for a warning), 2 for bad settings.
    """
    code = 0
    try:
        settings = load_given(given)
    except BadSettings as error:
        what = "; ".join(str(error).splitlines())
        findings = {"settings": failure(what, "see `kvdepot serve --help`; nothing else was checked")}
        code = BAD_SETTINGS
    else:
        findings = examine(gather(settings, environment), settings)
        bad = {Status.FAILURE, Status.WARNING} if strict else {Status.FAILURE}
        if any(finding.status in bad for finding in findings.values()):
            code = FAILED
    if as_json:
        listed = [
            {"check": check, "status": finding.status.value, "what": finding.what, "fix": finding.fix}
            for check, finding in findings.items()
        ]
        print(json.dumps({"exit_code": code, "findings": listed}, indent=2))
    else:
        _show(findings)
    raise typer.Exit(code)


def _show(findings: Mapping[str, Finding]) -> None:
    table = Table(show_header=False, box=None, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_column(overflow="fold")
    for check, finding in findings.items():
        word, style = _STYLES[finding.status]
        table.add_row(Text(word, style=style), Text(printable(check)), Text(printable(finding.what)))
        if finding.fix:
            table.add_row("", "", Text(f"→ {printable(finding.fix)}", style="bold"))
    numbers = Counter(finding.status for finding in findings.values())
    console = Console(highlight=False)
    console.print(table)
    console.print(", ".join(f"{numbers[status]} {status}" for status in Status if numbers[status]))
