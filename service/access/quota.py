"""A tenant's running calls, open streams and bytes in flight, with its limits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from service.access.tenants import TenantLimits
from service.errors import TooManyBytes


class Quota:
    """The calls, streams and bytes of one tenant. Only the event loop uses it."""

    def __init__(self, tenant: str, limits: TenantLimits) -> None:
        self.tenant = tenant
        self.limits = limits
        self.num_running = 0
        self.num_streams = 0
        self.bytes_in_flight = 0
        self.num_refused: Counter[str] = Counter()
        """Calls that a limit refused, by the reason of the error."""

    def __repr__(self) -> str:
        return f"<Quota {self.tenant!r}: {self.num_running} calls, {self.bytes_in_flight} bytes in flight>"

    @contextmanager
    def in_flight(self, num_bytes: int) -> Iterator[None]:
        """Count `num_bytes` as in flight while the block runs. A transfer that is larger than the limit may run alone.

        Raises: TooManyBytes.
        """
        if self.bytes_in_flight and self.bytes_in_flight + num_bytes > self.limits.max_bytes_in_flight:
            raise TooManyBytes(
                f"{self.bytes_in_flight} bytes are in flight; with these {num_bytes} it would be more than "
                f"{self.limits.max_bytes_in_flight}"
            )
        self.bytes_in_flight += num_bytes
        try:
            yield
        finally:
            self.bytes_in_flight -= num_bytes
