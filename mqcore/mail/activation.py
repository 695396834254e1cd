"""Sockets that systemd listens on for this process: sd_listen_fds(3)."""

from __future__ import annotations

import os
import socket

FIRST = 3
"""File descriptor of the first."""


def take_sockets() -> list[socket.socket]:
    """They are this process's own from now on; a second time there are none. Raises ValueError for one that will not do."""
    number, count = (os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS"))
    os.environ.pop("LISTEN_FDNAMES", None)
    if number != str(os.getpid()) or not (count.isascii() and count.isdecimal()):
        return []
    taken = []
    for fd in range(FIRST, FIRST + int(count)):
        os.set_inheritable(fd, False)
        taken.append(socket.socket(fileno=fd))
    try:
        for one in taken:
            _check(one)
    except ValueError:
        for one in taken:
            one.close()
        raise
    return taken


def _check(one: socket.socket) -> None:
    if one.type != socket.SOCK_STREAM or not one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise ValueError("one of its sockets does not listen; in the .socket unit, write ListenStream= and Accept=no")
    if one.family == socket.AF_INET6 and not one.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        raise ValueError("one of its sockets is for IPv4 and IPv6 at once; in the .socket unit, write BindIPv6Only=ipv6-only")
