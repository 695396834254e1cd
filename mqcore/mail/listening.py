"""Listening at a port, on each address of a host."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterable
from typing import Any

from .errors import describe


def listen_on(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of the host that this machine has: `localhost` may be ::1 too, where IPv6 is turned off.
    Without a host, for all addresses of the machine. With port 0 the system chooses one, the same for all. Raises OSError."""
    missing: OSError | None = None
    listeners: list[socket.socket] = []
    with contextlib.ExitStack() as undo:
        for family, address in _find_addresses(host, port):
            try:
                listener = _listen(family, (address[0], port, *address[2:]))
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = error
            else:
                undo.callback(listener.close)
                listeners.append(listener)
                port = listener.getsockname()[1]
        if missing is not None and not listeners:
            raise missing
        undo.pop_all()
    return listeners


def _find_addresses(host: str, port: int) -> Iterable[tuple[int, tuple[Any, ...]]]:
    """Each once, with its family."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return dict.fromkeys((family, address) for family, _, _, _, address in found)


def _listen(family: int, address: tuple[Any, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen()  # here, so that a port that another program has is found before anything begins
    except BaseException:
        listener.close()
        raise
    return listener


def explain(error: OSError, where: int | str) -> str:
    """Why nothing can listen at a port, or at the path of a socket."""
    reason = describe(error)
    match error.errno:
        case errno.EADDRINUSE:
            return f"{reason}; another program has this {'port' if isinstance(where, int) else 'path'}"
        case errno.EACCES if isinstance(where, int) and where < 1024:
            return f"{reason}; only root may listen on a port below 1024: choose a higher one"
        case errno.EADDRNOTAVAIL:
            return f"{reason}; this machine has no such address"
    return reason
