"""Headless Chromium by its DevTools protocol: what a page logs, fetches and shows."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_LOOK = """(() => {
  document.querySelectorAll('details').forEach(d => d.open = true);
  const images = [...document.querySelectorAll('img')], figures = [...document.querySelectorAll('svg[role=img]')];
  return JSON.stringify({
    images: images.length,
    broken: images.filter(i => !i.complete || !i.naturalWidth).map(i => i.alt || i.src),
    unnamed: images.filter(i => !i.alt).length + figures.filter(f => !f.getAttribute('aria-label')).length,
    figures: figures.length,
    flat: figures.filter(f => f.getBoundingClientRect().height < 20).length,
    ids: [...document.querySelectorAll('[id]')].map(e => e.id),
    width: innerWidth,
    wide: document.documentElement.scrollWidth,
    height: document.documentElement.scrollHeight,
    text: document.body.innerText,
    ink: getComputedStyle(document.body).color,
    paper: getComputedStyle(document.body).backgroundColor,
    smallest: Math.min(...[...document.querySelectorAll('svg text')].map(
      t => parseFloat(getComputedStyle(t).fontSize) * Math.hypot(t.getScreenCTM().a, t.getScreenCTM().b))),
  });
})()"""


@dataclass
class Seen:
    """What a page did and shows.

    Attributes:
        errors: messages of the console and the browser's log that are warnings or worse, and uncaught exceptions.
        fetched: addresses that it asked for beside itself; ``data:`` is no fetching.
        page: what `_LOOK` found.
    """

    errors: list[str]
    fetched: list[str]
    page: dict[str, Any]


class Browser:
    """One Chromium with one tab, spoken to through a pipe."""

    def __init__(self, process: subprocess.Popen[bytes], to: IO[bytes], from_fd: int) -> None:
        self.process, self.to, self.from_fd = process, to, from_fd
        self.rest, self.number, self.events = b"", 0, []  # type: tuple[bytes, int, list[dict[str, Any]]]
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def look(self, file: Path, width: int, *, dark: bool = False, shot: Path | None = None) -> Seen:
        """Open a file, and all that is folded in it, in a window of a width in pixels, and say what there is.

        ``shot`` gets a picture of the whole page.
        """
        self.events.clear()
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self._resize(width, 1000)
        self.call("Page.navigate", url=file.as_uri())
        self._until("Page.loadEventFired")
        page = json.loads(self.call("Runtime.evaluate", expression=_LOOK)["result"]["value"])
        if shot:
            self._resize(width, page["height"])
            shot.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
        time.sleep(0.2)  # the log arrives late
        self.call("Runtime.evaluate", expression="0")
        return Seen(self._errors(), self._fetched(file.as_uri()), page)

    def _resize(self, width: int, height: int) -> None:
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def _errors(self) -> list[str]:
        found = []
        for event in self.events:
            what, about = event.get("method"), event.get("params", {})
            if what == "Runtime.exceptionThrown":
                found.append(str(about["exceptionDetails"].get("text")))
            elif what == "Runtime.consoleAPICalled" and about["type"] in ("error", "warning", "assert"):
                found.append(str(about["args"]))
            elif what == "Log.entryAdded" and about["entry"]["level"] in ("error", "warning"):
                found.append(about["entry"]["text"])
        return found

    def _fetched(self, own: str) -> list[str]:
        asked = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [url for url in asked if url != own and not url.startswith("data:")]

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask the browser something and wait for the answer; events on the way are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        session = getattr(self, "session", None)
        self.to.write(json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        self.to.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def _until(self, event: str) -> None:
        while not any(e.get("method") == event for e in self.events):
            self._next()

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            assert select.select([self.from_fd], [], [], 60)[0], "Chromium says nothing"
            more = os.read(self.from_fd, 1 << 16)
            assert more, "Chromium has ended"
            self.rest += more
        message, _, self.rest = self.rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        if "method" in found:
            self.events.append(found)
        return found


@contextmanager
def browser() -> Iterator[Browser]:
    """A Chromium that ends with the block."""
    assert CHROMIUM is not None
    their_in, to = os.pipe()
    from_fd, their_out = os.pipe()
    # The protocol's pipe is 3 and 4 in the child; high numbers here, so that neither is overwritten on the way.
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (their_in, their_out)]

    def pipe() -> None:
        for target, fd in zip((3, 4), high, strict=True):
            os.dup2(fd, target)

    with tempfile.TemporaryDirectory(prefix="yolokd-chromium-", ignore_cleanup_errors=True) as profile:
        words = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        words += ["--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run"]
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(words, preexec_fn=pipe, pass_fds=(3, 4), stdout=quiet, stderr=quiet)
        for fd in (their_in, their_out, *high):
            os.close(fd)
        try:
            with os.fdopen(to, "wb") as writing:
                yield Browser(process, writing, from_fd)
                writing.write(b'{"id":0,"method":"Browser.close"}\0')
            process.wait(30)
        finally:
            process.kill()
            process.wait()
            os.close(from_fd)
