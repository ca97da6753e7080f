"""A real browser for tests: headless Chromium, driven over its DevTools pipe. No port, no WebSocket, no package."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-default-apps",
    "--no-pings",
    "--force-color-profile=srgb",
    "--disable-features=Translate,OptimizationHints,MediaRouter",
)
NAMED_KEYS = {
    "Enter": ("\r", 13),
    "Escape": ("", 27),
    "Backspace": ("", 8),
    "Tab": ("", 9),
    "ArrowRight": ("", 39),
}
OUR_OWN_DOING = ("PerformanceIssue", "NavigationEntryMarkedSkippable")  # what `evaluate` does, and no page


class Chromium:
    """One tab. `problems` gathers console errors, exceptions and violations of a page's own policy; `requests` every
    address that the tab asked for.
    """

    def __init__(self) -> None:
        assert PROGRAM is not None, "no chromium"
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        ours, theirs = os.pipe(), os.pipe()  # what we say, what it says; it wants them as descriptors 3 and 4
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20) for fd in (ours[0], theirs[1])]
        root = ["--no-sandbox"] if os.geteuid() == 0 else []
        self._process = subprocess.Popen(
            [str(PROGRAM), *FLAGS, *root, f"--user-data-dir={self._profile.name}", "about:blank"],
            preexec_fn=lambda: (os.dup2(high[0], 3), os.dup2(high[1], 4)),
            pass_fds=(3, 4),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for fd in (ours[0], theirs[1], *high):
            os.close(fd)
        self._out, self._in, self._unread, self._last = ours[1], theirs[0], b"", 0
        self._session: str | None = None
        page = next(each for each in self.send("Target.getTargets")["targetInfos"] if each["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Audits"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._out)
        os.close(self._in)
        self._profile.cleanup()

    def send(self, method: str, seconds: float = 30.0, **parameters: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol and return its result; RuntimeError is its refusal."""
        self._last += 1
        call: dict[str, Any] = {"id": self._last, "method": method, "params": parameters}
        if self._session:
            call["sessionId"] = self._session
        message = json.dumps(call).encode() + b"\0"
        while message:
            message = message[os.write(self._out, message) :]
        end = time.monotonic() + seconds
        while True:
            reply = self._read(end)
            assert reply is not None, f"no answer to {method}"
            if reply.get("id") == self._last:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']['message']}")
                return reply["result"]

    def _read(self, end: float) -> dict[str, Any] | None:
        """The next message, None at the end of the time; what tells of the page is noted on the way."""
        while b"\0" not in self._unread:
            if not select.select([self._in], [], [], max(0.0, end - time.monotonic()))[0]:
                return None
            chunk = os.read(self._in, 1 << 20)
            assert chunk, "the browser has died"
            self._unread += chunk
        raw, _, self._unread = self._unread.partition(b"\0")
        message = json.loads(raw)
        event = message.get("params", {})
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(event["request"]["url"])
            case "Runtime.exceptionThrown":
                self.problems.append(json.dumps(event["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if event["type"] in ("error", "warning", "assert"):
                self.problems.append(json.dumps(event["args"]))
            case "Log.entryAdded" if event["entry"]["level"] in ("error", "warning"):
                self.problems.append(f"{event['entry']['text']} {event['entry'].get('url', '')}")
            case "Audits.issueAdded" if not any(each in str(event["issue"]) for each in OUR_OWN_DOING):
                self.problems.append(json.dumps(event["issue"]))
            case "Page.javascriptDialogOpening":
                self.problems.append(f"dialog: {event['message']}")
        return message

    def pause(self, seconds: float) -> None:
        """Let time pass, and note what happens meanwhile."""
        end = time.monotonic() + seconds
        while self._read(end) is not None:
            pass

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"].get("exception", {}).get("description", str(result)))
        return result["result"].get("value")

    def wait(self, expression: str, seconds: float = 20.0) -> Any:
        """Until the expression is true in the page, whatever page that is by then; its value."""
        end = time.monotonic() + seconds
        while True:
            try:
                if value := self.evaluate(expression):
                    return value
            except RuntimeError:  # the page went away while it was asked
                pass
            if time.monotonic() > end:
                raise AssertionError(f"never {expression} in {self.evaluate('document.body.innerText')!r}")
            self.pause(0.02)

    def open(self, address: str) -> None:
        """Load a page, and everything in it."""
        self.send("Page.navigate", url=address)
        self.wait(f"document.readyState == 'complete' && location.href != 'about:blank' && {json.dumps(address)} != ''")

    def press(self, key: str, repeated: bool = False) -> None:
        """One key down and up, as from a keyboard: a character or a name such as Enter."""
        text, number = NAMED_KEYS.get(key, (key, ord(key.upper()) if len(key) == 1 else 0))
        code = (
            key if key in NAMED_KEYS else ("Digit" if key.isdecimal() else "Key" if key.isalpha() else "") + key.upper()
        )
        fields = {"key": key, "code": code, "windowsVirtualKeyCode": number}
        down = "keyDown" if text else "rawKeyDown"
        self.send("Input.dispatchKeyEvent", type=down, text=text, autoRepeat=repeated, **fields)
        self.send("Input.dispatchKeyEvent", type="keyUp", **fields)

    def type(self, text: str) -> None:
        """Put a text into what has the focus."""
        self.send("Input.insertText", text=text)

    def look(self, width: int, height: int, *, zoom: float = 1.0, phone: bool = False, dark: bool = False) -> None:
        """Give the window a size in pixels, a zoom as the user sets it, and the user's colours."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=round(width / zoom),
            height=round(height / zoom),
            deviceScaleFactor=zoom,
            mobile=phone,
        )
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        """What is in the window, as a PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))
