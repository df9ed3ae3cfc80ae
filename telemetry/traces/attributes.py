"""The fields of an event as attributes of a span, under `kvdepot.…`, with their types."""

from __future__ import annotations

from dataclasses import fields

from telemetry.events import EVENT_TYPES, Event

AttributeValue = bool | int | float | str

PREFIX = "kvdepot."
INSTANCE_ID, SESSION_ID, TENANT = f"{PREFIX}instance_id", f"{PREFIX}session_id", f"{PREFIX}tenant"
PLAIN_TYPES = ("str", "int", "float", "bool")  # as annotations say
# A span has its own times and parent, and `ids_of` returns the ids.
NOT_FACTS = (*(field.name for field in fields(Event)), "duration_seconds", "traceparent", "parent_operation_id")


def ids_of(event: Event) -> dict[str, AttributeValue]:
    """Return the ids of the event: instance, session and tenant."""
    ids: dict[str, AttributeValue] = {INSTANCE_ID: event.instance_label, SESSION_ID: event.session_id}
    if event.tenant:
        ids[TENANT] = event.tenant
    return ids


def facts_of(event: Event) -> dict[str, AttributeValue]:
    """Return the event's own fields, without empty texts."""
    return {key: value for name, key in _ATTRIBUTES[type(event)] if (value := getattr(event, name)) != ""}


def _attributes(event_type: type[Event]) -> tuple[tuple[str, str], ...]:
    """Return the fields of an event that its started event does not have, with the attributes' names."""
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
