"""The pages for operators and their programs: /metrics, /healthz and /readyz."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from service.http.vitals import Vitals
from telemetry.metrics.prometheus import Page
from telemetry.thread import in_daemon_thread

CURRENT = {"Cache-Control": "no-store"}


def endpoints(vitals: Vitals, page: Page | None) -> Starlette:
    """Return the app of all pages. Without a `page` of metrics, /metrics answers 404 with the reason.

    /healthz answers 200 while the process works, and /readyz while the depot takes calls. Else both answer 503 with the
    reason. The body is one line of text.
    """
    metrics = _metrics_of(page) if page is not None else _no_metrics
    there = ("/metrics", "/healthz", "/readyz") if page is not None else ("/healthz", "/readyz")
    not_found = f"nothing is here: kvdepot serves {', '.join(there[:-1])} and {there[-1]}"

    async def missing(request: Request, error: Exception) -> Response:
        return _text(not_found, 404)

    async def not_allowed(request: Request, error: Exception) -> Response:
        return PlainTextResponse("GET and HEAD are allowed\n", 405, {**CURRENT, "Allow": "GET, HEAD"})

    app = Starlette(
        routes=[
            Route("/metrics", metrics),
            Route("/healthz", _state(vitals.why_not_alive)),
            Route("/readyz", _state(vitals.why_not_ready)),
        ],
        exception_handlers={404: missing, 405: not_allowed},
    )
    app.router.redirect_slashes = False
    return app


def _metrics_of(page: Page) -> Callable[[Request], object]:
    making = asyncio.Lock()

    async def metrics(request: Request) -> Response:
        """Make the page in a thread: it waits for the depot's loop, and /healthz must not wait with it."""
        async with making:
            if await request.is_disconnected():
                return Response(status_code=499)
            accept, encoding = (request.headers.get(name, "") for name in ("accept", "accept-encoding"))
            made = await in_daemon_thread(partial(page.exposition, accept, encoding), "make metrics")
        headers = {"Content-Type": made.content_type, "Vary": "Accept, Accept-Encoding", **CURRENT}
        if made.is_gzip:
            headers["Content-Encoding"] = "gzip"
        return Response(made.body, headers=headers)

    return metrics


async def _no_metrics(request: Request) -> Response:
    return _text("the depot's settings serve no metrics here: it has none, or sends them to a collector", 404)


def _state(why_not: Callable[[], str]) -> Callable[[Request], object]:
    async def state(request: Request) -> Response:
        reason = why_not()
        return _text(reason or "ok", 503 if reason else 200)

    return state


def _text(line: str, status: int) -> Response:
    return PlainTextResponse(f"{line}\n", status, CURRENT)
