"""Why a command failed, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a command failed: a sentence without a full stop, and a hint."""

    problem: str
    hint: str

    def __str__(self) -> str:
        return f"{self.problem}\nhint: {self.hint}"
