"""Listening on a Unix socket."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator

MODE = 0o660
"""Who may connect: the owner and the group of the socket. In a folder with the setgid bit, that is the folder's group."""
PATIENCE = 2.0
SHORT = 0.2
"""Seconds, the latter at the end, when a loop waits."""


class UnixSocket:
    """A socket that listens at a path. One that a process which was killed left there is replaced, one that somebody listens
    on is not. OSError is raised for what cannot be.

    Whoever looks at the path, replaces what is there, or removes it, has a lock on the folder meanwhile, so that two processes
    which begin or end at once do not take the path from each other. Nobody waits for long: in /tmp anybody may have the lock.
    """

    def __init__(self, path: str, mode: int = MODE) -> None:
        self._path = os.path.abspath(path)  # whatever a plugin makes the current directory
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with self._alone(PATIENCE):
                self._remove_if_dead()
                os.fchmod(self.listener.fileno(), mode)  # on Linux no more is allowed from the beginning
                self.listener.bind(self._path)
                os.chmod(self._path, mode)  # whatever the umask; until it listens nobody can connect
                self.listener.listen()
        except BaseException:
            self.listener.close()
            raise

    def close(self) -> None:
        """Also remove the path, unless another process has it by now, or has the lock for long."""
        self.listener.close()
        with contextlib.suppress(OSError), self._alone(SHORT):
            self._remove_if_dead()

    @contextlib.contextmanager
    def _alone(self, patience: float) -> Iterator[None]:
        """For so many seconds it waits for others, then it raises OSError."""
        give_up = time.monotonic() + patience
        folder = os.open(os.path.dirname(self._path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            while not _lock(folder):
                if time.monotonic() >= give_up:
                    raise OSError(errno.EAGAIN, f"another process has a lock on {os.path.dirname(self._path)}")
                time.sleep(0.01)
            yield
        finally:
            os.close(folder)

    def _remove_if_dead(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.lstat(self._path).st_mode) and not self._is_alive():
                os.unlink(self._path)

    def _is_alive(self) -> bool:
        """Whether somebody listens there; also if that cannot be found out."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.setblocking(False)  # a server that is busy is one
            return client.connect_ex(self._path) != errno.ECONNREFUSED


def _lock(folder: int) -> bool:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
