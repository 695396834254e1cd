"""A port for a program that cannot choose one by itself and say which."""

from __future__ import annotations

import contextlib
import random
import socket

chance = random.SystemRandom()
"""The tests that run side by side must not all try the same."""


def free_port() -> int:
    """None of those that the system gives to clients: another connection could have it before who is to listen there, and one
    that tries to connect again and again would connect to itself.
    """
    while True:
        port = chance.randrange(10_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
