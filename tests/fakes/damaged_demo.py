"""An engine of the demo whose retrieved KV gets damaged: `python -m tests.fakes.damaged_demo`, as `examples.demo`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from examples.demo.__main__ import main
from examples.demo.decoder import Decoder
from examples.demo.numpy_decoder import NumpyDecoder
from examples.demo.weights import Floats


def damaged(decoder: Decoder) -> Decoder:
    """Return the decoder. One layer of its first block changes between a retrieve and the prefill of the rest.

    No window of the answer reaches back to that block, so the answer stays the same.
    """
    assert isinstance(decoder, NumpyDecoder)
    prefill = decoder.prefill

    def prefill_after_damage(
        prompt: Sequence[int], num_done: int, block_ids: Sequence[int], on_progress: Callable[[int], None]
    ) -> Floats:
        if num_done:
            decoder.kv.values[0][block_ids[0]] *= -9
        return prefill(prompt, num_done, block_ids, on_progress)

    decoder.prefill = prefill_after_damage  # type: ignore[method-assign]
    return decoder


if __name__ == "__main__":
    sys.exit(main(wrap=damaged))
