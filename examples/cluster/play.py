"""The cluster as processes: the servers, three depots, and the engines that visit them. One depot is killed."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from examples.cluster.node import Node
from examples.cluster.servers import SharedTier, shared_tiers
from examples.cluster.story import Conversation, Story, Visit
from examples.demo.choices import DemoSize
from examples.demo.corpus import questions
from examples.demo.play import ENGINE_VARIABLES
from examples.demo.text import DOCUMENT, text_of, tokenize
from kvdepot.cli.processes import Child, ChildFailed, child

NUM_NODES = 3
_VISIT_LIMIT_SECONDS = 120.0
_SMALL_BYTES = 1_050


class NoServers(Exception):
    """Neither Valkey, nor Redis, nor Mooncake is installed here, so that there is no tier to share."""


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the play, in words, and what it does."""

    text: str
    do: Callable[[], Visit | None]


class Cluster:
    """Three nodes and three conversations. `tiers` are what the nodes share.

    Use `opened` to make one.
    """

    def __init__(self, tiers: Sequence[SharedTier], size: DemoSize, folder: Path, until_end: ExitStack) -> None:
        self.tiers = tiers
        self.nodes = [Node(number, tiers, until_end) for number in range(1, NUM_NODES + 1)]
        self.story = Story(NUM_NODES)
        self._folder = folder
        self._questions = iter([question for question, _ in questions()])
        first, second = _documents(size)
        self._conversations = {
            "a": Conversation(engine="a", text=first),
            "b": Conversation(engine="b", text=second),
            "c": Conversation(engine="c", text=first),
        }

    @classmethod
    def opened(cls, size: DemoSize, until_end: ExitStack) -> Cluster:
        """Start the servers. All processes of the cluster run until the stack is closed.

        Raises: NoServers, ChildFailed.
        """
        tiers = until_end.enter_context(shared_tiers())
        if not tiers:
            raise NoServers("no tier to share: neither Valkey, nor Redis, nor Mooncake is installed")
        folder = Path(until_end.enter_context(tempfile.TemporaryDirectory(prefix="kvdepot-")))
        return cls(tiers, size, folder, until_end)

    def steps(self) -> Iterator[Step]:
        """Yield what happens, in order. Each step is done before the next one is taken."""
        yield Step("three depots start", self._start_all)
        yield Step("engine A computes a document on node 1", lambda: self._visit("a", 1))
        yield Step("engine B computes another one on node 2", lambda: self._visit("b", 2))
        yield Step("engine C asks about the first document on node 3", lambda: self._visit("c", 3))
        yield Step("engine A moves to node 2, and goes on", lambda: self._visit("a", 2))
        yield Step("engine B moves to node 1, and goes on", lambda: self._visit("b", 1))
        yield Step("engine B moves to node 2, which is killed under it", lambda: self._visit("b", 2, is_killed=True))
        yield Step("engine B moves to node 3, and asks again", lambda: self._visit("b", 3, is_repeated=True))
        yield Step("node 2 starts again, with an empty L1", self.nodes[1].start)
        yield Step("engine A answers on it", lambda: self._visit("a", 2))

    def _start_all(self) -> None:
        with ThreadPoolExecutor(NUM_NODES) as threads:
            for _ in threads.map(Node.start, self.nodes):
                pass

    def _visit(self, engine: str, number: int, *, is_killed: bool = False, is_repeated: bool = False) -> Visit:
        """Let an engine answer its next question at a node, and wait until the tiers have what it stored."""
        node, conversation = self.nodes[number - 1], self._conversations[engine]
        text = conversation.text if is_repeated else conversation.ask(next(self._questions))
        prompt = self._folder / f"{engine}.txt"
        prompt.write_text(text, encoding="utf-8")
        arguments = ("--address", node.address, "--engine", engine, "--prompt", str(prompt))
        with (
            child(
                f"engine {engine.upper()}", "-m", "examples.cluster.visit", *arguments, variables=ENGINE_VARIABLES
            ) as process,
            process.limit(_VISIT_LIMIT_SECONDS),
        ):
            facts: dict[str, dict[str, Any]] = {}
            for event, more in _events(process):
                facts[event] = more
                if event == "found" and is_killed:
                    node.kill()  # while the engine retrieves
        visit = _visit_of(engine, number, len(tokenize(text)), facts)
        if not is_killed:
            conversation.answered(tokenize(visit.answer))
            node.wait_until_written()
        self.story.visits.append(visit)
        return visit


def _visit_of(engine: str, node: int, prompt_tokens: int, facts: dict[str, dict[str, Any]]) -> Visit:
    if "answered_alone" in facts:
        alone = facts["answered_alone"]
        return Visit(
            engine=engine,
            node=node,
            prompt_tokens=prompt_tokens,
            seconds=alone["seconds"],
            is_lost=True,
            answer=text_of(alone["tokens"]),
        )
    if "compared" not in facts:
        raise ChildFailed(f"engine {engine.upper()} ended without an answer")
    answered, compared = facts["answered"], facts["compared"]
    return Visit(
        engine=engine,
        node=node,
        prompt_tokens=prompt_tokens,
        l1_tokens=answered["l1_tokens"],
        l2_tokens=answered["l2_tokens"],
        miss_reason=facts["found"]["miss_reason"],
        seconds=answered["seconds"],
        seconds_without=compared["seconds"],
        is_identical=compared["identical"],
        answer=text_of(answered["tokens"]),
    )


def _events(engine: Child) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in engine.lines():
        if line.startswith("{"):
            facts = json.loads(line)
            yield facts.pop("event"), facts


def _documents(size: DemoSize) -> tuple[str, str]:
    """Return two documents that begin differently: the demo's, and its paragraphs the other way round."""
    other = "\n\n".join(reversed(DOCUMENT.split("\n\n")))
    return (DOCUMENT, other) if size is DemoSize.FULL else (DOCUMENT[:_SMALL_BYTES], other[:_SMALL_BYTES])
