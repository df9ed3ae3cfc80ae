"""The facts of an event as attributes of a span, under ``kvdepot.…``, with the types that they have."""

from __future__ import annotations

from dataclasses import fields

from telemetry.events import EVENT_TYPES, Event

Plain = bool | int | float | str

PREFIX = "kvdepot."
INSTANCE_ID, SESSION_ID, TENANT = f"{PREFIX}instance_id", f"{PREFIX}session_id", f"{PREFIX}tenant"
PLAIN_TYPES = ("str", "int", "float", "bool")  # as annotations say
# What a span has of its own, times and parent; and what `ids_of` tells.
NOT_FACTS = (*(field.name for field in fields(Event)), "duration_seconds", "traceparent", "parent_operation_id")


def ids_of(event: Event) -> dict[str, Plain]:
    """Whose it is."""
    ids: dict[str, Plain] = {INSTANCE_ID: event.instance_label, SESSION_ID: event.session_id}
    if event.tenant:
        ids[TENANT] = event.tenant
    return ids


def facts_of(event: Event) -> dict[str, Plain]:
    """The event's own fields; a text that is empty says that there is none."""
    return {key: value for name, key in _ATTRIBUTES[type(event)] if (value := getattr(event, name)) != ""}


def _attributes(event_type: type[Event]) -> tuple[tuple[str, str], ...]:
    """The fields of an event that tell something new, with the attributes' names."""
    known = set(NOT_FACTS)
    if event_type.__name__.endswith("Finished"):
        started = EVENT_TYPES[f"{event_type.__name__.removesuffix('Finished')}Started"]
        known.update(field.name for field in fields(started))
    return tuple(
        (field.name, f"{PREFIX}{field.name}")
        for field in fields(event_type)
        if field.name not in known and field.type in PLAIN_TYPES
    )


_ATTRIBUTES = {event_type: _attributes(event_type) for event_type in EVENT_TYPES.values()}
