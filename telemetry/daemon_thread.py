"""Work that may never end, in a thread that a process does not wait for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")


async def in_daemon_thread(work: Callable[[], Result], name: str) -> Result:
    """Do the work in a daemon thread and wait for it; who is cancelled leaves the thread behind, and waits no more.

    Unlike the threads of an executor, such as those of ``asyncio.to_thread``, nobody joins it at exit.
    """
    done: Future[Result] = Future()
    done.set_running_or_notify_cancel()  # it can't be cancelled: the thread will settle it

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(result)

    threading.Thread(target=run, name=name, daemon=True).start()
    return await asyncio.wrap_future(done)
