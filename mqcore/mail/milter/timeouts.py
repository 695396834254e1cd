"""One connection of a mail server, and how long it may wait."""

from __future__ import annotations

from ._session import Session

__all__ = ["PROGRESS", "UNTOLD", "Session"]

PROGRESS = 5.0
"""Seconds from one word that we are still at it to the next: a server waits for 10 at least."""
UNTOLD = 8.0
"""Seconds that a step may take where the server cannot be told so: Sendmail waits for 10, unless it is told otherwise."""
