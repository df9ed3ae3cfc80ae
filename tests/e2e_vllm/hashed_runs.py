"""Runs engines whose model is a hash: shared prompts, a chat, and many requests with aborts, preemptions and resets.

Run it with vLLM's Python: ``python -m tests.e2e_vllm.hashed_runs MODEL ADDRESS SEED ASYNC``, where ASYNC is 0 or 1. It
takes one core for a minute.
"""

from __future__ import annotations

import random
import sys

from tests.e2e_vllm.hashed_engine import BLOCK, STEP_TOKENS, HashedEngine, Tokens, answer

VOCABULARY = 4000


def main(model: str, address: str, seed: int, *, is_async: bool) -> str:
    """Run engines one after the other, or two in turn. Return what was seen, as a text."""
    rng = random.Random(seed)

    def some(count: int) -> Tokens:
        return [rng.randrange(3, VOCABULARY) for _ in range(count)]

    def engine(name: str, num_blocks: int = 400) -> HashedEngine:
        return HashedEngine(model, address, f"{name}-{seed}-{is_async}", num_blocks, is_async=is_async)

    trunk = some(200)
    first = engine("first")
    for number, prompt in enumerate((trunk, some(33), some(96))):
        first.add(f"{number}", prompt, 40)
    first.run()
    prompts = [trunk, [*trunk[:150], *some(30)], [*trunk, *answer(trunk, 25)]]
    second = engine("second")
    for number, prompt in enumerate(prompts):
        second.add(f"{number}", prompt, 40)
        second.run()
    cached = list(second.num_cached.values())
    assert cached == [192, STEP_TOKENS, 224], f"{cached} tokens were cached"
    a, b = engine("a"), engine("b")
    history, before = some(40), 0
    for number in range(6):
        turn = (a, b)[number % 2]
        turn.add(f"{number}", list(history), 30)
        turn.run()
        hit = turn.num_cached[f"{number}"]
        assert hit >= before // BLOCK * BLOCK, f"{hit} tokens of {before} were cached"
        before = len(history)
        history += [*answer(history, 30), *some(rng.randrange(5, 60))]
    for each in (first, second, a, b):
        each.close()
    total = [second.num_loads + a.num_loads + b.num_loads, 0, second.num_states_read]
    for number in range(6):
        many = engine(f"many-{number}", rng.choice((90, 120, 400)))
        trunk = some(300)
        for request in range(14):
            many.add(f"{request}", [*trunk[: rng.randrange(300)], *some(rng.randrange(1, 80))], rng.randrange(1, 70))
            for _ in range(rng.randrange(6)):
                many.step()
            if rng.random() < 0.1:
                many.abort_one(rng)
            if rng.random() < 0.1:
                many.forget_locally()
        many.run()
        many.close()
        total = [
            sum(pair) for pair in zip(total, (many.num_loads, many.num_preempted, many.num_states_read), strict=True)
        ]
    return "{} loads, {} preemptions, {} states read and right".format(*total)


if __name__ == "__main__":
    print(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), is_async=sys.argv[4] == "1"))
