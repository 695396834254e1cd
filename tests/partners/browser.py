"""A browser without a window, steered by WebDriver."""

from __future__ import annotations

import base64
import contextlib
import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cli_tools import need
from free_ports import free_port
from senders import wait_for_port


class Browser:
    def __init__(self, port: int, options: dict[str, Any]) -> None:
        self._url = f"http://127.0.0.1:{port}/session"
        self._url += "/" + self._ask("POST", "", {"capabilities": {"alwaysMatch": options}})["sessionId"]

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._url}{path}", data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, url: str) -> None:
        self._ask("POST", "/url", {"url": url})

    def run(self, script: str) -> Any:
        """What `script`, the body of a function, returns."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": []})

    def wait_for(self, script: str) -> Any:
        give_up = time.monotonic() + 30
        while not (found := self.run(f"return {script}")):
            assert time.monotonic() < give_up, (script, self.run("return document.body.innerText"), self.log())
            time.sleep(0.05)
        return found

    def press(self, *keys: str) -> None:
        """One after the other, as WebDriver names them."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._ask("POST", "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def emulate(self, command: str, **parameters: Any) -> None:
        self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def screenshot(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self._ask("GET", "/screenshot")))

    def log(self) -> list[dict[str, Any]]:
        """What it complained of since it was asked last."""
        found: list[dict[str, Any]] = self._ask("POST", "/se/log", {"type": "browser"})
        return found

    def close(self) -> None:
        self._ask("DELETE", "")


@contextlib.contextmanager
def chromium(folder: Path) -> Iterator[Browser]:
    driver, program, port = need("chromedriver", "chromium-driver"), need("chromium"), free_port()
    arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    arguments.append(f"--user-data-dir={folder / 'user'}")
    options = {
        "goog:chromeOptions": {"binary": program, "args": arguments},
        "goog:loggingPrefs": {"browser": "ALL"},
    }
    with (folder / "chromedriver.log").open("wb") as log:
        process = subprocess.Popen([driver, f"--port={port}"], stdout=log, stderr=log)
    try:
        wait_for_port(port, process, folder / "chromedriver.log")
        browser = Browser(port, options)
        try:
            yield browser
        finally:
            browser.close()
    finally:
        process.terminate()
        process.wait(30)
