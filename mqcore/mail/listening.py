"""What a server listens on: a port, on each address of a host; a Unix socket; or what systemd or a supervisor passes on."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Iterable, Sequence
from typing import Any, Self

from .activation import take_sockets
from .errors import SourceError, describe
from .unix_socket import UnixSocket

SYSTEMD = "systemd"
"""In place of host and port: systemd listens, and passes its sockets on."""
BALANCES = sys.platform == "linux"
"""Whether the system spreads connections over the sockets that share a port by SO_REUSEPORT. Elsewhere one of them gets all."""


class Listening:
    """The sockets of a source that listens, at a path of its URL: `//HOST:PORT`, `unix:PATH` or `systemd`.

    For several processes there is a set of sockets for each, `slots`, which share the port: the system spreads connections over
    them evenly. It cannot do that everywhere, nor with Unix sockets, nor with those of systemd: then there is one set, for all.
    """

    def __init__(self, scheme: str, path: str, processes: int = 1) -> None:
        """Raises SourceError, with a text for people."""
        self.url = f"{scheme}:{path}"
        self.port: int | None = None
        """None where there is none, as with a Unix socket."""
        self.is_local = path.startswith("unix:")
        self._unix: UnixSocket | None = None
        where: int | str = path.removeprefix("unix:")
        try:
            if self.is_local:
                self._unix = UnixSocket(path.removeprefix("unix:"))
                self.slots = [[self._unix.listener]]
            elif path == SYSTEMD:
                self.slots = [self._take()]
            else:
                host, where = split_host(path)
                self.slots = listen_in_slots(host, where, processes)
        except OSError as error:
            raise SourceError(f"cannot listen on {self.url}: {explain(error, where)}") from error
        self._find_port()
        if not self.is_local and path != SYSTEMD:
            self.url = f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}"

    @classmethod
    def handed_over(cls, url: str, fds: Iterable[int]) -> Self:
        """With sockets that another process made, and this one has got."""
        self = cls.__new__(cls)
        self.url = url
        self.port = None
        self._unix = None
        self.slots = [[]]
        for fd in fds:
            os.set_inheritable(fd, False)
            self.slots[0].append(socket.socket(fileno=fd))
        self.is_local = all(one.family == socket.AF_UNIX for one in self.listeners)
        self._find_port()
        return self

    @property
    def listeners(self) -> Sequence[socket.socket]:
        """Those of the first process, or of all."""
        return self.slots[0]

    def _take(self) -> list[socket.socket]:
        try:
            taken = take_sockets()
        except (ValueError, OSError) as error:
            raise SourceError(f"cannot listen on what systemd passes on to {self.url}: {error}") from error
        if not taken:
            raise SourceError(f"systemd passes no socket on to {self.url}: start it by a .socket unit")
        return taken

    def _find_port(self) -> None:
        ports = [one.getsockname()[1] for one in self.listeners if one.family != socket.AF_UNIX]
        self.port = ports[0] if ports else None

    def close(self) -> None:
        for listeners in self.slots:
            for listener in listeners:
                listener.close()
        if self._unix is not None:
            self._unix.close()


def listen_in_slots(host: str, port: int, processes: int) -> list[list[socket.socket]]:
    """As `listen_on`, for so many processes. Raises OSError."""
    if processes == 1 or not BALANCES:
        return [listen_on(host, port)]
    with contextlib.ExitStack() as undo:
        # Alone at first: beside sockets of another run of the same user, SO_REUSEPORT would let ours be.
        first = listen_on(host, port)
        port = first[0].getsockname()[1]
        for one in first:
            one.close()
        slots = []
        for _ in range(processes):
            slots.append(listen_on(host, port, shared=True))
            for one in slots[-1]:
                undo.callback(one.close)
        undo.pop_all()
    return slots


def listen_on(host: str, port: int, *, shared: bool = False) -> list[socket.socket]:
    """A socket for each address of the host that this machine has: `localhost` may be ::1 too, where IPv6 is turned off.
    Without a host, for all addresses of the machine. With port 0 the system chooses one, the same for all. `shared`: others of
    this process may listen there too. Raises OSError."""
    missing: OSError | None = None
    listeners: list[socket.socket] = []
    with contextlib.ExitStack() as undo:
        for family, address in _find_addresses(host, port):
            try:
                listener = _listen(family, (address[0], port, *address[2:]), shared=shared)
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


def _listen(family: int, address: tuple[Any, ...], *, shared: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
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
        case errno.EADDRINUSE if isinstance(where, str) and os.path.isfile(where):
            return f"{reason}; there is a file, and no socket: choose another path, or take it away"
        case errno.EADDRINUSE:
            return f"{reason}; another program has this {'port' if isinstance(where, int) else 'path'}"
        case errno.ENOENT if isinstance(where, str):
            return f"{reason}; make the folder {os.path.dirname(os.path.abspath(where))} first"
        case errno.EACCES if isinstance(where, int) and where < 1024:
            return f"{reason}; only root may listen on a port below 1024: choose a higher one"
        case errno.EADDRNOTAVAIL:
            return f"{reason}; this machine has no such address"
    return reason


def split_host(path: str) -> tuple[str, int]:
    """Host and port of `//HOST:PORT`; an IPv6 address stands in brackets. Raises ValueError."""
    if not path.startswith("//"):
        raise ValueError(f"{path!r} is not //HOST:PORT")
    host, colon, port = path.removeprefix("//").rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif "@" in host:
        raise ValueError(f"{path!r} is not //HOST:PORT; a user and a password have no place in it")
    elif ":" in host:
        raise ValueError(f"an IPv6 address stands in brackets: //[{host}]:{port}")
    if not colon or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise ValueError(f"{path!r} is not //HOST:PORT")
    try:
        host.encode("idna")  # as the resolver will
    except UnicodeError:
        raise ValueError(f"{host!r} is no name of a host") from None
    return host, int(port)
