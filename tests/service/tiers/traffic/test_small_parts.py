"""The small parts of a tier: its rate, its budget, names that are absent, and its limits."""

from __future__ import annotations

import pytest

from service.tiers.address.address import TierAddress
from service.tiers.address.limits import TierLimits
from service.tiers.kinds import STORES
from service.tiers.traffic.known_absent import MAX_NAMES, KnownAbsent
from service.tiers.traffic.rates import Rate
from service.tiers.traffic.write_budget import WriteBudget
from tests.fakes.clock import Clock
from tests.fakes.tiers import key_of

MIB = 1 << 20


def test_a_rate_that_was_not_measured_is_none_and_reads_get_the_longest_bound() -> None:
    rate = Rate()
    assert rate.bytes_per_second is None and rate.seconds_for(1) is None
    assert rate.read_bound_seconds(1) == 2.0
    assert rate.batch_bytes(32 * MIB, 1.8) == 8 * MIB


def test_a_rate_follows_newer_jobs_and_small_ones_weigh_little() -> None:
    rate = Rate()
    rate.note(100 * MIB, 1.0)
    assert rate.bytes_per_second == 100 * MIB
    rate.note(4096, 0.001)  # 4 MB/s, but only a millisecond
    assert rate.bytes_per_second == pytest.approx(100 * MIB, rel=0.01)
    for _ in range(30):
        rate.note(50 * MIB, 1.0)
    assert rate.bytes_per_second == pytest.approx(50 * MIB, rel=0.01)
    rate.note(0, 5.0)
    assert rate.bytes_per_second == pytest.approx(50 * MIB, rel=0.01)


def test_a_read_is_given_up_after_four_times_its_usual_time_and_half_a_second() -> None:
    rate = Rate()
    rate.note(100 * MIB, 1.0)
    assert rate.read_bound_seconds(10 * MIB) == pytest.approx(0.5 + 0.4)
    assert rate.read_bound_seconds(1_000 * MIB) == 2.0
    assert rate.batch_bytes(100 * MIB, 1.8) == pytest.approx(45 * MIB, rel=0.01)


def test_a_budget_spreads_a_day_and_lets_an_hour_be_spent_at_once() -> None:
    clock = Clock()
    budget = WriteBudget(24 * MIB, clock)
    assert budget.take(MIB)
    assert not budget.take(1)
    clock.advance(1_800)
    assert budget.take(MIB // 2 - 1)
    assert not budget.take(MIB // 2)
    clock.advance(100 * 86_400)
    assert budget.take(MIB) and not budget.take(MIB)


def test_a_chunk_above_an_hours_share_is_paid_back_before_the_next() -> None:
    clock = Clock()
    budget = WriteBudget(24 * MIB, clock)
    assert budget.take(3 * MIB)
    clock.advance(3_600 * 2)
    assert not budget.take(MIB)
    clock.advance(3_600)
    assert budget.take(MIB)


def test_no_budget_is_no_limit() -> None:
    assert WriteBudget(0, Clock()).take(1 << 50)


def test_a_name_is_absent_for_thirty_seconds_or_until_it_is_written() -> None:
    clock = Clock()
    absent = KnownAbsent(clock)
    absent.add(b"a")
    absent.add(b"b")
    absent.discard(b"b")
    clock.advance(29)
    assert b"a" in absent and b"b" not in absent
    clock.advance(1)
    assert b"a" not in absent


def test_the_oldest_of_too_many_absent_names_is_forgotten() -> None:
    absent = KnownAbsent(Clock())
    for number in range(MAX_NAMES + 1):
        absent.add(key_of(number))
    assert len(absent) == MAX_NAMES
    assert key_of(0) not in absent and key_of(1) in absent


def test_limits_come_from_the_options_of_the_address() -> None:
    address = TierAddress.parse("valkey://host?read_workers=5&queue=1MiB&write_budget=2GiB")
    limits = TierLimits.of(address.options)
    assert limits == TierLimits(read_workers=5, queue_bytes=MIB, write_bytes_per_day=2 << 30)


def test_io_workers_get_the_credentials_of_their_own_tier_only() -> None:
    depot = {
        "AWS_SECRET_ACCESS_KEY": "s",
        "KVDEPOT_TOKEN": "t",
        "MC_RPC_PORT": "1",
        "PATH": "/bin",
        "https_proxy": "p",
        "CUDA_VISIBLE_DEVICES": "0",
    }
    common = {"PATH": "/bin", "https_proxy": "p"}
    assert STORES["s3"].environment(depot) == {**common, "AWS_SECRET_ACCESS_KEY": "s"}
    assert STORES["mooncake"].environment(depot) == {**common, "MC_RPC_PORT": "1"}
    assert STORES["disk"].environment(depot) == STORES["valkeys"].environment(depot) == common
