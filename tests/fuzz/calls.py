"""Numbered calls: every choice of a call follows from the seed and its number."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from random import Random

from google.protobuf import text_format

from tests.fuzz import mutations, requests
from tests.fuzz.answers import Expected
from tests.fuzz.depot import MOST_MESSAGE_BYTES
from tests.fuzz.mutations import Mutator
from tests.fuzz.rpcs import BY_NAME, RPCS, Message, Rpc
from tests.fuzz.sending import Manner, manner
from tests.fuzz.things import Grant, Things

_OFTEN = {"Lookup": 4, "Store": 4, "Retrieve": 4, "StoreInline": 4, "RetrieveInline": 3, "AttachInstance": 3}
_USUALLY = 2
_SELDOM = {"ClearCache": 1, "Health.List": 1, "ListInstances": 1, "GetStatus": 1, "SetLogLevel": 1, "GetHitCurve": 1}
WEIGHTS = [_OFTEN.get(rpc.name, _SELDOM.get(rpc.name, _USUALLY)) for rpc in RPCS]
MOST_TEXT_CHARS = 3_000
SHORT_DEADLINE_SECONDS = 0.2


@dataclass(slots=True)
class Call:
    """One fuzzed call. Values from earlier answers, such as the id of a lease, are filled in when it is sent."""

    number: int
    rpc: Rpc
    random: Random
    wires: list[bytes] = field(default_factory=list)
    how: Manner | None = None
    changed: set[str] = field(default_factory=set)

    @staticmethod
    def numbered(seed: int, number: int) -> Call:
        """Return the call of this number."""
        random = Random(f"{seed}/{number}")
        (rpc,) = random.choices(RPCS, WEIGHTS)
        return Call(number, rpc, random)

    def lookup(self, things: Things) -> tuple[Message, list[Message]] | None:
        """Return the lookup, and the store before it, that give the call a lease; None if it needs none."""
        if not self.rpc.takes_a_lease or self.random.random() < 0.25:
            return None
        return requests.lookup_of(self.rpc, things, self.random)

    def write(self, things: Things, grant: Grant | None, most_bytes: int) -> None:
        """Make the call's bytes, and how it is made."""
        random = self.random
        messages = requests.valid(self.rpc, things, random, grant)
        mutator = Mutator(things, random, most_bytes)
        for _ in range(random.choices((0, 1, 2, 5), (25, 45, 22, 8))[0]):
            mutator.change(random.choice(messages))
        if self.rpc.streams_requests and random.random() < 0.3:
            messages = mutations.rearranged(messages, random)
        self.changed = mutator.changed
        self.wires = [message.SerializeToString() for message in messages]
        self.how = manner(self.rpc, random)
        if self.wires and random.random() < 0.12:
            at = random.randrange(len(self.wires))
            other = requests.made(self.rpc.request, things, random)
            self.wires[at] = mutations.changed_wire(self.wires[at], other, random)
        if self.wires and random.random() < 0.005:
            self.wires[-1] = mutations.larger(self.wires[-1], MOST_MESSAGE_BYTES)
        if self.how.wrong_arity:
            self.wires *= random.choice((0, 2))
            if not self.wires:  # gRPC does not answer a call of one message that came without any
                self.how = replace(self.how, deadline_seconds=SHORT_DEADLINE_SECONDS)

    def expected(self) -> Expected:
        """Return the answers that are allowed for the way it is made."""
        assert self.how is not None
        parsed = [_parsed(self.rpc, wire) for wire in self.wires]
        return Expected(
            requests=[message for message in parsed if message is not None],
            is_stream=self.rpc.streams_requests or self.how.wrong_arity,
            has_deadline=self.how.deadline_seconds is not None and self.how.deadline_seconds < 1,
            is_cancelled=self.how.cancel_after_seconds is not None or not self.how.finishes_writing,
            is_message=None not in parsed,
            is_too_large=any(len(wire) > MOST_MESSAGE_BYTES for wire in self.wires),
            has_huge_metadata=self.how.has_huge_metadata,
            has_wrong_arity=self.how.wrong_arity,
        )

    def __str__(self) -> str:
        """Return the request as text, as far as it is a message, and how it is made."""
        shown = [_text(_parsed(self.rpc, wire), wire) for wire in self.wires]
        return "\n".join((f"call {self.number}, {self.rpc.name}: {self.how}", *shown))


def _parsed(rpc: Rpc, wire: bytes) -> Message | None:
    return rpc.request.FromString(wire) if mutations.is_message(rpc.request, wire) else None


def _text(message: Message | None, wire: bytes) -> str:
    if message is None:
        text = f"no message, {len(wire)} bytes: {wire[:200].hex()}"
    else:
        text = f"# {len(wire)} bytes\n{text_format.MessageToString(message, as_utf8=False)}"
    return text if len(text) <= MOST_TEXT_CHARS else f"{text[:MOST_TEXT_CHARS]}..."


STORE_INLINE = BY_NAME["StoreInline"]
LOOKUP = BY_NAME["Lookup"]
ATTACH = BY_NAME["AttachInstance"]
