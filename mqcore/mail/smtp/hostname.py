"""The name that this machine goes by."""

from __future__ import annotations

import functools
import re
import socket

_NAME = re.compile(r"(?=.{1,253}\Z)(?!-)[A-Za-z0-9_-]{1,63}(?:\.(?!-)[A-Za-z0-9_-]{1,63})*\Z").match


def check_hostname(name: str) -> None:
    """Raises ValueError for what is no name of a host."""
    if not _NAME(name):
        raise ValueError(f"--hostname {name!r} is no name of a host; write it as mx.example.org")


def choose_hostname(name: str | None) -> str:
    """This name, or without one the machine's. Raises ValueError."""
    if name is None:
        return own_hostname()
    check_hostname(name)
    return name


@functools.cache
def own_hostname() -> str:
    """The machine's full name, as far as it knows."""
    name = socket.getfqdn()  # which may ask the DNS
    return name if _NAME(name) else "localhost"


def is_full(name: str) -> bool:
    return "." in name
