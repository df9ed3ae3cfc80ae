"""The real Helm engine, in a process of its own: it reads HELM_DRIVER from the environment a process starts with."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any


class HelmFailed(Exception):
    """Helm refuses values or templates, with its message."""


class Helm:
    """Helm, which keeps its releases in memory. Not for threads."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, "HELM_DRIVER": "memory"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def install(self, chart: str, name: str, kubeconfig: str, values: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the releases of an install with the first values and of an upgrade with each of the others.

        Raises:
            HelmFailed: one of them failed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"chart": chart, "name": name, "kubeconfig": kubeconfig, "values": values}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        if "error" in answer:
            raise HelmFailed(answer["error"])
        releases: list[dict[str, Any]] = answer["releases"]
        return releases

    def close(self) -> None:
        """End the process."""
        self._process.communicate(timeout=30)


async def _run(chart: str, name: str, kubeconfig: str, values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    from helm_sdkpy import Configuration, HelmError, Install, Upgrade

    configuration = Configuration("inference", kubeconfig)
    releases = []
    try:
        for number, given in enumerate(values):
            if number:
                upgrade = Upgrade(configuration)
                releases.append(await upgrade.run(name, chart, given, wait=False, reset_values=True))
            else:
                install = Install(configuration)
                releases.append(await install.run(name, chart, given, wait=False, server_side_apply=True))
    except HelmError as error:
        return {"error": str(error)}
    return {"releases": releases}


def _serve() -> None:
    for line in sys.stdin:
        sys.stdout.write(json.dumps(asyncio.run(_run(**json.loads(line)))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
