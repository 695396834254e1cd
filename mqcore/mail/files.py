"""Small helpers on files."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from pathlib import Path


def write_all(fd: int, data: bytes) -> None:
    """Write all of it, though the system may take it in portions."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def append(fd: int, data: bytes) -> None:
    """Write all of it at the end of a file that is open for that; where that fails, as on a full disk, cut off what was
    written: what came next would begin within a line."""
    size = os.fstat(fd).st_size
    try:
        write_all(fd, data)
    except BaseException:
        with contextlib.suppress(OSError):
            os.ftruncate(fd, size)
        raise


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


def raise_file_limit(wanted: int) -> int:
    """Let the process open so many files, or as many as it may, and return how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        return soft
    return wanted
