"""Figures of a stretch of time, and how they are drawn."""

from __future__ import annotations

from datetime import datetime

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console

from kvdepot import Credentials
from kvdepot.cli.activity_drawing import ActivityPage
from kvdepot.cli.activity_poll import DepotActivity
from kvdepot.cli.activity_view import History
from kvdepot.cli.readable import bytes_per_second, number, percent, seconds_text, share
from kvdepot.cli.sparkline import ASCII_BARS, cells, sparkline
from kvdepot.v1 import admin_pb2, cache_pb2, observability_pb2
from kvdepot.v1.observability_pb2 import ActivityBucket, ActivityGauges, GetActivityResponse, OperationActivity

START = 1_000_000
BOUNDS = (0.001, 0.002, 0.004)


def bucket(second: int, **fields: object) -> ActivityBucket:
    return ActivityBucket(start_time=Timestamp(seconds=START + second), **fields)  # type: ignore[arg-type]


def history(*buckets: ActivityBucket) -> History:
    made = History()
    made.add(GetActivityResponse(buckets=buckets, duration_bounds_seconds=BOUNDS))
    return made


def test_figures_are_of_the_last_seconds_only() -> None:
    shown = history(
        bucket(0, lookup_tokens=1_000, matched_tokens=1_000, num_evicted_chunks=9),
        bucket(50, lookup_tokens=100, matched_tokens=20, missed_tokens_by_reason={"evicted": 60, "cleared": 20}),
        bucket(60, lookup_tokens=100, matched_tokens=60, missed_tokens_by_reason={"evicted": 40}, stored_bytes=6_000),
    ).last(60)
    assert (shown.seconds, shown.lookup_tokens, shown.matched_tokens, shown.hit_ratio) == (60, 200, 80, 0.4)
    assert list(shown.missed_tokens_by_reason.items()) == [("evicted", 100), ("cleared", 20)]
    assert shown.store_bytes_per_second == 100.0
    assert shown.num_evicted_chunks == 0


def test_a_young_depot_has_figures_of_its_own_time() -> None:
    shown = history(bucket(0, stored_bytes=100), bucket(4, stored_bytes=100)).last(60)
    assert (shown.seconds, shown.store_bytes_per_second) == (5, 40.0)


def test_without_buckets_there_is_no_ratio_and_no_rate() -> None:
    shown = History().last(60)
    assert (shown.hit_ratio, shown.store_bytes_per_second, shown.store_copy_bytes_per_second) == (None, 0.0, None)
    assert shown.operations["lookup"].p99_seconds is None


def test_durations_of_all_buckets_make_the_quantiles() -> None:
    def lookups(first: int, *counts: int) -> OperationActivity:
        return OperationActivity(
            kind=cache_pb2.OPERATION_KIND_LOOKUP,
            num_operations=sum(counts),
            num_failed=1,
            first_duration_count=first,
            duration_counts=counts,
        )

    shown = history(bucket(0, operations=[lookups(1, 99)]), bucket(1, operations=[lookups(2, 1, 1)])).last(60)
    lookup = shown.operations["lookup"]
    assert (lookup.num_operations, lookup.num_failed, lookup.per_second) == (101, 2, 50.5)
    assert lookup.p50_seconds is not None and lookup.p99_seconds is not None
    assert 0.001 < lookup.p50_seconds < 0.002 < lookup.p99_seconds <= 0.004
    assert shown.operations["store"].p50_seconds is None


def test_the_rate_while_copying_is_over_the_time_of_transfers() -> None:
    shown = history(bucket(0, store_transfer_bytes=1_000, store_transfer_seconds=0.5), bucket(9)).last(60)
    assert shown.store_copy_bytes_per_second == 2_000.0
    assert shown.retrieve_copy_bytes_per_second is None


def test_lost_events_count_from_the_first_bucket_that_is_kept() -> None:
    shown = history(*(bucket(n, gauges=ActivityGauges(num_dropped_events=dropped)) for n, dropped in enumerate((3, 7))))
    assert shown.num_lost_events == 4
    shown.add(GetActivityResponse(buckets=[bucket(9, gauges=ActivityGauges(num_dropped_events=0))]))
    assert shown.num_lost_events == 0  # of a depot that restarted


