"""How a call ended, and whether the contract lets it end like this."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from tests.fuzz.rpcs import Message, Rpc

# Of services that are not ours, which have no list.
CODES_OF_OTHERS = {"OK", "NOT_FOUND", "INVALID_ARGUMENT", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION"}
# How the interceptor refuses probes: see "Callers without credentials" in SECURITY.md.
REASONS_OF_OTHERS = {"STREAM_STALLED", "TOO_MANY_BYTES", "TOO_MANY_RPCS", "DRAINING"}
TO_NO_MESSAGE = {"INVALID_ARGUMENT"}
TO_A_WRONG_NUMBER_OF_MESSAGES = {"UNIMPLEMENTED", "INTERNAL", "UNKNOWN", "CANCELLED", "INVALID_ARGUMENT"}
# What grpc.aio makes of a message of ours that crossed the answer; it has lost the answer then.
CROSSED = "Internal error from Core"
_PATH = re.compile(r"(\w+)((?:\[\d+\])*)(?:\.|$)")


@dataclass(slots=True)
class Answer:
    """The end of a call: its messages, and the code and details of a failure."""

    code: str = "OK"
    message: str = ""
    messages: list[Message] = field(default_factory=list)
    reason: str = ""
    domain: str = ""
    fields: tuple[str, ...] = ()
    has_details: bool = False
    details_code: int = 0
    fault: str = ""

    def __str__(self) -> str:
        return f"{self.code} {self.reason} {self.message[:300]!r}"

    @property
    def outcome(self) -> str:
        """A word to count calls by."""
        return "crossed" if self.message == CROSSED else self.reason or self.code


@dataclass(frozen=True, slots=True)
class Expected:
    """How the client made its call, and the answers that this allows. `requests` are the messages that it sent."""

    requests: Sequence[Message] = ()
    is_stream: bool = False
    has_deadline: bool = False
    is_cancelled: bool = False
    is_message: bool = True
    is_too_large: bool = False
    has_huge_metadata: bool = False
    has_wrong_arity: bool = False


def answer_of(error: grpc.aio.AioRpcError) -> Answer:
    """Return the answer of a failed call, with a `fault` if its details can't be read."""
    answer = Answer(code=error.code().name, message=error.details() or "")
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            answer.has_details = True
            try:
                _read_details(answer, value if isinstance(value, bytes) else value.encode())
            except DecodeError as unreadable:
                answer.fault = f"details that are no google.rpc.Status: {unreadable}"
    return answer


def _read_details(answer: Answer, details: bytes) -> None:
    status, info, bad = Status.FromString(details), ErrorInfo(), BadRequest()
    answer.details_code = status.code
    for detail in status.details:
        if not any(detail.Is(known.DESCRIPTOR) and detail.Unpack(known) for known in (info, bad, RetryInfo())):
            answer.fault = f"a detail of an unknown kind: {detail.type_url}"
    answer.reason, answer.domain = info.reason, info.domain
    answer.fields = tuple(violation.field for violation in bad.field_violations)


def fault_in(answer: Answer, rpc: Rpc, expected: Expected) -> str:
    """Return the fault of an answer; empty if there is none."""
    if answer.fault:
        return answer.fault
    code_number = grpc.StatusCode[answer.code].value[0]
    if answer.has_details and answer.details_code != code_number:
        if _was_ended_by_the_client(answer, expected):  # after it had received the details
            return ""
        return f"the details say code {answer.details_code}, the call {code_number}"
    if answer.code == "OK" or _is_of_the_clients_making(answer, expected):
        return ""
    if answer.reason == "CHUNK_CORRUPT":  # nothing damages the memory of this depot
        return f"wrong bytes, which the depot found itself: {answer}"
    if not rpc.is_ours:
        is_known = answer.code in CODES_OF_OTHERS or answer.reason in REASONS_OF_OTHERS
        return "" if is_known else f"an answer that no service gives: {answer}"
    if (answer.code, answer.reason) not in rpc.documented:
        return f"an answer that is not documented for {rpc.name}: {answer}"
    if answer.domain != "kvdepot":
        return f"the domain of the error is {answer.domain!r}"
    if (answer.reason == "INVALID_REQUEST") != bool(answer.fields):
        return f"{answer.reason} with the fields {answer.fields}"
    unknown = [path for path in answer.fields if not _exists(path, rpc.request.DESCRIPTOR, expected.requests)]
    return f"fields that do not exist are at fault: {unknown}" if unknown else ""


def _is_of_the_clients_making(answer: Answer, expected: Expected) -> bool:
    if not expected.is_message and answer.code in TO_NO_MESSAGE:
        return True
    if expected.has_wrong_arity and answer.code in TO_A_WRONG_NUMBER_OF_MESSAGES:
        return answer.reason != "INTERNAL"
    if answer.has_details:
        return False
    return (
        _was_ended_by_the_client(answer, expected)
        or (expected.is_too_large and answer.code == "RESOURCE_EXHAUSTED")
        or (expected.has_huge_metadata and answer.code == "RESOURCE_EXHAUSTED")
        or (expected.is_stream and answer.message == CROSSED)
    )


def _was_ended_by_the_client(answer: Answer, expected: Expected) -> bool:
    return (expected.has_deadline and answer.code == "DEADLINE_EXCEEDED") or (
        expected.is_cancelled and answer.code == "CANCELLED"
    )


def _exists(path: str, descriptor: Any, requests: Sequence[Message]) -> bool:
    """Return whether a path such as ``groups[0].planes[1].layer`` names a field, or a oneof, of the request."""
    at, parts = 0, []
    while at < len(path):
        match = _PATH.match(path, at)
        if match is None:
            return False
        parts.append((match[1], [int(number) for number in re.findall(r"\d+", match[2])]))
        at = match.end()
    return bool(parts) and any(_names(parts, descriptor, request) for request in requests or (None,))


def _names(parts: Sequence[tuple[str, list[int]]], descriptor: Any, message: Message | None) -> bool:
    (name, indices), *rest = parts
    if name in descriptor.oneofs_by_name:
        return not rest and not indices
    field = descriptor.fields_by_name.get(name)
    if field is None or len(indices) > field.is_repeated:
        return False
    if message is not None and indices and indices[0] >= len(getattr(message, name)):
        return False
    if not rest:
        return True
    if field.message_type is None:
        return False
    below = None
    if message is not None:
        below = getattr(message, name)[indices[0]] if indices else getattr(message, name)
    return _names(rest, field.message_type, None if field.is_repeated and not indices else below)
