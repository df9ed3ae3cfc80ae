"""Units: sizes and durations as people write them, and refusals of similar texts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.units import DURATION_PATTERN, SIZE_PATTERN, format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("0", 0),
        ("4096", 4096),
        (4096, 4096),
        ("512B", 512),
        ("1KiB", 1024),
        ("1.5KiB", 1536),
        ("8GiB", 8 << 30),
        ("8Gi", 8 << 30),
        ("8gib", 8 << 30),
        (" 8 GiB ", 8 << 30),
        ("2TiB", 2 << 40),
        ("500MB", 500_000_000),
        ("500M", 500_000_000),
        ("3k", 3_000),
    ],
)
def test_a_size_has_iec_units_of_1024_and_si_units_of_1000(text: str | int, num_bytes: int) -> None:
    assert parse_size(text) == num_bytes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("1.5", 1.5),
        (60, 60.0),
        (0.25, 0.25),
        ("250ms", 0.25),
        ("60s", 60.0),
        ("5m", 300.0),
        ("5min", 300.0),
        ("2h", 7_200.0),
        ("1d", 86_400.0),
        ("60 S", 60.0),
    ],
)
def test_a_duration_is_in_seconds_unless_it_says_otherwise(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "GiB", "-1", "1e3", "8 G B", "8XiB", "0x10", "1,5MiB", "1.GiB", "8GiB8", "nan", "٣"]
)
def test_what_is_no_size_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="is not like 8GiB"):
        parse_size(text)


@pytest.mark.parametrize("text", ["", "s", "-1s", "1e3", "5 m s", "5y", "inf", "nan", "1m30s", "٣s", "5GiB"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="is not like 60s"):
        parse_duration(text)


@given(st.integers(0, 1 << 50) | st.integers(0, 1 << 10).map(lambda number: number << 40))
def test_a_formatted_size_is_read_back_exactly(num_bytes: int) -> None:
    assert parse_size(format_size(num_bytes)) == num_bytes


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0"), (1000, "1000"), (1 << 20, "1MiB"), (3 << 29, "1.5GiB"), ((20 << 30) + 1, str((20 << 30) + 1))],
)
def test_a_size_is_formatted_in_the_largest_unit_in_which_it_is_short(num_bytes: int, text: str) -> None:
    assert format_size(num_bytes) == text


@given(st.floats(0, 1e9) | st.integers(0, 10**6).map(float) | st.integers(0, 10**6).map(lambda ms: ms / 1_000))
def test_a_formatted_duration_is_read_back_exactly(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0s"), (0.25, "250ms"), (1.5, "1.5s"), (60.0, "60s"), (600.0, "10m"), (7_200.0, "2h"), (259_200.0, "3d")],
)
def test_a_duration_is_formatted_as_people_write_it(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.from_regex(SIZE_PATTERN, fullmatch=True))
def test_what_schemas_call_a_size_is_one(text: str) -> None:
    assert parse_size(text.removesuffix("\n")) >= 0


@given(st.from_regex(DURATION_PATTERN, fullmatch=True))
def test_what_schemas_call_a_duration_is_one(text: str) -> None:
    assert parse_duration(text.removesuffix("\n")) >= 0
