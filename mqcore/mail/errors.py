"""The errors of sources and sinks. The command ends with exit code 4 on either."""

from __future__ import annotations

from ..errors import MqError


class SourceError(MqError):
    """Raised when a source cannot be opened, or not be read any further."""


class SinkError(MqError):
    """Raised when a sink cannot be opened or cannot store; then nothing of the group it was given counts as stored."""


def describe(error: OSError, known: object = None) -> str:
    """What the system says, without a number, and of which file, unless that is the one the reader knows of."""
    reason = error.strerror or str(error)
    if error.filename is None or str(error.filename) == str(known):
        return reason
    return f"{error.filename}: {reason}"
