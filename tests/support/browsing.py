"""A real browser without a window, told what to do over a pair of pipes: Chromium's own protocol, no library."""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# The browser reads commands from file descriptor 3 and answers on 4.
_BOOT = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3), os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def chromium() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One tab. What the pages say on the console, and what goes wrong in them, gathers in `complaints`."""

    def __init__(self, commands: int, answers: int, seconds: float = 20.0) -> None:
        self.commands, self.answers, self.seconds = commands, answers, seconds
        self.number, self.buffer, self.complaints, self.requests, self.loaded = 0, b"", [], [], False
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    session: str | None = None

    def send(self, method: str, **params) -> dict:
        return self._call(method, **params)

    def open(self, page: Path, *, width: int, height: int = 900, dark: bool = False) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.loaded = False
        self.send("Page.navigate", url=page.resolve().as_uri())
        end = time.monotonic() + self.seconds
        while not self.loaded:
            self._hear(self._message(end))

    def ask(self, expression: str):
        """The value of an expression of JavaScript in the page."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of an element."""
        place = f"document.querySelector({json.dumps(selector)})"
        self.ask(f"{place}.scrollIntoView({{block: 'center', inline: 'center'}})")
        box = self.ask(f"{place}.getBoundingClientRect().toJSON()")
        where = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **where)

    def _call(self, method: str, **params) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session is not None:
            message["sessionId"] = self.session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self.commands, data) :]
        end = time.monotonic() + self.seconds
        while True:
            answer = self._message(end)
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self._hear(answer)

    def _message(self, end: float) -> dict:
        while b"\0" not in self.buffer:
            os.set_blocking(self.answers, False)
            try:
                found = os.read(self.answers, 1 << 20)
            except BlockingIOError:
                assert time.monotonic() < end, "the browser doesn't answer"
                time.sleep(0.005)
                continue
            assert found, "the browser has ended"
            self.buffer += found
        text, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(text)

    def _hear(self, event: dict) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Page.loadEventFired":
            self.loaded = True
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(params["exceptionDetails"])
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(params["args"])
        elif method == "Log.entryAdded":
            self.complaints.append(params["entry"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])


@contextmanager
def browser(program: str, home: Path):
    """Start a browser with an empty profile, and end it."""
    to_browser, from_browser = os.pipe(), os.pipe()
    ends = [to_browser[0], from_browser[1]]
    words = ["--headless", "--remote-debugging-pipe", f"--user-data-dir={home}", "--disable-gpu", "--no-first-run",
             "--disable-extensions", "--disable-background-networking", "--disable-dev-shm-usage"]  # fmt: skip
    if os.geteuid() == 0:
        words.append("--no-sandbox")
    process = subprocess.Popen(
        [sys.executable, "-c", _BOOT, *map(str, ends), program, *words],
        pass_fds=ends, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    for end in ends:
        os.close(end)
    try:
        yield Browser(to_browser[1], from_browser[0])
    finally:
        os.close(to_browser[1])  # The browser ends when nobody can tell it anything any more.
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(from_browser[0])
