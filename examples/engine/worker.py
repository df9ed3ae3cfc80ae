"""The part of the engine that computes. Lines with `# kvdepot` are all that it adds to use a depot."""

from __future__ import annotations

from dataclasses import dataclass

from examples.demo.numpy_decoder import NumpyDecoder
from kvdepot.connector import AttachedMemory, ConnectorConfig, EngineFacts, StepCommands, WorkerReport, open_worker


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens of one request to compute in a step: those of `token_ids` from `start` on."""

    request_id: str
    token_ids: list[int]
    start: int
    block_ids: list[int]


class Worker:
    """The part that computes. An engine with several devices has one in the process of each."""

    def __init__(self, config: ConnectorConfig, facts: EngineFacts, decoder: NumpyDecoder) -> None:
        self._decoder = decoder
        self.depot = open_worker(config, facts)  # kvdepot
        memory = AttachedMemory(groups=(decoder.group,), regions=decoder.regions.regions)  # kvdepot
        self.depot.attach(lambda: memory)  # kvdepot

    def step(self, pieces: list[Piece], commands: StepCommands) -> tuple[dict[str, int], WorkerReport | None]:
        """Compute the pieces of a step. Return the most likely next token of each request, and the depot's report."""
        self.depot.load(commands.loads)  # kvdepot
        tokens = {}
        for piece in pieces:
            logits = self._decoder.prefill(piece.token_ids, piece.start, piece.block_ids, lambda _: None)
            tokens[piece.request_id] = int(logits.argmax())
        self.depot.store(commands.stores)  # kvdepot
        return tokens, self.depot.take_report()  # kvdepot
