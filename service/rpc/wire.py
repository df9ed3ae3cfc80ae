"""Parses messages. Protobuf parses a message in one go: 16 MB of empty records hold the event loop for half a second.

So the fields of a long message are counted before it is parsed, in slices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import numpy as np
from google.protobuf.message import Message

from service.depot.slices import Slices
from service.errors import invalid
from service.rpc.limits import MAX_FIELDS, max_count

SHORT_BYTES = 64 << 10
"""A message that is not longer is parsed at once. With fields of two bytes, that takes 2 ms."""

_STEPS_AT_ONCE = 256
_MAX_VARINT_BYTES = 10
_MAX_WINDOW = 1 << 16
_VARINT, _FIXED64, _LENGTH_DELIMITED, _GROUP, _END_GROUP, _FIXED32 = range(6)
_SIZES = {_FIXED64: 8, _FIXED32: 4, _GROUP: 0, _END_GROUP: 0}
_NO_NUMBER = 1 << 70 | 7  # its wire type does not exist

M = TypeVar("M", bound=Message)


class Unread(Generic[M]):
    """A long message that is not parsed yet."""

    def __init__(self, message_type: type[M], wire: bytes) -> None:
        self._message_type = message_type
        self._wire = wire

    def __repr__(self) -> str:
        return f"<Unread {self._message_type.__name__} of {len(self._wire)} bytes>"

    async def read(self, slices: Slices) -> M:
        """Return the parsed message.

        Raises: InvalidRequest, DecodeError.
        """
        pace = slices.pace()
        for _ in _count_fields(self._wire, self._message_type.DESCRIPTOR):
            if pace.is_over():
                await pace.next()
        await pace.next()  # to parse it may take longer than a slice
        message = self._message_type.FromString(self._wire)
        await pace.next()  # so may the first use of it
        return message


def leaving_long_ones(deserializer: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """Return a deserializer that leaves long messages `Unread`, for one of a message type. Return others unchanged."""
    message_type = getattr(deserializer, "__self__", None)
    if not (isinstance(message_type, type) and issubclass(message_type, Message)):
        return deserializer

    def read(wire: bytes) -> Any:
        return deserializer(wire) if len(wire) <= SHORT_BYTES else Unread(message_type, wire)

    return read


def _count_fields(wire: bytes, descriptor: Any) -> Iterator[None]:
    """Count the fields of a message, in steps. Stop at bytes that are no message, as protobuf does.

    The first field that is too many is an error.

    Raises: InvalidRequest.
    """
    inside = [_Inside(descriptor, "", 0, len(wire))]
    num_fields = num_steps = 0
    while inside:
        message = inside[-1]
        if message.position >= message.end:
            inside.pop()
            continue
        num_steps += 1
        if num_steps % _STEPS_AT_ONCE == 0:
            yield
        start = message.position
        position, tag = _varint(wire, start)
        number, wire_type = tag >> 3, tag & 7
        header_end = position
        if wire_type == _LENGTH_DELIMITED:
            header_end, length = _varint(wire, position)
            position = header_end + length
        elif wire_type == _VARINT:
            position, _ = _varint(wire, position)
            header_end = position
        elif wire_type in _SIZES:
            position += _SIZES[wire_type]
        else:
            return
        if position > message.end:
            return
        message.position = position
        field = message.descriptor.fields_by_number.get(number)
        name = field.name if field is not None else f"field {number}"
        num_alike = 1
        if field is None or field.message_type is None:
            num_alike = _num_alike(wire, start, header_end - start, position - start, message.end)
            message.position = start + num_alike * (position - start)
        elif wire_type == _LENGTH_DELIMITED:
            path = f"{message.path}{name}"
            if field.is_repeated:
                path += f"[{message.counts.get(number, 0)}]"
            inside.append(_Inside(field.message_type, f"{path}.", header_end, position))
        num_fields += num_alike
        num_of_it = message.counts[number] = message.counts.get(number, 0) + num_alike
        limit = max_count(field)
        if num_of_it > limit:
            raise invalid(f"{message.path}{name}", f"has more than {limit}")
        if num_alike > _STEPS_AT_ONCE:
            yield
        if num_fields > MAX_FIELDS:
            raise invalid(f"{message.path}{name}", f"is one of more than {MAX_FIELDS} fields of the message")


class _Inside:
    """A message within the message. `counts` has how often each field was seen, by its number."""

    __slots__ = ("counts", "descriptor", "end", "path", "position")

    def __init__(self, descriptor: Any, path: str, position: int, end: int) -> None:
        self.descriptor = descriptor
        self.path = path
        self.position = position
        self.end = end
        self.counts: dict[int, int] = {}


def _num_alike(wire: bytes, start: int, header_bytes: int, field_bytes: int, end: int) -> int:
    """Return how many fields in a row, from `start`, have the same header and the same size. Compare many at a time."""
    header = wire[start : start + header_bytes]
    num_alike, window = 1, 64
    while wire.startswith(header, start + num_alike * field_bytes):
        num_left = (end - start) // field_bytes - num_alike
        window = min(window, num_left)
        if window <= 0:
            break
        first = start + num_alike * field_bytes
        fields = np.frombuffer(wire, np.uint8, window * field_bytes, first).reshape(window, field_bytes)
        same = (fields[:, :header_bytes] == np.frombuffer(header, np.uint8)).all(axis=1)
        if not same.all():
            return num_alike + int(same.argmin())
        num_alike += window
        window = min(2 * window, _MAX_WINDOW)
        if num_alike > _MAX_WINDOW:
            break
    return num_alike


def _varint(wire: bytes, position: int) -> tuple[int, int]:
    """Return the position after a varint, and its value. Bad bytes give a value whose wire type does not exist."""
    value = 0
    for shift, byte in enumerate(wire[position : position + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return position + shift + 1, value
    return position, _NO_NUMBER
