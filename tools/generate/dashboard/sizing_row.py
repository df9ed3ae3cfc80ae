"""The row of the dashboard that shows what another size of L1 would have hit."""

from __future__ import annotations

from tools.generate.dashboard.panels import lines
from tools.generate.dashboard.queries import rate, total

_ASKED = rate("kvdepot_sizing_asked_tokens_total{DEPOT}")
_DEPOT_HIT = rate("kvdepot_sizing_depot_hit_tokens_total{DEPOT}")
_HIT = "kvdepot_sizing_hit_tokens_total{{DEPOT, {}}}"
_BY_SIZE = _HIT.format('policy="learned"')
_PRESENT = 'size="1x"'
_SAVED = 'kvdepot_sizing_prefill_saved_seconds_total{DEPOT, policy="learned"}'
_HIT_BYTES = 'kvdepot_sizing_hit_bytes_total{DEPOT, policy="learned"}'


def _of_asked(hit: str) -> str:
    """Return the share of the asked tokens."""
    return f"{hit} / scalar({_ASKED})"


def _more(factor: str) -> str:
    """Return what another size hits more than the present one."""
    other = rate(_HIT.format(f'policy="learned", size="{factor}"'))
    present = rate(_HIT.format(f'policy="learned", {_PRESENT}'))
    return f"({other} - {present}) / scalar({_ASKED})"


SIZING = (
    lines(
        "Hit ratio by size of L1",
        "Estimate: the share of the asked tokens that an L1 of this size would have hit. 1x is the present one. "
        "kvdepot sizing says the same with its error, and gives advice.",
        "percentunit",
        {"{{size}}": _of_asked(rate(_BY_SIZE, "size")), "the depot itself": _of_asked(_DEPOT_HIT)},
    ),
    lines(
        "More hits from another size",
        "Estimate: the share of the asked tokens that another size hits more than the present L1.",
        "percentunit",
        {"twice": _more("2x"), "4 times": _more("4x"), "8 times": _more("8x"), "half": _more("0.5x")},
        may_be_negative=True,
    ),
    lines(
        "Prefill saved by size of L1",
        "Estimate: seconds of prefill in each second that an L1 of this size would save. It counts engines that say "
        "how fast they compute.",
        "short",
        {"{{size}}": rate(_SAVED, "size")},
    ),
    lines(
        "Hit ratio by eviction policy",
        "Estimate: the share of the asked tokens that L1 would have hit with another policy.",
        "percentunit",
        {"{{policy}}": _of_asked(rate(_HIT.format(_PRESENT), "policy"))},
    ),
    lines(
        "Eviction policy in use",
        "Depots with this policy. With --eviction auto a depot changes it by itself.",
        "short",
        {"{{policy}}": total("kvdepot_eviction_policy{DEPOT}", "policy")},
    ),
    lines(
        "Bytes hit by size of L1",
        "Estimate: bytes of chunks in each second that an L1 of this size would have hit.",
        "Bps",
        {"{{size}}": rate(_HIT_BYTES, "size")},
    ),
)
