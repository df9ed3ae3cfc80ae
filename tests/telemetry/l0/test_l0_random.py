"""The arrays against the model: the same observations in the same order, and the same counts after every batch."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from telemetry.events import BlockAllocation, Event
from telemetry.l0 import batch
from telemetry.l0.lifecycle import L0Lifecycle
from tests.telemetry.l0.l0_model import Model, Observations, detached, record, report, session_ended

TIMEOUT_SECONDS = 8.0
SESSIONS = "stuv"


def compare(batches: Iterator[Sequence[Event]] | Sequence[Sequence[Event]]) -> Model:
    model = Model(session_idle_timeout_seconds=TIMEOUT_SECONDS)
    seen = Observations()
    lifecycle = L0Lifecycle(seen, sample_rate=1.0, session_idle_timeout_seconds=TIMEOUT_SECONDS)
    for events in batches:
        model.handle(events)
        lifecycle.handle(events)
        counts = {name: asdict(count) for name, count in lifecycle.counts().items()}
        for count in counts.values():
            del count["model_name"]
        assert counts == model.counts()
    assert seen == model.observations
    assert lifecycle.num_malformed == model.num_malformed
    return model


# Few blocks, few tokens, few sessions: everything meets everything, in every way that a client can get wrong.
block_ids = st.lists(st.integers(0, 7), max_size=5)
records = st.builds(
    record,
    st.sampled_from(SESSIONS),
    block_ids,
    st.lists(st.sampled_from([0, 0, 0, 1]), max_size=14),
    st.one_of(st.just([]), block_ids),
    st.sampled_from([False, False, False, True]),
)


@st.composite
def batches_of_events(draw: st.DrawFn) -> list[list[Event]]:
    block_size = draw(st.integers(1, 4))
    now = 100.0
    batches: list[list[Event]] = []
    for sizes in draw(st.lists(st.integers(1, 12), min_size=1, max_size=6)):
        batch: list[Event] = []
        for _ in range(sizes):
            now += draw(st.sampled_from([0.0, 0.0, 0.25, 1.0, 1.0, -0.5, 6.0]))
            instance_id = draw(st.sampled_from("aab"))
            kind = draw(st.sampled_from(["report"] * 6 + ["end"] * 4 + ["rank", "detach", "another model"]))
            if kind == "end":
                batch.append(session_ended(now, instance_id, draw(st.sampled_from(SESSIONS))))
            elif kind in ("rank", "detach"):
                batch.append(detached(now, instance_id, int(kind == "rank")))
            else:
                model_name = draw(st.sampled_from("mmmn")) if kind == "another model" else "m"
                given_records = draw(st.lists(records, min_size=1, max_size=3))
                batch.append(report(now, instance_id, *given_records, block_size=block_size, model_name=model_name))
        batches.append(batch)
    return batches


@settings(max_examples=100)
@given(batches_of_events())
def test_all_reports_of_a_client_follow_the_table(batches):
    compare(batches)


@settings(max_examples=100)
@given(batches_of_events())
def test_records_that_are_applied_one_by_one_are_followed_as_well(batches):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "MAX_RECORDS", 1)
        compare(batches)


class Engine:
    """A scheduler with a prefix cache and paged blocks, that sometimes reports late, forgets ends, and preempts."""

    def __init__(self, choices: random.Random, instance_id: str) -> None:
        self.choices = choices
        self.instance_id = instance_id
        self.block_size = choices.choice([1, 4, 16])
        self.num_blocks = choices.choice([64, 512])
        self.tells_reused = choices.random() < 0.7
        self.num_allocated = 0
        self.free = OrderedDict[int, None].fromkeys(range(self.num_blocks))
        self.cached: dict[tuple[int, ...], int] = {}
        self.holds: dict[int, tuple[int, ...]] = {}
        self.owners = [0] * self.num_blocks
        self.running: dict[str, tuple[list[int], list[int]]] = {}
        self.num_sessions = 0
        self.prompts = [[choices.randrange(50) for _ in range(12 * self.block_size)] for _ in range(4)]

    def step(self, now: float) -> Iterator[Event]:
        action = self.choices.random()
        if action < 0.35 or not self.running:
            yield from self.start(now)
        elif action < 0.8:
            names = self.choices.sample(sorted(self.running), k=min(len(self.running), 4))
            given_records = [entry for name in names for entry in self.decode(name)]
            yield report(now, self.instance_id, *given_records, block_size=self.block_size)
        elif action < 0.86:
            name = self.choices.choice(sorted(self.running))
            _, tokens = self.running[name]
            self.let_go(name)
            if len(self.free) * self.block_size >= len(tokens):
                yield report(now, self.instance_id, self.admit(name, tokens, resumed=True), block_size=self.block_size)
        else:
            name = self.choices.choice(sorted(self.running))
            self.let_go(name)
            if self.choices.random() < 0.9:
                yield session_ended(now, self.instance_id, name)

    def start(self, now: float) -> Iterator[Event]:
        self.num_sessions += 1
        prompt = self.choices.choice(self.prompts)
        tokens = prompt[: self.choices.randrange(1, len(prompt))]
        tokens += [self.choices.randrange(50) for _ in range(self.choices.randrange(3 * self.block_size))]
        if len(self.free) * self.block_size > 2 * len(tokens):
            name = f"r{self.num_sessions}"
            yield report(now, self.instance_id, self.admit(name, tokens), block_size=self.block_size)

    def admit(self, name: str, tokens: list[int], resumed: bool = False) -> BlockAllocation:
        reused: list[int] = []
        while (prefix := tuple(tokens[: (len(reused) + 1) * self.block_size])) in self.cached and len(prefix) < len(
            tokens
        ):
            reused.append(self.cached[prefix])
        for block_id in reused:
            self.own(block_id)
        table = list(reused)
        new = [self.allocate() for _ in range(-(-len(tokens) // self.block_size) - len(reused))]
        table += new
        self.running[name] = table, list(tokens)
        self.note_full(table, tokens, len(reused))
        if self.tells_reused:
            return record(name, new, tokens, reused, resumed)
        return record(name, table, tokens, (), resumed)

    def decode(self, name: str) -> Iterator[BlockAllocation]:
        table, tokens = self.running[name]
        num_new = self.choices.randrange(1, self.block_size + 2)
        num_blocks = -(-(len(tokens) + num_new) // self.block_size) - len(table)
        if num_blocks <= len(self.free):
            new = [self.allocate() for _ in range(num_blocks)]
            num_full = len(tokens) // self.block_size
            tokens += (added := [self.choices.randrange(50) for _ in range(num_new)])
            table += new
            self.note_full(table, tokens, num_full)
            yield record(name, new, added)

    def own(self, block_id: int) -> None:
        self.owners[block_id] += 1
        self.free.pop(block_id, None)

    def allocate(self) -> int:
        block_id, _ = self.free.popitem(last=False)
        self.cached.pop(self.holds.pop(block_id, ()), None)
        self.owners[block_id] = 1
        self.num_allocated += 1
        return block_id

    def note_full(self, table: list[int], tokens: list[int], first: int) -> None:
        for i in range(first, len(tokens) // self.block_size):
            prefix = tuple(tokens[: (i + 1) * self.block_size])
            if self.cached.setdefault(prefix, table[i]) == table[i]:
                self.holds[table[i]] = prefix

    def let_go(self, name: str) -> None:
        table, _ = self.running.pop(name)
        for block_id in reversed(table):
            self.owners[block_id] -= 1
            if not self.owners[block_id]:
                self.free[block_id] = None


def engines_at_work(seed: int, num_allocations: int) -> Iterator[list[Event]]:
    choices = random.Random(seed)
    engines = [Engine(choices, instance_id) for instance_id in "ab"]
    now = 0.0
    while sum(engine.num_allocated for engine in engines) < num_allocations:
        batch: list[Event] = []
        for _ in range(choices.randrange(1, 40)):
            now += choices.choice([0.0, 0.001, 0.1])
            batch += choices.choice(engines).step(now)
        if batch:
            yield batch


@settings(max_examples=8)
@given(st.integers(0, 2**32))
def test_engines_with_a_prefix_cache_are_followed(seed):
    model = compare(engines_at_work(seed, 3_000))
    assert {kind for counts in model.counts().values() for kind, count in counts.items() if count} >= {
        "allocations",
        "evictions",
        "owned",
    }


@pytest.mark.slow
@pytest.mark.timeout(1_200)
@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_a_million_allocations_are_followed(seed):
    compare(engines_at_work(seed, 50_000))