def test_a_line_shows_each_stretch_of_time_in_its_cell() -> None:
    values = {100: 0.0, 103: 4.0, 104: 8.0, 109: 8.0}
    assert cells(values, 110, 10, 5) == [0.0, 4.0, 8.0, None, 8.0]
    assert cells(values, 110, 4, 8) == [None, None, None, None, None, None, 8.0, 8.0]
    assert sparkline([0.0, 4.0, 8.0, None, 16.0], 8.0) == "▁▅█ █"
    assert sparkline([0.0, 0.0], 0.0) == "▁▁"
    assert sparkline([0.0, 8.0], 8.0, bars=ASCII_BARS).isascii()


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (number(0), "0"),
        (number(999.6), "1 k"),
        (number(12_345), "12.3 k"),
        (number(1.5e15), "1.5e+03 T"),
        (percent(None), "–"),
        (percent(0.1234), "12.3 %"),
        (share(1, 1_000), "<1 %"),
        (share(0, 0), "0 %"),
        (bytes_per_second(0), "0 GB/s"),
        (bytes_per_second(512), "512 B/s"),
        (bytes_per_second(5e5), "0.5 MB/s"),
        (bytes_per_second(17.84e9), "17.8 GB/s"),
        (seconds_text(None), "–"),
        (seconds_text(12.3e-6), "12.3 µs"),
        (seconds_text(0.0042), "4.2 ms"),
        (seconds_text(3.21), "3.21 s"),
    ],
)
def test_numbers_are_short(shown: str, expected: str) -> None:
    assert shown == expected


def busy() -> DepotActivity:
    """Return a depot with more of everything than a small terminal has rows for."""
    depot = DepotActivity("127.0.0.1:50051", Credentials(), "")
    depot.history.add(
        GetActivityResponse(
            buckets=[
                bucket(
                    n,
                    lookup_tokens=10**9,
                    matched_tokens=10**8,
                    stored_bytes=10**10,
                    retrieved_bytes=10**10,
                    store_transfer_bytes=10**10,
                    store_transfer_seconds=0.5,
                    missed_tokens_by_reason={"never stored": 10**9, "rank missing": 7, "unknown identity": 3},
                    num_refused_stores_by_reason={"no slot": 3},
                    num_corrupt_chunks=2,
                    gauges=ActivityGauges(
                        l1_used_bytes=1 << 33,
                        l1_capacity_bytes=1 << 34,
                        num_instances=30,
                        num_attached_ranks=30,
                        num_missing_ranks=3,
                        num_dropped_events=n,
                    ),
                )
                for n in range(300)
            ],
            busiest_sessions=[
                observability_pb2.SessionActivity(instance_id="i" * 256, session_id=f"{n} " + "s" * 250, num_bytes=n)
                for n in range(20)
            ],
        )
    )
    ranks = [admin_pb2.AttachedRank(rank=0)]
    depot.instances = [
        admin_pb2.Instance(instance_id=f"pod-{n}", model_name="m" * 500, world_size=4 if n == 29 else 1, ranks=ranks)
        for n in range(30)
    ]
    depot.num_adopted_chunks = 42
    depot.failure, depot.answered = "no depot answers there", datetime(2026, 1, 2, 3, 4, 5)
    return depot


@pytest.mark.parametrize(("columns", "rows"), [(80, 24), (100, 50), (200, 60)])
def test_the_page_fits_the_terminal(columns: int, rows: int) -> None:
    console = Console(width=columns, height=rows, force_terminal=True, color_system=None)
    page = ActivityPage(busy(), datetime(2026, 1, 2, 3, 5))
    lines = console.render_lines(page, console.options.update_dimensions(columns, rows))
    unbounded = console.render_lines(page, console.options.update(width=columns, height=None), pad=False)
    text = "\n".join("".join(segment.text for segment in line) for line in lines)
    assert all(sum(segment.cell_length for segment in line) == columns for line in lines)
    shown = [line for line in text.splitlines() if line.strip()]
    assert len(shown) <= rows
    for part in (
        "adopted 42 chunks",
        "no answer since 03:04:05",
        "299 events were lost",
        "10.0 %",
        "50.0 %",
        "never stored",
        "no slot",
        "chunks were dropped",
    ):
        assert part in text
    assert "pod-29" in text and "1 of 4, without 1, 2, 3" in text, "an instance that lacks ranks comes first"
    assert "busiest sessions" in text and "0 sss" in text
    assert len(unbounded) > 24


def test_a_terminal_without_unicode_gets_other_bars() -> None:
    console = Console(width=80, height=24, color_system=None)
    options = console.options.update_dimensions(80, 24)
    options.encoding = "ascii"
    lines = console.render_lines(ActivityPage(busy(), datetime(2026, 1, 2, 3, 5)), options)
    assert "█" not in "".join(segment.text for line in lines for segment in line)
