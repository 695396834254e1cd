"""Giving a file its name where readers look, never in place of another one."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Callable

RENAME_NOREPLACE = 1


def _find_renameat2() -> Callable[[int, bytes, int, bytes, int], int] | None:
    if platform.system() != "Linux":
        return None
    return getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


_renameat2 = _find_renameat2()


def publish(file: str, name: str, tmp: int, folder: int) -> bool:
    """Move `file` in the folder `tmp` to `folder`, both open descriptors, as `name`; False if a file has that name already.

    `file` is gone either way.
    """
    if _renameat2 is not None:
        if _renameat2(tmp, os.fsencode(file), folder, os.fsencode(name), RENAME_NOREPLACE) == 0:
            return True
        number = ctypes.get_errno()
        if number not in (errno.EEXIST, errno.EINVAL, errno.ENOSYS):
            raise OSError(number, os.strerror(number))
    # The file is there, or this file system, as NFS, or this kernel has no such call.
    try:
        os.link(file, name, src_dir_fd=tmp, dst_dir_fd=folder, follow_symlinks=False)
    except FileExistsError:
        return False
    finally:
        os.unlink(file, dir_fd=tmp)
    return True
