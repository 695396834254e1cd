"""Fds: from ready to the plugin's callback, for two sockets and for a thousand."""

from __future__ import annotations

import resource
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

import pytest
from building import build
from ringing import WAYS, Ring

COUNT = 2_000


@pytest.mark.parametrize(("case", "places"), [("ping-pong", 2), ("1,000 sockets in turn", 1_000)])
def test_fds(loop: Any, against: Callable[..., None], case: str, places: int) -> None:
    """Each callback reads a byte and writes it. The floor does that with epoll, from C."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit[1], limit[1]))
    floor = build("_floor_loop")
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limit)
        ring = stack.enter_context(closing(Ring(loop, places, COUNT)))
        ways = {name: stack.enter_context(closing(way(loop, places, COUNT))) for name, way in WAYS.items()}
        contenders = {"floor": lambda: floor.ring(ring.places, COUNT)} | {name: way.round for name, way in ways.items()}
        against("fds", case, contenders, rounds=100, count=COUNT)
