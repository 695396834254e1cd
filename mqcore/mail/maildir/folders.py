"""The folders of a Maildir."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def open_folder(maildir: Path, name: str) -> int:
    """A descriptor of new/, cur/ or tmp/. The Maildir itself may be a link; but who may write to it must not lead us to where
    only we may read or write."""
    path = maildir / name
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except NotADirectoryError:
        if not path.is_symlink():
            raise
        reason = f"this is a link, and may not be one; make {name} a folder, or let all of the Maildir be a link"
        raise OSError(errno.ELOOP, reason, str(path)) from None
