"""The process of both engines: plays the story, and prints what came of each part."""

from __future__ import annotations

import logging
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from examples.demo.text import text_of
from examples.engine.story import Story
from kvdepot.cli.processes import ChildFailed, exit_on_terminate

IN_MEMORY = "/dev/shm"  # the file of L1 must be there


def main() -> int:
    """Play the story. Return 1 if a token differs, if something is left, or if a process failed."""
    logging.basicConfig(format="    %(message)s", level=logging.WARNING, stream=sys.stdout)  # of the connector
    try:
        with (
            exit_on_terminate(),
            tempfile.TemporaryDirectory(prefix="kvdepot-", dir=IN_MEMORY) as folder,
            ExitStack() as until_end,
        ):
            faults = play(Story(Path(folder), until_end))
    except (ChildFailed, OSError) as error:
        faults = [str(error)]
    for fault in faults:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


def play(story: Story) -> list[str]:
    """Play all parts, and print what came of them. Return what went wrong."""
    answers = []
    for title, part in (
        ("engine A answers questions about a document", story.compute),
        ("engine B answers others about the same document", story.share),
        ("engine B gets six questions, and three are aborted", story.abort),
        ("the depot is killed while both engines work", story.kill),
        ("the depot starts again", story.restart),
    ):
        print(title, flush=True)
        answered = part()
        print(
            f"    {len(answered)} answers; {sum(each.loaded_tokens for each in answered):,} of"
            f" {sum(each.num_prompt_tokens for each in answered):,} prompt tokens came from the depot",
            flush=True,
        )
        answers += answered
    print(f"the last answer begins with: {text_of(answers[-1].new_tokens).strip()}")
    if not (faults := story.faults(answers)):
        print(f"All {len(answers)} answers have the same tokens as without a depot. No block and no session is left.")
    return faults


if __name__ == "__main__":
    sys.exit(main())
