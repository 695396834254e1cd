"""`null:` as a sink."""

from __future__ import annotations

from collections.abc import Sequence

from ._mail import Mail


class NullSink:
    """Drops every mail: to try plugins out, or to measure them."""

    url = "null:"
    waits = False
    notes = None

    def __init__(self, path: str) -> None:
        """There is no path to open."""

    def __contains__(self, id: object) -> bool:
        return False

    def store(self, mails: Sequence[Mail]) -> None:
        """Drop them."""

    def close(self) -> None:
        """Nothing to close."""
