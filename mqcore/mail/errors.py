"""The errors of sources and sinks. The command ends with exit code 4 on either."""

from __future__ import annotations

import errno
import os

from ..errors import MqError


class SourceError(MqError):
    """Raised when a source cannot be opened, or not be read any further."""


class SinkError(MqError):
    """Raised when a sink cannot be opened or cannot store; then nothing of the group it was given counts as stored."""


class SinkFull(SinkError):
    """Raised when a sink has no room for a group, which it has undone as a whole: it can be used on, and may have room again.

    Any other SinkError of `store` means that the sink can no longer be trusted, and is not to be used again.
    """


PASSING = frozenset((errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE))
"""What the system says when disk, quota, memory or files are used up, which harms nothing that is stored."""


def not_stored(url: str, error: OSError | MemoryError) -> SinkError:
    """What to raise when `store` met with this, and all that it had begun is undone."""
    if isinstance(error, MemoryError):
        return SinkFull(f"cannot write to {url}: {os.strerror(errno.ENOMEM)}")
    kind = SinkFull if error.errno in PASSING else SinkError
    return kind(f"cannot write to {url}: {describe(error, url)}")


def hint(error: OSError, path: str) -> str:
    """What to do where nothing can be opened at this path, behind why."""
    folder = os.path.dirname(os.path.abspath(path))
    return f"; make the folder {folder} first" if error.errno == errno.ENOENT and not os.path.isdir(folder) else ""


def speaks_no_tls(error: BaseException) -> str:
    """What to do where TLS was begun with somebody who does not speak it, behind why."""
    is_plain = getattr(error, "reason", None) == "WRONG_VERSION_NUMBER"
    return "; there is no TLS at that port: give another one, or leave out the s of the URL's scheme" if is_plain else ""


def describe(error: OSError, known: object = None) -> str:
    """What the system says, without a number, and of which file, unless that is the one the reader knows of."""
    reason = error.strerror or str(error)
    if error.filename is None or str(error.filename) == str(known):
        return reason
    return f"{error.filename}: {reason}"
