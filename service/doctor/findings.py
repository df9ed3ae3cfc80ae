"""What a check finds, and how to fix it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    """A warning costs speed, safety or an engine. With a failure the depot can't do what the settings ask for."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. A warning or a failure has a `fix`."""

    status: Status
    what: str
    fix: str = ""


def ok(what: str) -> Finding:
    """Return that the thing works well."""
    return Finding(Status.OK, what)


def warning(what: str, fix: str) -> Finding:
    """Return that the thing works, but not as well as it should."""
    return Finding(Status.WARNING, what, fix)


def failure(what: str, fix: str) -> Finding:
    """Return that the thing does not work."""
    return Finding(Status.FAILURE, what, fix)


def not_applicable(why: str) -> Finding:
    """Return that there is nothing to check with these settings on this machine."""
    return Finding(Status.NOT_APPLICABLE, why)
