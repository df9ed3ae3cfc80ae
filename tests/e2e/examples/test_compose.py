"""The processes of the compose file, without containers: engines find prompts, and Prometheus finds the depot."""

from __future__ import annotations

import itertools
import socket
from contextlib import AbstractContextManager, closing
from pathlib import Path

import numpy as np
import pytest
import yaml

from examples.compose.engine import LAYOUT, MODEL_NAME, MODEL_REVISION, Engine, WrongBytes, conversations
from kvdepot import DepotClient
from kvdepot.cli.processes import Child, child
from tests.e2e.prometheus import needs_prometheus, prometheus
from tests.examples.test_compose import FOLDER, arguments
from tests.fakes.waiting import eventually

RULES = FOLDER / "../../helm/kvdepot/rules/alerts.yaml"


def depot(address: str, metrics_port: int = 0) -> AbstractContextManager[Child]:
    """Run the depot of the compose file. Its address is a variable, as in the image."""
    variables = {"KVDEPOT_LISTEN": address, "KVDEPOT_PROMETHEUS_PORT": str(metrics_port)}
    return child("the depot", "-m", "kvdepot", *arguments("depot"), variables=variables)


def engine(address: str, *flags: str) -> AbstractContextManager[Child]:
    return child("an engine", str(FOLDER / "engine.py"), address, *flags)


def read_until(process: Child, text: str) -> str:
    """Return the next line of a process that has a text."""
    return next(line for line in process.lines() if text in line)


@pytest.fixture
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"unix:{tmp_path_factory.mktemp('d')}/kvdepot.sock"


def test_an_engine_finds_what_another_one_stored_and_ends_after_the_given_requests(address: str) -> None:
    with depot(address) as server:
        read_until(server, address)
        with engine(address, "--requests", "3") as first:
            assert list(first.lines())[-1].startswith("3 requests")
        with engine(address, "--requests", "1") as second:
            *_, total = second.lines()
    assert not total.endswith(" 0% of them were in the depot")  # all prompts have the same beginning


def test_an_engine_attaches_again_to_a_depot_that_was_restarted(address: str) -> None:
    with depot(address) as server:
        read_until(server, address)
        with engine(address) as process:
            before = read_until(process, "is attached")
            server.end()
            read_until(process, "the next try is in")
            with depot(address):
                assert read_until(process, "is attached") != before


def test_an_engine_that_gets_other_bytes_says_so(address: str) -> None:
    prompt = next(conversations())
    forger = Engine()  # its blocks are empty
    with depot(address) as server:
        read_until(server, address)
        with DepotClient(address) as client:
            group = LAYOUT.from_tensors(list(forger.kv), forger.shared)
            with client.attach(
                instance_id="forger",
                model_name=MODEL_NAME,
                model_revision=MODEL_REVISION,
                groups=[group],
                regions=forger.shared.regions,
            ) as attachment:
                attachment.store("s", prompt.tolist(), [list(range(len(prompt) // 16))])
            with pytest.raises(WrongBytes, match="the retrieved KV is not that of its"):
                Engine().serve(client, itertools.repeat(prompt, 1))


def test_an_engine_reads_back_what_it_wrote_into_scattered_blocks() -> None:
    kv = np.random.default_rng(1).integers(0, 1 << 16, (4, 2, 40, 4, 32), np.uint16)
    own = Engine()
    own.write([7, 2, 9], kv)
    assert np.array_equal(own.read([7, 2, 9], 40), kv)


@needs_prometheus
async def test_prometheus_finds_the_depot_and_sees_its_hits(address: str, tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    config["global"] = {"scrape_interval": "200ms", "scrape_timeout": "200ms"}
    config["rule_files"] = [str(RULES)]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    with depot(address, port) as server:
        read_until(server, address)
        with engine(address) as process:
            read_until(process, "is attached")
            process.drain()
            async with prometheus(tmp_path, config=yaml.safe_dump(config)) as scraping:

                async def works() -> bool:
                    up = await scraping.query('up{job="kvdepot"} == 1')
                    found = await scraping.query("kvdepot_lookup_matched_tokens_total > 0")
                    return bool(up and found)

                await eventually(works)
