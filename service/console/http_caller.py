"""Authenticates requests over HTTP as calls over gRPC are: by the bearer token, under the same rules."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any, cast

from starlette.requests import Request

from service.access.access import Access
from service.access.credentials import Caller, Context
from service.errors import DepotError

DENIED_SECONDS = 0.1  # so that a client that guesses tokens does not keep the depot busy
METHOD = "/console"


class HttpContext:
    """What authentication needs of a gRPC call, from a request. A browser's certificate names no tenant."""

    def __init__(self, request: Request) -> None:
        self._request = request

    def invocation_metadata(self) -> Sequence[tuple[str, str]]:
        """Return the headers that carry tokens."""
        return [("authorization", value) for value in self._request.headers.getlist("authorization")]

    def peer(self) -> str:
        """Return the peer as gRPC writes it."""
        host, port = self._request.client or ("unknown", 0)
        return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"

    def auth_context(self) -> dict[str, Any]:
        """Return nothing."""
        return {}


async def authenticated(request: Request, access: Access, loop: asyncio.AbstractEventLoop) -> Caller:
    """Return the caller. A denial is audited on the depot's loop, and raised after a moment.

    Raises: CredentialsMissing, TokenUnknown, TokenExpired, InsecureTransport.
    """
    context = HttpContext(request)
    try:
        return access.authenticate(cast(Context, context))
    except DepotError as error:
        if request.headers.get("authorization"):  # a page that has no token yet is no attack
            loop.call_soon_threadsafe(access.audit.denied, METHOD, context.peer(), "", error)
            await asyncio.sleep(random.uniform(0.5, 1.5) * DENIED_SECONDS)
        raise
