"""Prometheus, with folders of its own, and its tool."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cli_tools import need
from free_ports import free_port
from senders import wait_for_port

CONFIG = """\
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [{rules}]
scrape_configs:
  - job_name: mqcore
    static_configs: [{{targets: ["{target}"]}}]
"""


class Prometheus:
    def __init__(self, port: int) -> None:
        self._root = f"http://127.0.0.1:{port}/"
        self._url = f"{self._root}api/v1/"

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self._root}-/ready", timeout=30) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def ask(self, path: str, **parameters: str) -> Any:
        with urllib.request.urlopen(f"{self._url}{path}?{urllib.parse.urlencode(parameters)}", timeout=30) as answer:
            return json.load(answer)["data"]

    def value(self, query: str) -> float | None:
        """Of what has one series; None if it has none."""
        result = self.ask("query", query=query)["result"]
        assert len(result) <= 1, result
        return float(result[0]["value"][1]) if result else None

    def wait_for(self, query: str, value: float) -> None:
        give_up = time.monotonic() + 30
        while self.value(query) != value:
            assert time.monotonic() < give_up, (query, self.value(query), self.ask("targets"))
            time.sleep(0.1)


@contextlib.contextmanager
def prometheus(folder: Path, target: str, rules: Path) -> Iterator[Prometheus]:
    """Scrapes `target`, HOST:PORT, each second."""
    program, port = need("prometheus"), free_port()
    config = folder / "prometheus.yml"
    config.write_text(CONFIG.format(target=target, rules=json.dumps(str(rules))))
    command = [program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for_port(port, process, folder / "prometheus.log")
        watcher, give_up = Prometheus(port), time.monotonic() + 30
        while not watcher.is_ready():
            assert time.monotonic() < give_up, (folder / "prometheus.log").read_text()
            time.sleep(0.05)
        yield watcher
    finally:
        process.kill()
        process.wait(30)


def promtool(*arguments: object, **options: Any) -> str:
    """What it says, which is nothing wrong."""
    command = [need("promtool", "prometheus"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, timeout=60, **options)
    assert done.returncode == 0, (done.stdout, done.stderr)
    return (done.stdout + done.stderr).decode()
