"""Running it: a server that can be looked into and steered while it runs."""

from __future__ import annotations

from .server import Reloaded, ReloadError, Server

__all__ = ["ReloadError", "Reloaded", "Server"]
