"""What is wrong with a caller's arguments: found out after their use has failed, so that right ones cost nothing."""

from __future__ import annotations

from collections.abc import Sized
from datetime import timedelta
from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from kvdepot.errors import InvalidArgument, invalid
from kvdepot.wire import MAX_ID

M = TypeVar("M", bound=Message)

_EXPECTED = {
    FieldDescriptor.TYPE_STRING: "a string",
    FieldDescriptor.TYPE_BYTES: "bytes",
    FieldDescriptor.TYPE_BOOL: "a bool",
    FieldDescriptor.TYPE_DOUBLE: "a number",
    FieldDescriptor.TYPE_UINT32: f"an integer from 0 to {MAX_ID}",
    FieldDescriptor.TYPE_UINT64: f"an integer from 0 to {2**64 - 1}",
    FieldDescriptor.TYPE_INT32: f"an integer from {-(2**31)} to {2**31 - 1}",
}
_HINTS = {
    "SharedRegions": "pass its `regions`",
    "CudaRegions": "pass its `regions`",
    "SharedBuffer": "pass its `region`",
    "LookupResponse": "pass its `lease`, if it has one",
}


def message(kind: type[M], **fields: Any) -> M:
    """Return a message. The error names the first field that it can't have.

    Raises: InvalidArgument.
    """
    try:
        return kind(**fields)
    except (TypeError, ValueError) as error:
        raise _wrong_field(kind, fields, error) from None


def duration(seconds: float, field: str) -> Duration:
    """Return a duration for a field.

    Raises: InvalidArgument.
    """
    duration = Duration()
    try:
        duration.FromTimedelta(timedelta(seconds=seconds))
    except (TypeError, ValueError, OverflowError):
        raise invalid(field, f"is {seconds!r}, not a number of seconds") from None
    return duration


def wrong_ids(field: str, ids: Any, error: Exception, *, first: int = 0, hint: str = "") -> InvalidArgument:
    """Return the error for ids that `with_ids` refused. `first` is the index of the first of them; `hint` is added."""
    shape = getattr(ids, "shape", None)
    if ids is None or isinstance(ids, (str, bytes, int, float)) or shape == ():
        return invalid(field, f"is {_short(ids)}, not a list or an array of ids")
    if shape is not None and len(shape) != 1:
        batch = " (a batch: pass the ids of one prompt)" if len(shape) == 2 else ""
        return invalid(field, f"has the shape {tuple(shape)}, and ids have one dimension{batch}")
    dtype = str(getattr(ids, "dtype", "int")).removeprefix("torch.")
    if not dtype.startswith(("int", "uint", "object")):
        return invalid(field, f"holds {dtype}, and ids are integers")
    try:
        found = list(ids.tolist() if hasattr(ids, "tolist") else ids)
    except TypeError:
        return invalid(field, f"is {_short(ids)}, not a list or an array of ids")
    for index, each in enumerate(found, start=first):
        if isinstance(each, bool) or not (isinstance(each, int) or hasattr(each, "__index__")):
            return invalid(f"{field}[{index}]", f"is {_short(each)}, and ids are integers")
        if not 0 <= int(each) <= MAX_ID:
            return invalid(f"{field}[{index}]", f"is {int(each)}, and the range of ids is 0 to {MAX_ID}{hint}")
    return invalid(field, str(error))


def wrong_table(number: int, table: Any, error: Exception, num_absent: int) -> InvalidArgument:
    """Return the error for a block table that `with_ids` refused. Its first `num_absent` ids are cut off already."""
    if isinstance(table, int) or getattr(table, "shape", None) == ():
        return invalid(
            "block_tables", "has ids where tables are expected: one table for each group, [[1, 2]] and not [1, 2]"
        )
    hint = "; -1 stands for an absent block, only at the beginning of a table"
    return wrong_ids(f"block_tables[{number}].block_ids", table, error, first=num_absent, hint=hint)


def wrong_tables(tables: Any) -> InvalidArgument:
    """Return the error for block tables that are not several of anything."""
    return invalid("block_tables", f"is {_short(tables)}, and one table for each group is expected")


def wrong_lease(lease: Any) -> InvalidArgument:
    """Return the error for something that is no lease."""
    if isinstance(lease, Message) or lease in (None, ""):
        kind = type(lease).__name__
        if kind in _HINTS:
            return invalid("lease", f"is a {kind}: {_HINTS[kind]}")
        return invalid(
            "lease", "is empty: the lookup matched nothing that could be retrieved (`found.HasField('lease')` is false)"
        )
    return invalid("lease", f"is {_short(lease)}, not the lease of a lookup")


def _wrong_field(kind: type[Message], fields: dict[str, Any], error: Exception) -> InvalidArgument:
    for name, value in fields.items():
        try:
            kind(**{name: value})
        except (TypeError, ValueError):
            return _wrong_value(kind.DESCRIPTOR.fields_by_name[name], value)
    return invalid(", ".join(fields), str(error))


def _wrong_value(field: Any, value: Any) -> InvalidArgument:
    if type(value).__name__ in _HINTS:
        return invalid(field.name, f"is {_short(value)}: {_HINTS[type(value).__name__]}")
    if field.message_type is None:
        expected = _EXPECTED.get(field.type, "another type")
        return invalid(field.name, f"is {_short(value)}, not {expected}")
    expected = field.message_type.name
    if isinstance(value, Message) or not hasattr(value, "__iter__"):
        return invalid(field.name, f"is {_short(value)}, not a list of {expected}")
    for index, each in enumerate(value):
        if type(each).__name__ != expected:
            hint = f": {_HINTS[type(each).__name__]}" if type(each).__name__ in _HINTS else f", not a {expected}"
            return invalid(f"{field.name}[{index}]", f"is {_short(each)}{hint}")
    return invalid(field.name, f"is no list of {expected}")


def _short(value: Any) -> str:
    """Return a value for an error: itself if it is short, else its type, with its length."""
    if value is None or (isinstance(value, (str, bytes, int, float)) and len(repr(value)) <= 40):
        return repr(value)
    length = f" of {len(value)}" if isinstance(value, Sized) and not isinstance(value, Message) else ""
    return f"a {type(value).__name__}{length}"
