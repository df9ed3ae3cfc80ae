"""Numbers for people: counts, shares, rates and durations in three digits."""

from __future__ import annotations


def number(value: float) -> str:
    """Return a count with k, M, G or T, in powers of 1000."""
    for unit in ("", " k", " M", " G"):
        if abs(value) < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:,.3g} T"


def percent(ratio: float | None) -> str:
    """Return a ratio in percent, and a dash where there is none."""
    return "–" if ratio is None else f"{ratio * 100:.1f} %"


def share(part: float, whole: float) -> str:
    """Return a part in whole percent. One that is not 0 is never shown as 0 %."""
    rounded = round(100 * part / whole) if whole else 0
    return f"{rounded} %" if rounded or not part else "<1 %"


def bytes_per_second(rate: float) -> str:
    """Return a rate in GB/s, and a low one in MB/s or B/s."""
    if rate and rate < 1e4:
        return f"{rate:.3g} B/s"
    if rate and rate < 1e7:
        return f"{rate / 1e6:.3g} MB/s"
    return f"{rate / 1e9:.3g} GB/s"


def seconds_text(seconds: float | None) -> str:
    """Return a duration in µs, ms or s, and a dash where there is none."""
    if seconds is None:
        return "–"
    if seconds < 0.9995e-3:
        return f"{seconds * 1e6:.3g} µs"
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"
