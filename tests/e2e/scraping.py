"""A server's page of metrics, as a scraper sees it."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Sequence
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from service.server import Server
from telemetry.delivery import Subscriber
from telemetry.events import Event
from tests.e2e.engines import Engine, prompt
from tests.fakes.waiting import eventually

OF_A_HISTOGRAM = ("_bucket", "_count", "_sum")


class Page:
    """A scraped page: its `text`, and the `names` of its metrics."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.names: set[str] = set()
        self._values: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in text_string_to_metric_families(text):
            self.names.add(f"{family.name}_total" if family.type == "counter" else family.name)
            for sample in family.samples:
                at = (sample.name, frozenset(sample.labels.items()))
                assert at not in self._values, f"{at} stands there twice"
                self._values[at] = sample.value

    def value(self, name: str, **labels: str) -> float | None:
        """Return the value of the line with exactly these labels; None if there is none."""
        return self._values.get((name, frozenset(labels.items())))

    def sum(self, name: str, **labels: str) -> float:
        """Return the sum of all lines of a name with these labels."""
        return sum(
            value for (other, at), value in self._values.items() if other == name and labels.items() <= dict(at).items()
        )

    def labels(self, name: str, label: str) -> set[str]:
        """Return the values of a label in all lines of a name."""
        return {dict(at)[label] for other, at in self._values if other == name}


def get(address: str, path: str = "/metrics", **headers: str) -> str:
    """Return the body of a page.

    Raises: urllib.error.HTTPError for any status but 200.
    """
    request = urllib.request.Request(f"http://{address}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=20) as answer:
        text: str = answer.read().decode()
        return text


async def scrape(server: Server, **headers: str) -> Page:
    """Return the page when everything that was published has been counted."""
    assert server.bus is not None
    assert server.prometheus_address is not None
    bus = server.bus
    await eventually(lambda: bus.stats().depth == 0)
    return Page(await asyncio.to_thread(get, server.prometheus_address, **headers))


def measured(**flags: Any) -> dict[str, Any]:
    """Return flags of a server that serves metrics, on a port of its own."""
    return {"chunk_size": 16, "disable_metrics": False, "prometheus_port": 0, **flags}


async def work(engine: Engine, session_id: str, num_tokens: int, seed: int) -> None:
    """Store a prompt, look it up, retrieve it."""
    await engine.store(session_id, prompt(num_tokens, seed), engine.kv(num_tokens, seed))
    found = await engine.lookup(session_id, prompt(num_tokens, seed))
    await engine.retrieve(session_id, found.lease, found.matched_tokens)


class Failing(Subscriber):
    """Takes nothing."""

    name = "failing"

    def handle(self, batch: Sequence[Event]) -> None:
        raise RuntimeError("no")
