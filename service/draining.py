"""Draining: refuse new calls, let the running ones end, and then end the attachments."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from service.depot.attach import Attacher
from service.depot.tenant_depots import TenantDepots
from service.http.vitals import Phase, Vitals
from service.rpc.admission import Admission
from service.rpc.health import HealthServicer

GRACE_SECONDS = 1.0
"""For attachments, and then for RPCs, to end by themselves after the drain."""


class Draining:
    """The drain of a server. `notice` is set when attachments tell their engines of it, `over` when they end.

    Until the notice, a drain can be undone.
    """

    def __init__(
        self, depots: TenantDepots, admission: Admission, health: HealthServicer, vitals: Vitals, attacher: Attacher
    ) -> None:
        self.notice = asyncio.Event()
        self.over = asyncio.Event()
        self._depots = depots
        self._admission = admission
        self._health = health
        self._vitals = vitals
        self._attacher = attacher

    def begin(self) -> None:
        """Take no new work. It may have begun already."""
        self._health.drain()
        self._vitals.phase = Phase.DRAINING
        self._admission.is_draining = True
        self._depots.set_draining(True)

    def undo(self) -> None:
        """Take new work again."""
        self._depots.set_draining(False)
        self._admission.is_draining = False
        self._vitals.phase = Phase.SERVING
        self._health.serve()

    @property
    def num_running(self) -> int:
        """The number of calls that run."""
        return self._admission.num_running

    async def calls_end(self, seconds: float) -> None:
        """Wait for the running calls, so many seconds at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._admission.idle()

    async def end_attachments(self) -> None:
        """End all attachments, and wait a moment for that."""
        self.over.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE_SECONDS):
                await self._attacher.all_detached()
