"""HAProxy in front of a server, with folders of its own."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from cli_tools import need
from free_ports import free_port
from senders import wait_for_port

CONFIG = """\
defaults
    mode tcp
    timeout connect 10s
    timeout client 60s
    timeout server 60s
listen smtp
    bind 127.0.0.1:{port}
    server gateway 127.0.0.1:{target} {how} {more}
"""


@contextlib.contextmanager
def haproxy(folder: Path, target: int, how: str, more: str = "") -> Iterator[int]:
    """The port that it listens on; `how` is send-proxy or send-proxy-v2."""
    program = need("haproxy")
    port = free_port()
    (folder / "haproxy.cfg").write_text(CONFIG.format(port=port, target=target, how=how, more=more))
    with (folder / "haproxy.log").open("wb") as log:
        process = subprocess.Popen([program, "-db", "-f", folder / "haproxy.cfg"], stdout=log, stderr=log)
    try:
        wait_for_port(port, process, folder / "haproxy.log")
        yield port
    finally:
        process.terminate()
        process.wait(30)
