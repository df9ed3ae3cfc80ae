"""As much of vLLM's engine core as changes of the weights need, as in vLLM 0.32."""

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class EngineCore:
    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.done: list[str] = []

    def sleep(self, level: int = 1, mode: str = "abort") -> Future[Any] | None:
        self.done.append(f"sleep {level}")
        return None

    def collective_rpc(
        self,
        method: str | Callable[..., Any],
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> list[Any]:
        self.done.append(str(method))
        return [None]

    def set_weight_version(self, weight_version: str) -> None:
        self.done.append(f"version {weight_version}")
