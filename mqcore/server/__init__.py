"""Running it: a server that can be looked into and steered while it runs."""

from __future__ import annotations

from .server import ReloadError, Server

__all__ = ["ReloadError", "Server"]
