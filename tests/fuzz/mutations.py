"""Changes of a message, field by field along its descriptor, and of the bytes that it becomes on the wire."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from tests.fuzz import requests, values
from tests.fuzz.rpcs import Message
from tests.fuzz.things import Things

DESCEND = 0.7
MOST_DEPTH = 6
_UNKNOWN_FIELD = 2_000
_LAST_FIELD = (1 << 29) - 1
_REPEATS = (2, 3, 10, 100, 1_000, 10_000, 100_000, 1_000_000)


class Mutator:
    """Changes messages in place, and notes the full name of each field that was changed in `changed`.

    No repeated field grows beyond `most_bytes` on the wire, as far as its elements show.
    """

    def __init__(self, things: Things, random: Random, most_bytes: int) -> None:
        self._things = things
        self._random = random
        self._most_bytes = most_bytes
        self.changed: set[str] = set()

    def change(self, message: Message, depth: int = 0) -> None:
        """Change one field, of the message or of one below it."""
        fields = message.DESCRIPTOR.fields
        if not fields:
            return
        field = self._random.choice(fields)
        if field.message_type is not None and depth < MOST_DEPTH and self._random.random() < DESCEND:
            below = self._below(message, field)
            if below is not None:
                self.change(below, depth + 1)
                return
        self.changed.add(field.full_name)
        if field.is_repeated:
            self._change_repeated(message, field)
        elif field.message_type is not None:
            self._change_message(message, field)
        else:
            self._change_scalar(message, field)

    def _below(self, message: Message, field: values.Field) -> Message | None:
        if _is_map(field):
            return None
        if not field.is_repeated:
            return getattr(message, field.name)
        elements = getattr(message, field.name)
        return self._random.choice(elements) if elements else elements.add()

    def _change_scalar(self, message: Message, field: values.Field) -> None:
        if self._random.random() < 0.15:
            message.ClearField(field.name)
        else:
            setattr(message, field.name, self._scalar(field))

    def _scalar(self, field: values.Field) -> Any:
        if self._random.random() < 0.3:
            return requests.plausible(field, self._things, self._random)
        return values.scalar(field, self._random)

    def _change_message(self, message: Message, field: values.Field) -> None:
        part = getattr(message, field.name)
        what = self._random.random()
        if what < 0.4:
            message.ClearField(field.name)
        elif what < 0.6:
            part.Clear()
            part.SetInParent()
        else:
            share = self._random.choice((0.3, 0.8))
            part.CopyFrom(requests.made(type(part), self._things, self._random, share=share))

    def _change_repeated(self, message: Message, field: values.Field) -> None:
        """Change elements: fewer, more, many, another order, or one of them changed."""
        elements = getattr(message, field.name)
        if _is_map(field):
            elements.clear()
            return
        parts = list(elements)
        change = self._random.choice(
            (self._none, self._fewer, self._one_more, self._many, self._shuffled, self._replaced, self._replaced)
        )
        parts = change(field, parts)
        message.ClearField(field.name)
        getattr(message, field.name).extend(parts)

    def _element(self, field: values.Field) -> Any:
        if field.message_type is None:
            return self._scalar(field)
        return requests.made(field.message_type._concrete_class, self._things, self._random)

    def _none(self, field: values.Field, parts: list[Any]) -> list[Any]:
        return []

    def _fewer(self, field: values.Field, parts: list[Any]) -> list[Any]:
        return parts[: self._random.randrange(len(parts))] if parts else parts

    def _one_more(self, field: values.Field, parts: list[Any]) -> list[Any]:
        return [*parts, self._random.choice(parts) if parts and self._random.random() < 0.5 else self._element(field)]

    def _many(self, field: values.Field, parts: list[Any]) -> list[Any]:
        part = self._random.choice(parts) if parts and self._random.random() < 0.7 else self._element(field)
        most = max(1, self._most_bytes // _size_bytes(part))
        num_parts = min(most, self._random.choice(_REPEATS))
        if self._random.random() < 0.5:
            return [part] * num_parts
        return [_numbered(part, number) for number in range(num_parts)]

    def _shuffled(self, field: values.Field, parts: list[Any]) -> list[Any]:
        return self._random.sample(parts, len(parts))

    def _replaced(self, field: values.Field, parts: list[Any]) -> list[Any]:
        if not parts:
            return [self._element(field)]
        parts[self._random.randrange(len(parts))] = self._element(field)
        return parts


def _numbered(part: Any, number: int) -> Any:
    """Return an element like another, with a number in each text and instead of each number."""
    if isinstance(part, bool):
        return part
    if isinstance(part, int):
        return number
    if isinstance(part, str):
        return f"{number}{part[:16]}"
    if isinstance(part, bytes):
        return number.to_bytes(8, "little") + part[8:64]
    if not hasattr(part, "ListFields"):
        return part
    another = type(part)()
    another.CopyFrom(part)
    for field, value in part.ListFields():
        if field.message_type is None and not field.is_repeated and field.enum_type is None:
            setattr(another, field.name, _numbered(value, number))
    return another


def _size_bytes(part: Any) -> int:
    """Estimate the size of an element on the wire."""
    if isinstance(part, str | bytes):
        return len(part) + 2
    return part.ByteSize() + 2 if hasattr(part, "ByteSize") else 4


def _is_map(field: values.Field) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def rearranged(messages: list[Message], random: Random) -> list[Message]:
    """Return the messages of a stream: one is missing or there twice, the end is cut off, or the order is another."""
    change = random.randrange(5)
    at = random.randrange(len(messages)) if messages else 0
    if change == 0:
        return messages[:at] + messages[at + 1 :]
    if change == 1:
        return messages[: at + 1] + messages[at:]
    if change == 2:
        return messages[:at]
    if change == 3:
        return random.sample(messages, len(messages))
    return [*messages, random.choice(messages)] if messages else messages


# The wire: https://protobuf.dev/programming-guides/encoding


def varint(number: int) -> bytes:
    """Return a number as the wire has it."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*encoded, number))


