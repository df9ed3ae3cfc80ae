"""docs/events.md: each type of event with its fields, from the classes and their docstrings."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import fields

from telemetry.events import EVENT_TYPES, BlockAllocation, Event, TransferStep
from telemetry.kinds import Outcome
from tools.generate.tables import GENERATED, table

Record = type[Event] | type[BlockAllocation] | type[TransferStep]

_INTRODUCTION = f"""\
{GENERATED}
# Events

The depot publishes what happens as events. `WatchEvents` streams them, the log has lines of them, and metrics and spans
are made from them. Your own subscribers receive them as well. Events are in the past tense. Work that takes time is a
pair, a `…Started` and a `…Finished` event with one `operation_id`, which no other work has. If the second event of a
pair is missing, it was dropped: the queue is bounded, and `kvdepot_events_dropped_total` counts dropped events.

An `outcome` is one of {", ".join(f"`{outcome}`" for outcome in Outcome)}. Durations are in seconds of a clock that
never jumps. `WatchEvents` and the log show bytes as hexadecimal digits, and of an array only its length, as `num_…`.
"""


def events_page() -> str:
    """Return the whole page."""
    parts = [_INTRODUCTION, "## What every event has\n", _fields(Event)]
    parts += ["", "## Types\n"]
    parts.append(
        table(("type", "when it is published"), ((_linked(name), _doc(EVENT_TYPES[name])[0]) for name in EVENT_TYPES))
    )
    for name, event_type in EVENT_TYPES.items():
        parts += ["", *_section(name, event_type)]
    parts += ["", "## Parts of events"]
    for part in (TransferStep, BlockAllocation):
        parts += ["", *_section(part.__name__, part)]
    return "\n".join(parts) + "\n"


def _section(name: str, record: Record) -> list[str]:
    own_fields = _fields(record)
    paragraphs = _doc(record)
    pair = _pair(name)
    if pair:
        paragraphs.append(f"Pairs with {_linked(pair)}.")
    return [f"### {name}\n", "\n\n".join(paragraphs), *(["", own_fields] if own_fields else [])]


def _pair(name: str) -> str:
    """Return the other event of a pair. Empty for an event without one."""
    for one, other in (("Started", "Finished"), ("Finished", "Started")):
        pair = name.removesuffix(one) + other
        if name.endswith(one) and pair in EVENT_TYPES:
            return pair
    return ""


def _linked(name: str) -> str:
    return f"[{name}](#{name.lower()})"


def _doc(record: Record) -> list[str]:
    """Return the paragraphs of the docstring, each on one line."""
    doc = inspect.cleandoc(record.__doc__ or "")
    return [" ".join(paragraph.split()).replace("``", "`") for paragraph in doc.split("\n\n")]


def _fields(record: Record) -> str:
    """Return the fields that a class adds, each with the string that follows it. Empty if it adds none."""
    common = set() if record is Event else {field.name for field in fields(Event)}
    rows = [
        (f"`{node.target.id}`", f"`{_type(node.annotation)}`", _field_doc(following))
        for node, following in _statements(record)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id not in common
    ]
    return table(("field", "type", ""), rows) if rows else ""


def _statements(record: Record) -> list[tuple[ast.stmt, ast.stmt | None]]:
    """Return each statement of a class, with the one after it."""
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(record))).body
    assert isinstance(definition, ast.ClassDef)
    return list(zip(definition.body, [*definition.body[1:], None], strict=True))


def _field_doc(statement: ast.stmt | None) -> str:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return " ".join(str(statement.value.value).split()).replace("``", "`")
    return ""


def _type(annotation: ast.expr) -> str:
    return ast.unparse(annotation).replace("npt.NDArray[np.", "array[")
