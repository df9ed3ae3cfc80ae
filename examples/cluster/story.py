"""What has happened in the cluster so far: each visit of an engine at a node, and whether that is what it should be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from examples.demo.text import prompt_of, text_of


@dataclass(kw_only=True)
class Conversation:
    """What one engine is asked about a document, one question after the other. `text` is all that was said."""

    engine: str
    text: str

    def ask(self, question: str) -> str:
        """Return the prompt with the next question, which begins with all that was said."""
        self.text += prompt_of(question)
        return self.text

    def answered(self, tokens: Sequence[int]) -> None:
        """Add the answer."""
        self.text += text_of(tokens)


@dataclass(frozen=True, kw_only=True)
class Visit:
    """One answer of an engine at a node. `seconds` is the time to the first token, `miss_reason` why no more matched.

    `is_lost`: the node was killed in the middle, so that the engine computed all of the prompt. Else
    `seconds_without` is the time without a depot, and `is_identical` says whether both answers and their KV were equal.
    """

    engine: str
    node: int
    prompt_tokens: int
    l1_tokens: int = 0
    l2_tokens: int = 0
    miss_reason: str = ""
    seconds: float
    seconds_without: float = 0.0
    is_identical: bool = True
    is_lost: bool = False
    answer: str

    @property
    def computed_tokens(self) -> int:
        """The tokens of the prompt that the engine computed."""
        return self.prompt_tokens - self.l1_tokens - self.l2_tokens


@dataclass
class Story:
    """The visits in order, at so many nodes."""

    num_nodes: int
    visits: list[Visit] = field(default_factory=list)

    def faults(self) -> list[str]:
        """Return what is not as it should be, in sentences."""
        return [*self._different(), *self._alone(), *self._after_loss()]

    def _different(self) -> Iterator[str]:
        for visit in self.visits:
            if not visit.is_identical:
                yield f"Engine {visit.engine.upper()} on node {visit.node} answered differently without the depot."

    def _alone(self) -> Iterator[str]:
        for node in range(1, self.num_nodes + 1):
            if not any(visit.l2_tokens for visit in self.visits if visit.node == node):
                yield f"Node {node} got nothing that another node had stored."

    def _after_loss(self) -> Iterator[str]:
        lost = next((number for number, visit in enumerate(self.visits) if visit.is_lost), None)
        if lost is None:
            yield "No engine noticed that its node was killed."
        elif lost + 1 < len(self.visits) and self.visits[lost + 1].answer != self.visits[lost].answer:
            yield f"Engine {self.visits[lost].engine.upper()} answered differently after it had lost its node."
