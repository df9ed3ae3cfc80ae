"""A clock for parts that take one."""

from __future__ import annotations


class Clock:
    """A clock in seconds. It starts at the same time in each run, and moves only when a test says so."""

    def __init__(self) -> None:
        self.now = 1024.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds
