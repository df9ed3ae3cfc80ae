"""vLLM's OpenAI-compatible server as a child process, and requests to it whose connection a case can close."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.e2e_vllm.engines import ANSWER_SECONDS, PATHS, QUIET, START_SECONDS, Answer

MODULE = "vllm.entrypoints.openai.api_server"
LIMIT = 1 << 26


class ServerFailed(Exception):
    """The server has ended or answered with an error."""


@dataclass(slots=True)
class ApiServer:
    """A server, made by `running_api_server`."""

    process: asyncio.subprocess.Process
    port: int
    model: str

    async def until_ready(self) -> None:
        """Wait until it answers. Raises: ServerFailed."""
        async with asyncio.timeout(START_SECONDS):
            while True:
                if self.process.returncode is not None:
                    raise ServerFailed("the server's process has ended; see its log")
                with suppress(OSError, ServerFailed):
                    await self.get("/health")
                    return
                await asyncio.sleep(0.2)

    async def get(self, path: str) -> str:
        """Return the body of a page. Raises: ServerFailed, OSError."""
        return await self._whole("GET", path)

    async def post(self, path: str) -> dict[str, Any]:
        """Post nothing; return the answer. Raises: ServerFailed, OSError."""
        answer: dict[str, Any] = json.loads(await self._whole("POST", path))
        return answer

    async def complete(self, prompt: Sequence[int], max_tokens: int = 16, **more: Any) -> Answer:
        """Stream a completion to its end. Raises: ServerFailed, OSError."""
        tokens: list[int] = []
        cached = 0
        async for event in self.stream(prompt, max_tokens, **more):
            for choice in event["choices"]:
                tokens += choice["token_ids"]
            if usage := event.get("usage"):
                cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return Answer(tokens=tuple(tokens), cached=cached)

    async def stream(self, prompt: Sequence[int], max_tokens: int, **more: Any) -> AsyncGenerator[dict[str, Any]]:
        """Stream a completion. Its connection is closed as soon as this iterator is.

        Raises: ServerFailed, OSError.
        """
        options = self._completion(prompt, max_tokens, **more)
        async with self._connected("POST", "/v1/completions", options) as (headers, reader):
            line = b""
            async for piece in _body(headers, reader):
                *lines, line = (line + piece).split(b"\n")
                for each in lines:
                    if each.startswith(b"data: {"):
                        event = json.loads(each.removeprefix(b"data: "))
                        if "error" in event:
                            raise ServerFailed(event["error"])
                        yield event

    async def drop(self, prompt: Sequence[int], max_tokens: int, *, after_tokens: int | None) -> tuple[int, ...]:
        """Close a stream's connection when so many tokens have come, and return these.

        0: when the answer has begun. None: when the request is sent. Raises: ServerFailed, OSError.
        """
        options = self._completion(prompt, max_tokens)
        if not after_tokens:
            reader, writer = await self._send("POST", "/v1/completions", options)
            if after_tokens is not None:
                await reader.readuntil(b"\r\n\r\n")
            await _close(writer)
            return ()
        tokens: list[int] = []
        async with aclosing(self.stream(prompt, max_tokens)) as events:
            async for event in events:
                for choice in event["choices"]:
                    tokens += choice["token_ids"]
                if len(tokens) >= after_tokens:
                    break
        return tuple(tokens)

    def _completion(self, prompt: Sequence[int], max_tokens: int, **more: Any) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": list(prompt),
            "max_tokens": max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **more,
        }

    async def _whole(self, method: str, path: str) -> str:
        async with asyncio.timeout(ANSWER_SECONDS), self._connected(method, path) as (headers, reader):
            return b"".join([piece async for piece in _body(headers, reader)]).decode()

    async def _send(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=LIMIT)
        content = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(content)}\r\nConnection: close\r\n\r\n".encode() + content)
        await writer.drain()
        return reader, writer

    @asynccontextmanager
    async def _connected(
        self, method: str, path: str, body: dict[str, Any] | None = None
    ) -> AsyncIterator[tuple[dict[str, str], asyncio.StreamReader]]:
        """Send a request; give the answer's headers and the rest. The connection is closed behind it."""
        reader, writer = await self._send(method, path, body)
        try:
            status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            if " 200 " not in f"{status} ":
                raise ServerFailed(f"{status}: {(await reader.read()).decode()[:500]}")
            headers = [line.partition(": ") for line in lines]
            yield {name.lower(): value for name, _, value in headers}, reader
        except asyncio.IncompleteReadError as error:
            raise ServerFailed("the server closed the connection") from error
        finally:
            await _close(writer)


async def _body(headers: dict[str, str], reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Yield the pieces of an answer's body as they come."""
    if headers.get("transfer-encoding") != "chunked":
        yield await reader.readexactly(int(headers.get("content-length", 0)))
        return
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield (await reader.readexactly(size + 2))[:-2]


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(OSError):
        await writer.wait_closed()


@asynccontextmanager
async def running_api_server(
    python: Path, log: Path, options: dict[str, Any], **variables: str
) -> AsyncIterator[ApiServer]:
    """Run a server while the block runs. ``options`` are those of an engine."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KVDEPOT_")}
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(
            python,
            *("-m", MODULE, "--host", "127.0.0.1", "--port", str(port), *_flags(options)),
            stdout=output,
            stderr=output,
            env={**environment, **QUIET, "PYTHONPATH": PATHS, "VLLM_SERVER_DEV_MODE": "1", **variables},
            process_group=0,
        )
    server = ApiServer(process, port, options["model"])
    try:
        await server.until_ready()
        yield server
    finally:
        with suppress(ProcessLookupError, TimeoutError):
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                await process.wait()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _flags(options: dict[str, Any]) -> list[str]:
    """Return options as flags of the command line."""
    flags = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            flags.append(flag)
        else:
            flags += [flag, json.dumps(value) if isinstance(value, dict) else str(value)]
    return flags
