"""The command: what was found as a table for people, or in JSON, and as an exit code for scripts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from kvdepot.cli.terminal import printable
from service.doctor.examination import examine
from service.doctor.findings import Finding, Status, failure
from service.doctor.gathering import gather
from service.setting_options import load_given
from service.settings import BadSettings

FAILED, BAD_SETTINGS = 1, 2

_STYLES = {
    Status.OK: ("ok", "green"),
    Status.WARNING: ("warning", "yellow"),
    Status.FAILURE: ("FAILURE", "bold red"),
    Status.NOT_APPLICABLE: ("n/a", "dim"),
}


def doctor(given: Mapping[str, Any], environment: Mapping[str, str], *, as_json: bool, strict: bool) -> None:
    """Examine this machine for the settings of `serve`, print, and exit: with 0 if nothing failed, else 1; 2: settings.

    With ``strict`` a warning counts as a failure.
    """
    code = 0
    try:
        settings = load_given(given)
    except BadSettings as error:
        what = "; ".join(str(error).splitlines())
        findings = [failure("settings", what, "see `python -m service serve --help`; nothing else was checked")]
        code = BAD_SETTINGS
    else:
        findings = examine(gather(settings, environment), settings)
        bad = {Status.FAILURE, Status.WARNING} if strict else {Status.FAILURE}
        if any(finding.status in bad for finding in findings):
            code = FAILED
    if as_json:
        print(json.dumps({"exit_code": code, "findings": [finding.as_json() for finding in findings]}, indent=2))
    else:
        _show(findings)
    raise typer.Exit(code)


def _show(findings: Sequence[Finding]) -> None:
    table = Table(show_header=False, box=None, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_column(overflow="fold")
    for finding in findings:
        word, style = _STYLES[finding.status]
        table.add_row(Text(word, style=style), Text(printable(finding.check)), Text(printable(finding.what)))
        if finding.mend:
            table.add_row("", "", Text(f"→ {printable(finding.mend)}", style="bold"))
    numbers = Counter(finding.status for finding in findings)
    told = ", ".join(f"{numbers[status]} {status}" for status in Status if numbers[status])
    console = Console(highlight=False)
    console.print(table)
    console.print(told)
