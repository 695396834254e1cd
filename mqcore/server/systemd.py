"""What systemd is told of the server: sd_notify(3)."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator


def notify(*states: str) -> None:
    """Such as `READY=1` and `STATUS=...`. Where systemd did not start this process, or does not ask, nothing happens."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    address = f"\0{path[1:]}" if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)  # the mail does not wait for it
        sender.sendto("\n".join(states).encode(errors="replace"), address)


@contextlib.contextmanager
def reloading() -> Iterator[None]:
    """Within the block the server reloads; afterwards it is ready again, whatever came of it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        yield
    finally:
        notify("READY=1")
