"""Networks of our own, in namespaces of Linux, for what happens between machines."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, timeout=30)


@contextlib.contextmanager
def joined(namespace: str, here: str, there: str) -> Iterator[None]:
    """A new namespace, and a cable between this machine's end `here` and its own end `there`."""
    with contextlib.ExitStack() as undo:
        ip("netns", "add", namespace)
        undo.callback(ip, "netns", "del", namespace)
        ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", namespace)
        # Before the namespace, which may live on when it is deleted, and with it the cable, whose name is taken.
        undo.callback(ip, "link", "del", here)
        yield


def why_none() -> str | None:
    """Why there can be none here, if so. A container, or a kernel without these modules, lets not even root make any."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces are Linux's, and root's"
    if shutil.which("ip") is None:
        return "ip is not installed (Debian: apt-get install iproute2)"
    make = "ip link add cable type veth peer name end && ip link add bridge type bridge"
    tried = subprocess.run(["unshare", "--net", "sh", "-c", make], capture_output=True, text=True, timeout=30)
    return f"no networks can be made here: {tried.stderr.strip()}" if tried.returncode else None
