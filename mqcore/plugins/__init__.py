"""Plugins: finding, checking, configuring, loading and reloading them."""

from ._plugins import Plugin, Plugins

__all__ = ["Plugin", "Plugins"]
