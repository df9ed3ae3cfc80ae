"""Collects what is wrong with a request."""

from __future__ import annotations

from collections.abc import Sized
from typing import Protocol

from service.errors import FieldViolation, InvalidRequest

MAX_UTF8_BYTES = 4  # of a character
MAX_ID_BYTES = 256


class WithIds(Protocol):
    """A message that names a session of an instance."""

    @property
    def instance_id(self) -> str: ...
    @property
    def session_id(self) -> str: ...


class Violations:
    """The violations of a request, collected so that a client gets all of them in one answer."""

    def __init__(self) -> None:
        self._violations: list[FieldViolation] = []

    def add(self, field: str, description: str) -> None:
        """Note a violation of a field."""
        self._violations.append(FieldViolation(field, description))

    def check_text(self, field: str, value: str, *, max_bytes: int, required: bool = True) -> None:
        """Note whether a string is missing or too long."""
        if 0 < len(value) <= max_bytes // MAX_UTF8_BYTES:
            return
        if required and not value:
            self.add(field, "is missing")
        if len(value.encode()) > max_bytes:
            self.add(field, f"is longer than {max_bytes} bytes")

    def check_ids(self, message: WithIds, path: str = "") -> None:
        """Note whether an id is missing or too long."""
        self.check_text(f"{path}instance_id", message.instance_id, max_bytes=MAX_ID_BYTES)
        self.check_text(f"{path}session_id", message.session_id, max_bytes=MAX_ID_BYTES)

    def check_length(self, field: str, values: Sized, max_length: int) -> None:
        """Note whether a repeated field is too long. Check it before you iterate over the field."""
        if len(values) > max_length:
            self.add(field, f"has {len(values)}, more than {max_length}")

    def raise_any(self) -> None:
        """Raise the violations, if any were noted.

        Raises: InvalidRequest.
        """
        if self._violations:
            raise InvalidRequest(*self._violations)