def _tag(number: int, wire_type: int) -> bytes:
    return varint(number << 3 | wire_type)


def _unknown_fields(wire: bytes, random: Random) -> bytes:
    """Return fields of a later version: a varint, fixed64, some bytes, a group, fixed32."""
    number = random.choice((_UNKNOWN_FIELD, _LAST_FIELD))
    unknown = (
        _tag(number, 0) + varint((1 << 64) - 1),
        _tag(number, 1) + bytes(8),
        _tag(number, 2) + varint(4096) + bytes(4096),
        _tag(number, 3) + _tag(number + 1 if number == _UNKNOWN_FIELD else 1, 0) + b"\1" + _tag(number, 4),
        _tag(number, 5) + bytes(4),
    )
    return wire + b"".join(random.choices(unknown, k=random.choice((1, 3, 50))))


def _another_behind(wire: bytes, random: Random, message: Message) -> bytes:
    """Return the fields of two messages in one: single ones are there twice, and both members of a oneof."""
    behind: bytes = message.SerializeToString()
    return wire + behind


def _nested(wire: bytes, random: Random) -> bytes:
    """Return a field in a field, and so on, deeper than a parser goes."""
    number = random.choice((1, 3, 4, _UNKNOWN_FIELD))
    inner = b""
    for _ in range(random.choice((50, 150))):
        inner = _tag(number, 2) + varint(len(inner)) + inner
    return wire + inner


def _deep_groups(wire: bytes, random: Random) -> bytes:
    depth = random.choice((10, 200, 10_000))
    return wire + _tag(_UNKNOWN_FIELD, 3) * depth + _tag(_UNKNOWN_FIELD, 4) * depth


def _cut_off(wire: bytes, random: Random) -> bytes:
    return wire[: random.randrange(len(wire))] if wire else wire


def _flipped(wire: bytes, random: Random) -> bytes:
    changed = bytearray(wire)
    for _ in range(random.choice((1, 1, 4))):
        if changed:
            changed[random.randrange(min(len(changed), 200))] ^= 1 << random.randrange(8)
    return bytes(changed)


def _noise(wire: bytes, random: Random) -> bytes:
    return random.choice((b"", b"\xff" * 9, b"\0", random.randbytes(random.choice((1, 10, 1000)))))


def _not_utf8(wire: bytes, random: Random) -> bytes:
    return wire + _tag(1, 2) + b"\x02\xff\xfe"


def _another_wire_type(wire: bytes, random: Random) -> bytes:
    number = random.randint(1, 10)
    return wire + random.choice((_tag(number, 0) + b"\1", _tag(number, 1) + bytes(8), _tag(number, 5) + bytes(4)))


def _endless_length(wire: bytes, random: Random) -> bytes:
    return wire + _tag(random.randint(1, 10), 2) + random.choice((varint(1 << 31), varint((1 << 64) - 1), b"\xff" * 11))


CHANGES: Sequence[Callable[[bytes, Random], bytes]] = (
    _unknown_fields,
    _unknown_fields,
    _nested,
    _deep_groups,
    _cut_off,
    _flipped,
    _flipped,
    _noise,
    _not_utf8,
    _another_wire_type,
    _endless_length,
)


def changed_wire(wire: bytes, other: Message, random: Random) -> bytes:
    """Return bytes that no generated code writes, a message or not. `other` is one of the same kind."""
    if random.random() < 0.25:
        return _another_behind(wire, random, other)
    return random.choice(CHANGES)(wire, random)


def larger(wire: bytes, num_bytes: int) -> bytes:
    """Return a message of more than so many bytes, most of them in an unknown field."""
    return wire + _tag(_UNKNOWN_FIELD, 2) + varint(num_bytes) + bytes(num_bytes)


def is_message(request: type[Message], wire: bytes) -> bool:
    """Return whether a parser accepts the bytes."""
    try:
        request.FromString(wire)
    except Exception:
        return False
    return True
