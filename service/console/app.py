"""The app of the console: its page, its files, and its questions under /api/. It answers GET and HEAD only."""

from __future__ import annotations

import ipaddress
import json
import logging
from functools import partial
from importlib.resources import files

import grpc
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access.access import Access
from service.console.answers import Answers
from service.console.asking import FRESH_SECONDS, DepotBusy, DepotLoop
from service.console.http_caller import authenticated
from service.errors import DepotError

logger = logging.getLogger(__name__)

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
CONTENTS_SECONDS = 5.0
SELDOM = ("l1", "sizing")  # these answers look at each chunk of L1, and at each simulation
HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.FAILED_PRECONDITION: 409,
}


def console_app(answers: Answers, access: Access, depot: DepotLoop, *, is_loopback: bool) -> Starlette:
    """Return the app. With `is_loopback` it answers requests for this machine's own names only.

    So a page of another site can't read it under a name that it lets point to 127.0.0.1.
    """
    static = {entry.name: entry.read_bytes() for entry in files("service.console").joinpath("static").iterdir()}

    async def file(request: Request) -> Response:
        name = request.path_params.get("name", "index.html")
        kind = KINDS.get(name[name.rfind(".") :])
        if name not in static or kind is None:
            return _error(404, "NOT_FOUND", "nothing is here")
        return Response(static[name], headers={"content-type": kind})

    async def api(request: Request) -> Response:
        name = request.path_params["question"]
        if name not in answers.questions:
            return _error(404, "NOT_FOUND", f"there are {', '.join(sorted(answers.questions))}")
        if request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return _error(403, "OTHER_SITE", "a page of another site may not read this")
        try:
            caller = await authenticated(request, access, depot.loop)
            query = dict(request.query_params)
            key = name, caller.tenant.name, caller.tenant.is_admin, tuple(sorted(query.items()))
            fresh_seconds = CONTENTS_SECONDS if name in SELDOM else FRESH_SECONDS
            body = await depot.ask(key, partial(answers.questions[name], caller, query), fresh_seconds)
        except DepotError as error:
            return _error(HTTP_STATUS.get(error.status, 500), error.reason, str(error))
        except DepotBusy as error:
            return _error(503, "DEPOT_BUSY", str(error))
        return Response(body, media_type="application/json")

    async def missing(request: Request, error: Exception) -> Response:
        return _error(404, "NOT_FOUND", "nothing is here: the console is at /")

    async def not_allowed(request: Request, error: Exception) -> Response:
        return _error(405, "READ_ONLY", "GET and HEAD are allowed", {"allow": "GET, HEAD"})

    async def failed(request: Request, error: Exception) -> Response:
        logger.error("ConsoleFailed path=%r", request.url.path, exc_info=error)
        return _error(500, "INTERNAL", "an unexpected error; the depot's log has the details")

    app = Starlette(
        routes=[
            Route("/", file),
            Route("/static/{name}", file),
            Route("/api/{question}", api),
        ],
        middleware=[Middleware(_Guarded, is_loopback=is_loopback)],
        exception_handlers={404: missing, 405: not_allowed, 500: failed},
    )
    app.router.redirect_slashes = False
    return app


class _Guarded:
    """Adds the headers that protect a page to each answer, and refuses requests for other hosts."""

    def __init__(self, app: ASGIApp, *, is_loopback: bool) -> None:
        self._app = app
        self._is_loopback = is_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", ()),
                    *((name.encode(), value.encode()) for name, value in HEADERS.items()),
                ]
            await send(message)

        app: ASGIApp = self._app
        if self._is_loopback and scope["type"] == "http" and not _is_this_machine(Request(scope)):
            app = _error(421, "OTHER_HOST", "this console answers for localhost only")
        await app(scope, receive, send_guarded)


def _is_this_machine(request: Request) -> bool:
    host = request.headers.get("host", "")
    name = host[1 : host.find("]")] if host.startswith("[") else host.partition(":")[0]
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _error(status: int, reason: str, message: str, headers: dict[str, str] | None = None) -> Response:
    body = json.dumps({"reason": reason, "message": message})
    return Response(body, status, headers, media_type="application/json")
