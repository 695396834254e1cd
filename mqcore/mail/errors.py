"""The errors of sources and sinks. The command ends with exit code 4 on either."""

from __future__ import annotations

from ..errors import MqError


class SourceError(MqError):
    """Raised when a source cannot be opened, or not be read any further."""


class SinkError(MqError):
    """Raised when a sink cannot be opened or cannot store; then nothing of the group it was given counts as stored."""


def describe(error: OSError) -> str:
    """What the system says, without the number and the name that `str` gives."""
    return error.strerror or str(error)
