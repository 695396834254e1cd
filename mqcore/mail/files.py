"""Small helpers on files."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def write_all(fd: int, data: bytes) -> None:
    """Write all of it, though the system may take it in portions."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def sync(fd: int) -> None:
    """Bring a file to the disk. Any failure is an error of the disk, also one that is for lack of room: nobody knows what the
    file is then, and the system tells of it but once.
    """
    try:
        os.fsync(fd)
    except OSError as error:
        raise OSError(errno.EIO, error.strerror) from error


def sync_folder(path: Path) -> None:
    """Bring the folder's names to the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
