"""A real Prometheus that scrapes a depot."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import urllib.error
import urllib.parse
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.e2e.scraping import get
from tests.fakes.real_servers import needs

CONFIG = """
global: {{scrape_interval: 100ms, scrape_timeout: 100ms}}
scrape_configs: [{{job_name: kvdepot, static_configs: [{{targets: {targets}}}]}}]
"""

needs_prometheus = needs("prometheus")


class Prometheus:
    """Answers queries, at an address."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return labels and value of each series of the answer; none while Prometheus starts."""
        path = f"/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
        try:
            answer = json.loads(await asyncio.to_thread(get, self._address, path))
        except (urllib.error.URLError, ConnectionError) as error:
            if isinstance(error, urllib.error.HTTPError) and error.code == 400:
                raise AssertionError(f"{expression}: {error.read().decode()}") from error
            return []
        return [(each["metric"], float(each["value"][1])) for each in answer["data"]["result"]]


@asynccontextmanager
async def prometheus(folder: Path, *targets: str, config: str = "") -> AsyncIterator[Prometheus]:
    """Run a Prometheus with its data in a folder, during the block.

    It scrapes targets ten times a second, or as its configuration says.
    """
    file = folder / "prometheus.yml"
    file.write_text(config or CONFIG.format(targets=json.dumps(targets)))
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    process: Any = await asyncio.create_subprocess_exec(
        "prometheus",
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield Prometheus(address)
    finally:
        process.kill()
        await process.wait()
