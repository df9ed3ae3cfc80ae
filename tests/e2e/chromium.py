"""A real Chromium without a window, over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.fakes.real_servers import needs
from tests.fakes.waiting import eventually

NAME = "chromium-headless-shell"
ANSWER_SECONDS = 30.0
MAX_MESSAGE_BYTES = 64 << 20

needs_chromium = needs(NAME)


class Page:
    """A tab. Problems of the page are collected: errors of its code, and what its security policy blocked."""

    def __init__(self, browser: Browser, session_id: str) -> None:
        self._browser = browser
        self._session_id = session_id
        self.problems: list[str] = []
        self.requested: list[str] = []

    async def command(self, method: str, **parameters: Any) -> Any:
        """Send a command of the protocol, and return its result."""
        return await self._browser.command(method, parameters, self._session_id)

    async def evaluate(self, expression: str) -> Any:
        """Return the value of an expression, or of its promise."""
        answer = await self.command("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    async def open(self, url: str) -> None:
        """Load a page."""
        answer = await self.command("Page.navigate", url=url)
        assert "errorText" not in answer, answer

    async def text(self) -> str:
        """Return what a person can read on the page."""
        return str(await self.evaluate("document.body ? document.body.innerText : ''"))

    async def shows(self, *texts: str) -> None:
        """Wait until the page shows all texts, in any case of letters."""
        shown = ""

        async def are_there() -> bool:
            nonlocal shown
            shown = (await self.text()).lower()
            return all(text.lower() in shown for text in texts)

        try:
            await eventually(are_there)
        except TimeoutError:
            raise AssertionError(f"{texts} are not all in:\n{shown}\n{self.problems}") from None

    async def click(self, selector: str, text: str = "") -> None:
        """Click the first element of a CSS selector that has the text."""
        found = (
            f"[...document.querySelectorAll({json.dumps(selector)})]"
            f".find((each) => each.textContent.includes({json.dumps(text)}))"
        )

        async def is_there() -> bool:
            return bool(await self.evaluate(f"{found} !== undefined"))

        await eventually(is_there)
        await self.evaluate(f"{found}.click()")

    async def type(self, selector: str, text: str) -> None:
        """Put text into a field, as typing does."""
        await self.evaluate(
            f"(() => {{ const field = document.querySelector({json.dumps(selector)}); field.value = {json.dumps(text)};"
            " field.dispatchEvent(new Event('input')); })()"
        )

    async def move(self, x: float, y: float) -> None:
        """Move the mouse."""
        await self.command("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    async def wheel(self, x: float, y: float, delta: float) -> None:
        """Turn the wheel of the mouse."""
        await self.command("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=delta)

    async def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        """Set the size of the window in pixels, and whether the person prefers dark pages."""
        await self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.command("Emulation.setEmulatedMedia", features=[scheme])

    async def picture(self) -> bytes:
        """Return what is shown as a PNG."""
        answer = await self.command("Page.captureScreenshot", format="png")
        return base64.b64decode(answer["data"])

    def take(self, message: dict[str, Any]) -> None:
        """Take an event of the protocol."""
        parameters = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.problems.append(json.dumps(parameters["exceptionDetails"]))
            case "Log.entryAdded" if parameters["entry"]["source"] == "security":
                self.problems.append(parameters["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requested.append(parameters["request"]["url"])


class Browser:
    """A browser process, over two pipes."""

    def __init__(self, reader: asyncio.StreamReader, writer: int) -> None:
        self._reader = reader
        self._writer = writer
        self._numbers = iter(range(1, 1 << 30))
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._pages: dict[str, Page] = {}

    async def command(self, method: str, parameters: dict[str, Any], session_id: str = "") -> Any:
        """Send a command, and return its result."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": parameters}
        if session_id:
            message["sessionId"] = session_id
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        async with asyncio.timeout(ANSWER_SECONDS):
            result = await answer
        assert "error" not in result, f"{method}: {result}"
        return result["result"]

    async def page(self) -> Page:
        """Open a tab of a person with no history and no storage."""
        context = await self.command("Target.createBrowserContext", {})
        target = await self.command(
            "Target.createTarget", {"url": "about:blank", "browserContextId": context["browserContextId"]}
        )
        attached = await self.command("Target.attachToTarget", {"targetId": target["targetId"], "flatten": True})
        page = self._pages[attached["sessionId"]] = Page(self, attached["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            await page.command(f"{domain}.enable")
        await page.resize(1280, 900)
        return page

    async def read(self) -> None:
        """Take messages until the browser ends."""
        while True:
            try:
                message = json.loads((await self._reader.readuntil(b"\0"))[:-1])
            except asyncio.IncompleteReadError:
                return
            if "id" in message:
                self._answers.pop(message["id"]).set_result(message)
            elif (page := self._pages.get(message.get("sessionId", ""))) is not None:
                page.take(message)


@asynccontextmanager
async def chromium(*flags: str) -> AsyncIterator[Browser]:
    """Run a browser during the block."""
    to_browser, from_browser = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(prefix="kvdepot-chromium-", ignore_cleanup_errors=True) as folder:
        # The protocol's pipes are the descriptors 3 and 4 of the browser.
        script = f'exec "$0" "$@" 3<&{to_browser[0]} 4>&{from_browser[1]}'
        process = await asyncio.create_subprocess_exec(
            *("bash", "-c", script, *_command(), *flags, f"--user-data-dir={folder}", "about:blank"),
            pass_fds=(to_browser[0], from_browser[1]),
            env={**os.environ, **_libraries(), "HOME": folder},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        os.close(to_browser[0])
        os.close(from_browser[1])
        reader = asyncio.StreamReader(limit=MAX_MESSAGE_BYTES)
        pipe = os.fdopen(from_browser[0], "rb")
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        browser = Browser(reader, to_browser[1])
        reading = asyncio.create_task(browser.read())
        try:
            yield browser
        finally:
            process.kill()
            await process.wait()
            await reading
            transport.close()
            os.close(to_browser[1])


def _command() -> Sequence[str]:
    flags = ["--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--remote-debugging-pipe"]
    return [str(_folder() / "lib" / "chromium" / NAME), *flags]


def _libraries() -> dict[str, str]:
    """Return where the browser finds the libraries that were fetched with it."""
    folder = _folder() / "lib" / f"{os.uname().machine}-linux-gnu"
    return {"LD_LIBRARY_PATH": f"{folder}:{folder / 'pulseaudio'}"} if str(_folder()) != "/usr" else {}


def _folder() -> Path:
    found = shutil.which(NAME)
    assert found is not None
    return Path(found).resolve().parents[1]
