"""Messages off the wire. Protobuf reads a message in one go, and nobody else runs meanwhile: half a second for 16 MB of
empty records. So the fields of a long message are counted before it is read, a slice at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import numpy as np
from google.protobuf.message import Message

from service.depot.slices import Slices
from service.errors import invalid
from service.rpc.limits import MAX_FIELDS, most_of

SHORT_BYTES = 64 << 10
"""A message that is not longer is read at once: at two bytes a field that takes 2 ms."""

_STEPS_AT_ONCE = 256
_MAX_VARINT_BYTES = 10
_MOST_AT_ONCE = 1 << 16
_VARINT, _FIXED64, _LENGTH_DELIMITED, _GROUP, _END_GROUP, _FIXED32 = range(6)
_SIZES = {_FIXED64: 8, _FIXED32: 4, _GROUP: 0, _END_GROUP: 0}
_NO_NUMBER = 1 << 70 | 7  # its wire type does not exist

M = TypeVar("M", bound=Message)


class Unread(Generic[M]):
    """A long message that is yet to be read."""

    def __init__(self, message_type: type[M], wire: bytes) -> None:
        self._message_type = message_type
        self._wire = wire

    def __repr__(self) -> str:
        return f"<Unread {self._message_type.__name__} of {len(self._wire)} bytes>"

    async def read(self, slices: Slices) -> M:
        """The message. Raises: InvalidRequest, if it has too many of anything; DecodeError, if it is none."""
        pace = slices.pace()
        for _ in _count_fields(self._wire, self._message_type.DESCRIPTOR):
            if pace.is_over():
                await pace.next()
        await pace.next()  # to read it may take longer than a slice
        message = self._message_type.FromString(self._wire)
        await pace.next()  # so may what is done with it first
        return message


def leaving_long_ones(deserializer: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """A message type's own deserializer, in a form that leaves long messages `Unread`; other ones as they are."""
    message_type = getattr(deserializer, "__self__", None)
    if not (isinstance(message_type, type) and issubclass(message_type, Message)):
        return deserializer

    def read(wire: bytes) -> Any:
        return deserializer(wire) if len(wire) <= SHORT_BYTES else Unread(message_type, wire)

    return read


def _count_fields(wire: bytes, descriptor: Any) -> Iterator[None]:
    """Step by step. Stops where the bytes are no message: protobuf stops there, too.

    Raises: InvalidRequest, as soon as there are too many of a field.
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
        most = most_of(field)
        if num_of_it > most:
            raise invalid(f"{message.path}{name}", f"has more than {most}")
        if num_alike > _STEPS_AT_ONCE:
            yield
        if num_fields > MAX_FIELDS:
            raise invalid(f"{message.path}{name}", f"is one of more than {MAX_FIELDS} fields of the message")


class _Inside:
    """A message within the message: how far it was looked at, and how many it has of each field, by number."""

    __slots__ = ("counts", "descriptor", "end", "path", "position")

    def __init__(self, descriptor: Any, path: str, position: int, end: int) -> None:
        self.descriptor = descriptor
        self.path = path
        self.position = position
        self.end = end
        self.counts: dict[int, int] = {}


def _num_alike(wire: bytes, start: int, header_bytes: int, field_bytes: int, end: int) -> int:
    """How many fields from `start` on have the same header and the same size, found many at a time."""
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
        window = min(2 * window, _MOST_AT_ONCE)
        if num_alike > _MOST_AT_ONCE:
            break
    return num_alike


def _varint(wire: bytes, position: int) -> tuple[int, int]:
    """The position after a number, and the number; bytes that are none give one of a wire type that does not exist."""
    value = 0
    for place, byte in enumerate(wire[position : position + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return position + place + 1, value
    return position, _NO_NUMBER
