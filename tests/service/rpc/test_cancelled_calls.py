"""A call that its client cancels at its deadline is late, also if the cancel arrives before the server's timer ends."""

from __future__ import annotations

import asyncio
from typing import cast

import grpc
import pytest

from service.access.credentials import Context
from service.rpc.status import LATE_CANCEL_SECONDS, status_of


class EndedCall:
    """A call's context at its end."""

    def __init__(self, remaining_seconds: float | None, code: int = 0) -> None:
        self._remaining_seconds = remaining_seconds
        self._code = code

    def time_remaining(self) -> float | None:
        return self._remaining_seconds

    def cancelled(self) -> bool:
        return False

    def code(self) -> int:
        return self._code


@pytest.mark.parametrize(
    ("remaining_seconds", "status"),
    [
        (None, "CANCELLED"),
        (0.0, "DEADLINE_EXCEEDED"),
        (LATE_CANCEL_SECONDS, "DEADLINE_EXCEEDED"),
        (LATE_CANCEL_SECONDS * 1.01, "CANCELLED"),
    ],
)
def test_a_cancel_close_to_the_deadline_is_the_deadlines(remaining_seconds: float | None, status: str) -> None:
    context = cast(Context, EndedCall(remaining_seconds))
    assert status_of(asyncio.CancelledError(), context).name == status


def test_an_error_close_to_the_deadline_keeps_its_status() -> None:
    not_found: int = grpc.StatusCode.NOT_FOUND.value[0]
    for remaining_seconds, status in ((LATE_CANCEL_SECONDS / 2, "NOT_FOUND"), (0.0, "DEADLINE_EXCEEDED")):
        context = cast(Context, EndedCall(remaining_seconds, not_found))
        assert status_of(ValueError(), context).name == status
