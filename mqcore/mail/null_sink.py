"""`null:` as a sink."""

from __future__ import annotations

from collections.abc import Sequence

from ._mail import Mail
from .base import Store


class NullSink(Store):
    """Drops every mail: to try plugins out, or to measure them."""

    url = "null:"
    shares = True
    blocks = False
    remembers = False

    def __init__(self, path: str) -> None:
        """There is no path to open."""

    def store(self, mails: Sequence[Mail]) -> None:
        """Drop them."""
