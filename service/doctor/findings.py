"""What a check has found, and how it is mended."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """How it is. A warning costs speed, safety or an engine; with a failure the depot can't do what is set."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report. ``mend`` says what to do about a warning or a failure."""

    check: str
    status: Status
    what: str
    mend: str = ""

    def as_json(self) -> dict[str, str]:
        """For programs."""
        return {"check": self.check, "status": self.status.value, "what": self.what, "mend": self.mend}


def ok(check: str, what: str) -> Finding:
    """All is well."""
    return Finding(check=check, status=Status.OK, what=what)


def warning(check: str, what: str, mend: str) -> Finding:
    """It works, but not as well as it should."""
    return Finding(check=check, status=Status.WARNING, what=what, mend=mend)


def failure(check: str, what: str, mend: str) -> Finding:
    """It does not work."""
    return Finding(check=check, status=Status.FAILURE, what=what, mend=mend)


def not_applicable(check: str, why: str) -> Finding:
    """Nothing to check with these settings, on this machine."""
    return Finding(check=check, status=Status.NOT_APPLICABLE, what=why)
