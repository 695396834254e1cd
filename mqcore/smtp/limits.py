"""How much a server takes, unless it is told otherwise."""

from __future__ import annotations

MAX_MESSAGE = 50 << 20
"""Octets."""
MAX_RECIPIENTS = 1000
