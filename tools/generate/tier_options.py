"""The table of the options of tiers' addresses, for docs/settings.md."""

from __future__ import annotations

from service.tiers.address.options import OPTIONS, Option
from tools.generate.tables import table


def tier_options_table() -> str:
    """Return a row for each option, with the kinds of addresses that have it."""
    kinds_of: dict[tuple[str, Option], list[str]] = {}
    for kind, options in OPTIONS.items():
        for name, option in options.items():
            kinds_of.setdefault((name, option), []).append(kind)
    # What all have comes last, as what is the most common.
    rows = sorted(kinds_of.items(), key=lambda item: len(item[1]) == len(OPTIONS))
    return table(
        ("addresses", "option", "takes", "default", "meaning"),
        [_row("all", "name", "text", "what the address begins with", "name of the tier in metrics, logs and commands")]
        + [
            _row(
                "all" if len(kinds) == len(OPTIONS) else ", ".join(f"`{kind}://`" for kind in kinds),
                name,
                option.takes,
                "required" if option.is_required else f"`{option.shown_default}`" if option.shown_default else "",
                option.meaning,
            )
            for (name, option), kinds in rows
        ],
    )


def _row(kinds: str, name: str, takes: str, default: str, meaning: str) -> tuple[str, ...]:
    return kinds, f"`{name}`", takes, default, f"{meaning[0].upper()}{meaning[1:]}."
