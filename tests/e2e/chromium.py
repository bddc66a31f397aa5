"""A headless Chromium driven over two pipes with the DevTools protocol: no driver program, no further package.

`--remote-debugging-pipe` makes the browser read commands from file descriptor 3 and write answers to 4, each a JSON
text that ends with a zero byte.
"""

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip
TIMEOUT_S = 20.0


def chromium_program() -> str | None:
    """Returns the path of a Chromium; None if there is none."""
    return next((path for path in map(shutil.which, PROGRAMS) if path), None)


class Page:
    """One tab. Every method waits for its answer."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from = to_browser, from_browser
        self._buffer = b""
        self._last_id = 0
        self._session: str | None = None
        self.console: list[str] = []
        """Errors the page has logged or thrown."""

    def open(self, url: str, width: int, height: int) -> None:
        """Opens a tab of a size at an address."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._call("Page.enable")
        self._call("Runtime.enable")
        self.resize(width, height)
        self._call("Page.navigate", url=url)
        self.wait(f"location.href === {url!r} && document.readyState === 'complete'", f"{url} is loaded")

    def resize(self, width: int, height: int) -> None:
        """Makes the tab as large as a screen; below 600 px it is a phone's."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", **metrics)

    def run(self, expression: str) -> Any:
        """Returns the value of a JavaScript expression."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"]["exception"].get("description", answer["exceptionDetails"]))
        return answer["result"].get("value")

    def wait(self, expression: str, what: str, timeout_s: float = TIMEOUT_S) -> Any:
        """Returns the first true value of an expression; fails naming `what` if it never comes."""
        deadline_s = time.monotonic() + timeout_s
        while not (value := self.run(expression)):
            assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s: {what}; console: {self.console}"
            time.sleep(0.05)
        return value

    def click(self, selector: str) -> None:
        """Presses and releases the mouse in the middle of an element, as a hand would."""
        self.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = f"document.querySelector({selector!r}).getBoundingClientRect()"
        x, y = self.run(f"(box => [box.x + box.width / 2, box.y + box.height / 2])({box})")
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Presses a key: `Enter`, `Tab` or `ArrowLeft`."""
        code = {"Enter": 13, "Tab": 9, "ArrowLeft": 37}[key]
        text = {"Enter": "\r"}.get(key, "")
        self._call("Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=code, text=text)
        self._call("Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=code)

    def screenshot(self, path: Path) -> None:
        """Writes the whole page, also what is below the fold, as PNG."""
        answer = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._last_id += 1
        message: dict[str, Any] = {"id": self._last_id, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive(method)
            if answer.get("method") == "Runtime.exceptionThrown":
                details = answer["params"]["exceptionDetails"]
                self.console.append(str(details.get("exception", {}).get("description", details["text"])))
            if answer.get("id") == self._last_id:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self, method: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], TIMEOUT_S)
            data = os.read(self._from, 1 << 20) if ready else b""
            assert data, f"{method}: the browser does not answer"
            self._buffer += data
        text, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message


@contextmanager
def browser(program: str, folder: Path) -> Iterator[Page]:
    """Gives a page of a fresh browser; ends the browser and all its processes."""
    commands_out, commands_in = os.pipe()
    answers_out, answers_in = os.pipe()
    # The browser wants exactly 3 and 4; a shell does the renumbering, whatever the pipes are called here.
    argv = [program, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
    shell = f'exec "$@" 3<&{commands_out} 4>&{answers_in}'
    with (folder.parent / "chromium.log").open("wb") as log:
        child = subprocess.Popen(
            ["bash", "-c", shell, "bash", *argv],
            pass_fds=(commands_out, answers_in), stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    os.close(commands_out)
    os.close(answers_in)
    try:
        yield Page(commands_in, answers_out)
    finally:
        os.close(commands_in)
        try:
            os.killpg(child.pid, 15)
            child.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, 9)
            child.wait(timeout=10)
        os.close(answers_out)
