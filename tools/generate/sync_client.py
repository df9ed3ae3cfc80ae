"""The client with blocking calls, generated from the one for an event loop."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).parents[2] / "clients/python/kvdepot"
NAMES = ("client.py", "attachment.py", "pin_calls.py", "rank_calls.py", "session.py")

SUBSTITUTIONS = (
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\b__a(enter|exit)__\b", r"__\1__"),
    (r"\baclosing\b", "closing"),
    (r"\bAsyncGenerator\[(.+?), None\]", r"Generator[\1, None, None]"),
    (r"\bAsyncGenerator\b", "Generator"),
    (r"\bAsync(Attachment|Calls|DepotClient|PinCalls|RankCalls|Session)\b", r"\1"),
    (r"\bkvdepot\.aio\.tasks\b", "kvdepot.sync.threads"),
    (r"\bkvdepot\.aio\b", "kvdepot.sync"),
    # What docstrings say.
    (r"The client for an event loop", "The client with blocking calls"),
    (r"(attachment|rank|engine|request), on an event loop", r"\1, with blocking calls"),
    (r"instances and sessions, for the event loop it is made on", "instances, sessions and threads"),
    (r"once, on the event loop,", "once, in the attachment's thread,"),
    (r"A task reads", "A daemon thread reads"),
    (r"Methods are called on the\n    event loop of the client", "Methods may be\n    called from any thread"),
    (r"this raises or is cancelled", "this raises"),
)


def sync_module(name: str) -> str:
    """Return a module of `kvdepot.sync`, made of its namesake in `kvdepot.aio`."""
    text = (CLIENT / "aio" / name).read_text()
    for pattern, replacement in SUBSTITUTIONS:
        text = re.sub(pattern, replacement, text)
    text = f"# Generated from aio/{name} by `make docs`: edit that file.\n{text}"
    path = str(CLIENT / "sync" / name)
    sorted_imports = _ruff(text, "check", "--quiet", "--fix", "--select", "I", "--stdin-filename", path, "-")
    return _ruff(sorted_imports, "format", "--quiet", "--stdin-filename", path, "-")


def _ruff(text: str, *arguments: str) -> str:
    """Return a module as ruff formats it."""
    command = [sys.executable, "-m", "ruff", *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
