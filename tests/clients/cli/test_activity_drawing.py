"""The page of `top` fits the terminal, whatever there is to show."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from rich.console import Console

from kvdepot import Credentials
from kvdepot.cli.activity_drawing import ActivityPage
from kvdepot.cli.activity_poll import DepotActivity
from kvdepot.v1 import admin_pb2, cache_pb2, observability_pb2


@pytest.mark.parametrize("num_tiers", [0, 1, 3])
def test_a_terminal_of_24_rows_has_space_for_tiers_instances_and_sessions(num_tiers: int) -> None:
    depot = DepotActivity("depot", Credentials(), "")
    depot.instances = [admin_pb2.Instance(instance_id=f"pod-{number}", world_size=1) for number in range(9)]
    depot.tiers = [
        admin_pb2.TierStatus(tier=cache_pb2.TIER_L2, name=f"tier-{number}", state=admin_pb2.TIER_STATE_FAILING)
        for number in range(num_tiers)
    ]
    sessions = [observability_pb2.SessionActivity(session_id=f"request-{number}") for number in range(20)]
    depot.history.add(observability_pb2.GetActivityResponse(busiest_sessions=sessions))
    console = Console(width=80, height=24, force_terminal=True, color_system=None)
    with console.capture() as shown:
        console.print(ActivityPage(depot, datetime(2026, 1, 1, tzinfo=UTC)), height=24)
    lines = shown.get().splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    for text in ("L1 filled", "attached", "pod-0", "request-0", *(f"tier-{each}" for each in range(num_tiers))):
        assert any(text in line for line in lines), text
