"""What systemd is told of the server, sd_notify(3), and what it says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Iterator

CONTROL = "control.sock"
BUSY_FOR = 1.0
"""Seconds: systemd, which takes ten messages in advance, has so long to take one that it must not miss."""
ALIVE = "WATCHDOG=1"


def notify(*states: str) -> None:
    """Such as `READY=1` and `STATUS=...`. Where systemd did not start this process, or does not ask, nothing happens."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    address = f"\0{path[1:]}" if path.startswith("@") else path
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        # The mail does not wait for it; but without `READY=1` systemd would end the server that it has just started.
        sender.settimeout(0.0 if states == (ALIVE,) else BUSY_FOR)
        sender.sendto("\n".join(states).encode(errors="replace"), address)


def control_socket() -> str | None:
    """The path of one in the unit's own folder (RuntimeDirectory=); None where it has none."""
    folder = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return os.path.join(folder, CONTROL) if folder else None


def watchdog_interval() -> float | None:
    """Seconds from one `WATCHDOG=1` to the next: twice in the time after which systemd ends this process; None: never."""
    time, pid = os.environ.get("WATCHDOG_USEC", ""), os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if pid != str(os.getpid()) or not (time.isascii() and time.isdecimal() and int(time)):
        return None
    return int(time) / 2e6


@contextlib.contextmanager
def kept_alive(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Within the block the loop tells systemd that it turns, if systemd waits for that (WatchdogSec=)."""
    interval = watchdog_interval()
    if interval is None:
        yield
        return

    async def tell() -> None:
        while True:
            notify(ALIVE)
            await asyncio.sleep(interval)

    telling = loop.create_task(tell())
    try:
        yield
    finally:
        telling.cancel()


@contextlib.contextmanager
def reloading() -> Iterator[None]:
    """Within the block the server reloads; afterwards it is ready again, whatever came of it."""
    notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
    try:
        yield
    finally:
        notify("READY=1")
