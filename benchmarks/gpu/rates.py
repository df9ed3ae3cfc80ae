"""Rates of transfers and of the link, measured alternately."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from benchmarks.figures import Figure, Goal
from benchmarks.gpu.link import Link
from benchmarks.gpu.rig import Start, finish, in_turns

GOALS = {"store": Goal(at_least=0.95), "retrieve": Goal(at_least=0.95), "both": Goal(at_least=0.9)}
"""Fraction of the link's rate that each case must reach."""

LIMITS = {"store": "one pinned copy", "retrieve": "one pinned copy", "both": "pinned copies both ways at once"}


def rate(
    what: str, case: str, starts: Sequence[Start], num_bytes: int, link: Link, rounds: int, *, goal: Goal | None
) -> Figure:
    """Measure the bytes per second of transfers that start at once, and of the link."""
    linked, moved = in_turns(rounds, link.copies[case], partial(finish, starts))
    return Figure(
        what=what,
        unit="GB/s",
        values=[num_bytes / seconds / 1e9 for seconds in moved],
        baseline=LIMITS[case],
        baseline_values=[link.bytes_of(case) / seconds / 1e9 for seconds in linked],
        goal=goal,
    )
