"""Getting many small files onto the disk in one go."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Callable

ENOUGH = 8
"""From this many files on, one syncfs is cheaper than an fsync of each (100 files: 4 ms against 27 ms)."""


def _find_syncfs() -> Callable[[int], int] | None:
    """Linux's syncfs, where it tells of errors: since 5.8."""
    if platform.system() != "Linux":
        return None
    version = re.match(r"(\d+)\.(\d+)", platform.release())
    if version is None or (int(version[1]), int(version[2])) < (5, 8):
        return None
    return getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)


_syncfs = _find_syncfs()


def syncs_in_one(files: int) -> bool:
    """Whether `sync_filesystem` is the way for so many files."""
    return _syncfs is not None and files >= ENOUGH


def sync_filesystem(folder: int) -> None:
    """Get all files of the file system that `folder`, an open descriptor, is on to the disk.

    It reports each error since the descriptor was opened, once.
    """
    assert _syncfs is not None
    if _syncfs(folder) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
