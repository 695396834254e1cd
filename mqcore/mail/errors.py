"""The errors of sources and sinks. The command ends with exit code 4 on either."""

from __future__ import annotations

import errno

from ..errors import MqError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


class SourceError(MqError):
    """Raised when a source cannot be opened, or not be read any further."""


class SinkError(MqError):
    """Raised when a sink cannot be opened or cannot store; then nothing of the group it was given counts as stored."""


class SinkFull(SinkError):
    """Raised for want of space, memory or files, when nothing of the group is left in the sink: it may be tried again."""


def cannot_store(message: str, error: OSError) -> SinkError:
    """The error of a store that has undone what it began."""
    return (SinkFull if error.errno in FULL else SinkError)(message)


def describe(error: OSError, known: object = None) -> str:
    """What the system says, without a number, and of which file, unless that is the one the reader knows of."""
    reason = error.strerror or str(error)
    if error.filename is None or str(error.filename) == str(known):
        return reason
    return f"{error.filename}: {reason}"
