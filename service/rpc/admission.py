"""Admission: limits on running calls and open streams, for each tenant and in all. A drain refuses new ones."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from service.access.quota import Quota
from service.errors import Draining, TooManyRpcs


class Admission:
    """The running unary calls and the open long-lived streams. Only the event loop uses it.

    A unary call ends by itself: a drain waits for it. A long-lived stream is open for as long as its client wants.
    """

    def __init__(self, *, max_concurrent_rpcs: int, max_attachments: int) -> None:
        self.is_draining = False
        self.num_running = 0
        self.num_streams = 0
        self._max_concurrent_rpcs = max_concurrent_rpcs
        self._max_attachments = max_attachments
        self._num_busy_tenants = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __repr__(self) -> str:
        return f"<Admission, {self.num_running} calls of {self._num_busy_tenants} tenants, {self.num_streams} streams>"

    async def idle(self) -> None:
        """Wait until no unary call runs."""
        await self._idle.wait()

    def check_not_draining(self) -> None:
        """Refuse a call in a drain.

        Raises: Draining.
        """
        if self.is_draining:
            raise Draining("the depot is shutting down")

    def begin(self, quota: Quota) -> None:
        """Count a unary call of a tenant. `end` must follow."""
        self.num_running += 1
        self._idle.clear()
        self._num_busy_tenants += quota.num_running == 0
        quota.num_running += 1

    def end(self, quota: Quota) -> None:
        """Uncount a unary call that has ended."""
        quota.num_running -= 1
        self._num_busy_tenants -= quota.num_running == 0
        self.num_running -= 1
        if self.num_running == 0:
            self._idle.set()

    def check(self, quota: Quota) -> None:
        """Refuse the call that has begun if too many run.

        If all tenants together run too many, a tenant that has more than an even share is refused.

        Raises: Draining, TooManyRpcs.
        """
        self.check_not_draining()
        limit = quota.limits.max_concurrent_rpcs
        if quota.num_running > limit:
            raise TooManyRpcs(f"{limit} calls of the tenant are running")
        if (
            self.num_running > self._max_concurrent_rpcs
            and quota.num_running > self._max_concurrent_rpcs // self._num_busy_tenants
        ):
            raise TooManyRpcs(f"{self._max_concurrent_rpcs} calls are running")

    @contextmanager
    def stream(self, quota: Quota) -> Iterator[None]:
        """Count a long-lived stream of a tenant while the block runs.

        Raises: TooManyRpcs.
        """
        limit = quota.limits.max_attachments
        if quota.num_streams >= limit:
            raise TooManyRpcs(f"{limit} streams of the tenant are open")
        if self.num_streams >= self._max_attachments:
            raise TooManyRpcs(f"{self._max_attachments} streams are open")
        self.num_streams += 1
        quota.num_streams += 1
        try:
            yield
        finally:
            quota.num_streams -= 1
            self.num_streams -= 1
