"""The operators' manual: its numbers match a real depot, and its links have targets."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from kvdepot import DepotClient, KvShape
from kvdepot.layout import layouts

REPOSITORY = Path(__file__).parents[3]
PAGE = REPOSITORY / "docs/operations.md"
ROW = re.compile(
    r"^\| (.+?) \| (\d+) \| (\d+|latent) \| (\d+) \| 2 \| ([\d,]+) \| ([\d.]+) \| ([\d,]+) \|$", re.MULTILINE
)
CHUNK_SIZE, L1_BYTES = 256, 64 << 30


def test_a_token_takes_what_the_table_says(start_server_process: Callable[..., str]) -> None:
    rows = ROW.findall(PAGE.read_text())
    assert len(rows) >= 4
    address = start_server_process("--l1-size", "128MiB", "--l1-huge-pages", "none")
    with DepotClient(address) as client:
        for model, num_layers, num_heads, head_size, token_bytes, chunk_mib, num_tokens in rows:
            latent = num_heads == "latent"
            shape = KvShape(
                num_layers=int(num_layers),
                num_blocks=1,
                block_size=16,
                num_heads=1 if latent else int(num_heads),
                head_size=int(head_size),
                dtype="float16",
            )
            layout = layouts.NL_X_NB_BS_HS if latent else layouts.NL_X_TWO_NB_BS_NH_HS
            group = layout.without_memory(shape)
            with client.attach(instance_id=model, model_name=model, groups=[group]) as attachment:
                assert attachment.chunk_bytes == int(token_bytes.replace(",", "")) * CHUNK_SIZE, model
                assert attachment.chunk_bytes == float(chunk_mib) * (1 << 20), model
                assert L1_BYTES // attachment.chunk_bytes * CHUNK_SIZE == int(num_tokens.replace(",", "")), model


def anchors(page: Path) -> set[str]:
    """Return the headings of a page, as links name them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ["engine.md", "operations.md", "debugging.md", "settings.md"])
def test_every_link_leads_somewhere(name: str) -> None:
    page = REPOSITORY / "docs" / name
    for target in re.findall(r"\]\(((?!http)[^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_panels_that_it_names_are_on_the_dashboard() -> None:
    dashboard = json.loads((REPOSITORY / "helm/kvdepot/dashboards/kvdepot.json").read_text())
    titles = {panel["title"] for panel in dashboard["panels"]}
    runbook = PAGE.read_text().partition("## Alerts")[2]
    named = {" ".join(name.split()) for name in re.findall(r"(?<!\*)\*([A-Z][^*]+)\*(?!\*)", runbook)}
    assert len(named) > 5
    assert named <= titles
