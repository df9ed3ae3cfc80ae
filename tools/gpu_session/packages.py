"""Packages for a machine without a network: the server's, as wheels in a folder of the tree.

``python -m tools.gpu_session.packages FOLDER`` fetches them, for another Python and with the versions of
constraints.txt.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
LIMIT_BYTES = 48 << 20
"""A machine that is lent takes a tree of some tens of MiB."""

PIP_SECONDS = 120.0

ON_THE_MACHINE = ("numpy", "torch")
"""Every machine with a GPU has these, made for its CUDA and large."""


class PackagesUnavailable(Exception):
    """The packages can't be fetched or installed; the message has the end of pip's output."""


def fetch(folder: Path, python_version: str) -> int:
    """Fetch wheels of all that the server imports; return their size in bytes.

    Raises:
        PackagesUnavailable: pip refuses, or they are too large to travel.
    """
    shutil.rmtree(folder, ignore_errors=True)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["server"]]
    _pip(
        "download",
        "--only-binary=:all:",
        "--implementation=cp",
        f"--python-version={python_version}",
        *(f"--platform={platform}" for platform in PLATFORMS),
        f"--constraint={REPOSITORY / 'constraints.txt'}",
        f"--dest={folder}",
        *wanted,
    )
    for wheel in folder.glob("*.whl"):
        if _name(wheel) in ON_THE_MACHINE:
            wheel.unlink()
    size_bytes = sum(wheel.stat().st_size for wheel in folder.glob("*.whl"))
    if size_bytes > LIMIT_BYTES:
        raise PackagesUnavailable(f"the wheels have {size_bytes >> 20} MiB, more than {LIMIT_BYTES >> 20}")
    return size_bytes


def install(wheels: Sequence[Path], target: Path) -> None:
    """Install wheels into a folder for PYTHONPATH, as they are: nothing is fetched.

    Raises:
        PackagesUnavailable: pip refuses, as it does for wheels of another Python.
    """
    _pip("install", "--no-index", "--no-deps", "--no-compile", f"--target={target}", *map(str, wheels))


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise PackagesUnavailable(f"pip takes longer than {PIP_SECONDS:g} s") from error
    if done.returncode != 0:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise PackagesUnavailable(last)


def _name(wheel: Path) -> str:
    """Return the project that a wheel is of, as PyPI writes names."""
    return re.sub(r"[-_.]+", "-", wheel.name.split("-")[0]).lower()


def main() -> None:
    """Fetch the wheels and print their size."""
    parser = argparse.ArgumentParser(prog="python -m tools.gpu_session.packages", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", metavar="VERSION", help="of the machine with the GPU")
    arguments = parser.parse_args()
    try:
        size_bytes = fetch(arguments.folder, arguments.python)
    except PackagesUnavailable as error:
        parser.exit(1, f"error: {error}\n")
    number = len(list(arguments.folder.glob("*.whl")))
    print(f"{number} wheels for Python {arguments.python}, {size_bytes / 2**20:.0f} MiB, in {arguments.folder}")


if __name__ == "__main__":
    main()
