"""``python -m tools.gpu_session --out FOLDER``: prove and measure everything that needs a GPU.

Writes table.txt, figures.md, session.json and session.log to FOLDER, and prints the table last.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from kernels.cuda.cupy_runtime import cuda_error
from kvdepot.cli.processes import exit_on_terminate
from tools.gpu_session import report
from tools.gpu_session.child import REPOSITORY
from tools.gpu_session.findings import Findings
from tools.gpu_session.session import Plan, run_steps
from tools.gpu_session.steps import STEPS, Step

SECONDS = 480.0
WHEELS = REPOSITORY / "build" / "gpu-wheels"


def main() -> int:
    """Run the session; return 0 if no step failed. A missed goal is a figure, not a failure."""
    arguments = _arguments()
    steps = [step for step in STEPS if not arguments.steps or step.name in arguments.steps]
    title = f"GPU session of {datetime.now(UTC).isoformat(timespec='seconds')}"
    if arguments.dry_run:
        title += ", on a simulated card: its figures mean nothing"
    elif reason := cuda_error():
        title += f": {reason}, so that only the machine is described (--dry-run runs every step on a simulated card)"
        steps = list(STEPS[:1])
    arguments.out.mkdir(parents=True, exist_ok=True)
    done: list[tuple[Step, Findings]] = []
    try:
        with (
            exit_on_terminate(),
            _card(is_simulated=arguments.dry_run) as variables,
            (arguments.out / "session.log").open("wb") as log,
        ):
            plan = Plan(
                steps=steps,
                seconds=arguments.seconds,
                wheels=arguments.wheels,
                variables=variables,
                is_dry=arguments.dry_run,
            )
            for step, found in run_steps(plan, log, _say_begin):
                done.append((step, found))
                print(f"  {found.outcome}, {found.seconds:.0f} s: {found.summary}", flush=True)
                report.write(done, f"{title} (not over yet)", arguments.out)
    finally:
        report.write(done, title if len(done) == len(steps) else f"{title} (stopped)", arguments.out)
        print(f"\n{report.table(done, title)}", flush=True)
    return 0 if report.is_good(done) and (arguments.dry_run or cuda_error() is None) else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.gpu_session", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ", ".join(step.name for step in STEPS)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the results go")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all steps together (default: %(default)g)")
    parser.add_argument(
        "--steps",
        nargs="*",
        choices=[step.name for step in STEPS],
        metavar="STEP",
        help=f"only these, in the usual order: {names}",
    )
    parser.add_argument("--wheels", type=Path, default=WHEELS, help="packages that this Python lacks (make gpu-wheels)")
    parser.add_argument("--dry-run", action="store_true", help="on a simulated card, and with small sizes")
    return parser.parse_args()


@contextmanager
def _card(*, is_simulated: bool) -> Iterator[Mapping[str, str]]:
    """Return the environment variables by which steps find their card."""
    if not is_simulated:
        yield {}
        return
    from tests.gpu.simulated.card import simulated_card

    with simulated_card() as variables:
        yield variables


def _say_begin(step: Step, limit_seconds: float) -> None:
    print(f"{step.name}: {step.what} (at most {limit_seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    sys.exit(main())
