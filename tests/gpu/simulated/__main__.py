"""``python -m tests.gpu.simulated COMMAND …`` runs a command, and all its children, with the simulated card."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from tests.gpu.simulated.card import simulated_card


def main(command: list[str]) -> int:
    """Run the command to its end; the exit code is the command's, 128 + the signal's number if a signal ended it."""
    if not command:
        sys.exit("usage: python -m tests.gpu.simulated COMMAND …")
    with simulated_card() as variables:
        process = subprocess.Popen(command, env={**os.environ, **variables})
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: process.send_signal(number))
        code = process.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
