"""Servers that run in processes of their own: the command, listening, and Postfix's smtp-sink."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from moving import environment

SMTP_SINK = ("smtp-sink", *(("-u", "nobody") if os.getuid() == 0 else ()))


@contextlib.contextmanager
def smtp_sink() -> Iterator[int]:
    """The port of a server that takes every mail and keeps none."""
    port = free_port()
    with running([*SMTP_SINK, f"127.0.0.1:{port}", "1024"], port):
        yield port


@contextlib.contextmanager
def mqcore(*arguments: str, **options: Any) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`mqcore run --from smtp:...` with these arguments, and its port."""
    port = free_port()
    command = [sys.executable, "-P", "-m", "mqcore", "run", "--from", f"smtp://127.0.0.1:{port}", *arguments]
    with running(command, port, **options) as process:
        yield process, port


@contextlib.contextmanager
def running(command: list[str], port: int, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """From when it listens on the port until the end of the block. Without options it is quiet."""
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, env=environment(), **quiet | options)
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit(f"{' '.join(command)} does not run")
            with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.wait()


def free_port() -> int:
    """One that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port
