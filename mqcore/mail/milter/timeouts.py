"""How long a mail server waits."""

from __future__ import annotations

PROGRESS = 5.0
"""Seconds from one word that we are still at it to the next: a server waits for 10 at least."""
UNTOLD = 8.0
"""Seconds that a step may take where the server cannot be told so: Sendmail waits for 10, unless it is told otherwise."""
