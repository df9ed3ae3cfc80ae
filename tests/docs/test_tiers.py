"""The page of tiers shows addresses that the server takes, and the reasons of misses that lookups give."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.tiers.address.address import KINDS, TierAddress
from service.tiers.snapshot import TierState
from service.tiers.write_policy import WritePolicy
from telemetry.kinds import MissReason

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "tiers.md").read_text()
ADDRESSES = sorted(set(re.findall(rf"(?:{'|'.join(KINDS)})://[^\s`']+", PAGE)) - {f"{kind}://" for kind in KINDS})


@pytest.mark.parametrize("url", ADDRESSES)
def test_each_address_is_one(url: str) -> None:
    assert str(TierAddress.parse(url))


def test_there_is_an_address_of_each_kind() -> None:
    assert {TierAddress.parse(url).kind for url in ADDRESSES} >= {"disk", "s3", "valkey", "valkeys", "mooncake"}


def test_each_policy_has_its_line() -> None:
    assert re.findall(r"^\| `([\w-]+)`", PAGE, re.MULTILINE)[: len(WritePolicy)] == [
        policy.value for policy in WritePolicy
    ]


def test_reasons_and_states_are_those_that_users_see() -> None:
    known = {*MissReason, *TierState, "damaged", "budget", "full"}
    named = set(re.findall(r"(?<!\*)\*([a-z ]+)\*(?!\*)", PAGE)) - {"t", "above"}
    assert named <= known
    assert {MissReason.TIER_LATE, MissReason.TIER_FAILED, MissReason.TIER_SLOWER_THAN_PREFILL} <= named


def test_the_settings_have_a_line_for_each_option() -> None:
    page = (DOCS / "settings.md").read_text()
    assert "| `disk://` | `size` | size | required |" in page
    assert "| all | `queue` | size | `256MiB` |" in page
