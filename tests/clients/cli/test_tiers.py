"""How a tier is shown to people: every state in a line, and what is wrong in a sentence."""

from __future__ import annotations

from typing import Any

import pytest

from kvdepot.cli import tiers
from kvdepot.v1 import admin_pb2, cache_pb2

AVAILABLE, FAILING = admin_pb2.TIER_STATE_AVAILABLE, admin_pb2.TIER_STATE_FAILING


def tier(**fields: Any) -> admin_pb2.TierStatus:
    given: dict[str, Any] = {"tier": cache_pb2.TIER_L2, "name": "disk", "kind": "disk", "state": AVAILABLE}
    return admin_pb2.TierStatus(**(given | fields))


def test_a_local_tier_says_how_full_it_is_and_what_it_found() -> None:
    traffic = admin_pb2.TierTraffic(num_asked_chunks=4, num_found_chunks=1, read_bytes_per_second=2e9)
    shown = tiers.line(tier(is_local=True, used_bytes=1 << 30, capacity_bytes=4 << 30, traffic=traffic))
    assert str(shown) == "25 % of 4 GiB full, found 25 %, reads 2 GB/s"


def test_a_remote_tier_that_did_nothing_is_available() -> None:
    assert str(tiers.line(tier())) == "available"


def test_damage_and_kills_stand_out() -> None:
    shown = tiers.line(tier(num_corrupt_chunks=2, traffic=admin_pb2.TierTraffic(num_killed_io_workers=3)))
    assert str(shown) == "2 chunks damaged, 3 killed"
    assert [str(span.style) for span in shown.spans] == ["bold red", "bold red"]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"state": FAILING}, "is failing"),
        ({"state": FAILING, "detail": "no\nanswer"}, r"is failing: no\nanswer"),
        (
            {"state": FAILING, "detail": "refused", "time_to_probe": {"seconds": 1, "nanos": 260_000_000}},
            "is failing, and is tried again in 1.3 s: refused",
        ),
        ({"state": FAILING, "time_to_probe": {"nanos": 10_000_000}}, "is failing, and is tried now"),
        ({"state": admin_pb2.TIER_STATE_OPENING}, "is not open yet"),
        ({"state": admin_pb2.TIER_STATE_UNUSABLE, "detail": "no such bucket"}, "can't be used: no such bucket"),
    ],
)
def test_a_tier_that_is_not_used_says_why(fields: dict[str, Any], text: str) -> None:
    shown = tier(**fields)
    assert str(tiers.line(shown)) == text
    assert tiers.is_in_trouble(shown)
    assert [str(line) for line in tiers.troubles(shown)] == [f"disk {text}"]


def test_what_went_wrong_is_counted_and_the_most_frequent_reason_is_first() -> None:
    traffic = admin_pb2.TierTraffic(
        num_reads_by_outcome={"arrived": 5, "absent": 6, "late": 1, "failed": 2},
        num_writes_by_outcome={"ok": 5, "full": 1, "failed": 2},
        num_dropped_writes_by_reason={"budget": 1, "queue full": 2_000, "evicted": 0},
        num_killed_io_workers=1,
    )
    [line] = tiers.troubles(tier(num_corrupt_chunks=1, traffic=traffic))
    assert str(line) == (
        "disk since the start: 1 chunk damaged, 1 read late, 2 reads failed, 3 writes did not arrive (failed 2, full 1)"
        ", 2,001 writes dropped (queue full 2,000, budget 1), 1 I/O worker killed"
    )


def test_a_healthy_tier_has_no_trouble() -> None:
    traffic = admin_pb2.TierTraffic(
        num_reads_by_outcome={"arrived": 5, "absent": 6, "unwanted": 1}, num_writes_by_outcome={"ok": 5}
    )
    assert list(tiers.troubles(tier(traffic=traffic))) == []


def test_the_l1_of_an_older_depot_has_its_name_and_its_bytes() -> None:
    old = admin_pb2.TierStatus(tier=cache_pb2.TIER_L1, used_bytes=1 << 20, capacity_bytes=1 << 30, num_chunks=3)
    [row] = tiers.rows([old])
    assert [str(cell) for cell in row[:6]] == ["l1", "–", "available", "1 MiB", "1 GiB", "3"]
    assert list(tiers.troubles(old)) == []
