"""The console of one server: where it listens, and who may read it."""

from __future__ import annotations

import asyncio
import ipaddress
import logging

from service.access.access import Access
from service.console.answers import Answers as Answers
from service.console.app import console_app
from service.console.asking import DepotLoop
from service.console.tls import tls_context
from service.http.server import HttpServer
from service.load_settings import BadSettings
from service.settings import Settings

logger = logging.getLogger(__name__)


class Console:
    """The page at `url`. Made on the depot's event loop. It serves from `start` on, in a thread of its own.

    Raises: CannotListen, BadSettings.
    """

    def __init__(self, settings: Settings, access: Access) -> None:
        host = settings.console_host
        self._is_loopback = _is_loopback(host)
        self._access = access
        is_plain = access.certificate is None
        if access.tenants is not None and is_plain and not (self._is_loopback or settings.tokens_over_plain_tcp):
            raise BadSettings(
                f"console_host: with tenants, others could read tokens on the way to {host}: also set tls_cert and "
                "tls_key, or serve the console on 127.0.0.1"
            )
        self._http = HttpServer(host, settings.console_port, purpose="the console")
        self.url = f"{'http' if is_plain else 'https'}://{self._http.address}/"

    def start(self, answers: Answers) -> None:
        """Serve from here on."""
        certificate = self._access.certificate
        app = console_app(answers, self._access, DepotLoop(asyncio.get_running_loop()), is_loopback=self._is_loopback)
        self._http.start(app, tls_context(lambda: certificate.value) if certificate is not None else None)
        logger.info("serves the console on %s", self.url)
        if self._access.tenants is None and not self._is_loopback:
            logger.warning(
                "NO AUTHENTICATION of the console on %s: everybody can see the names and the sessions of all engines. "
                "Set tenants, or serve it on 127.0.0.1",
                self.url,
            )

    async def close(self) -> None:
        """Serve no more."""
        await self._http.close()


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
