"""Fds: from ready to the plugin's callback, for two sockets and for a thousand."""

from __future__ import annotations

import resource
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Any

import pytest
from ringing import TCP_WAYS, TIMES, WAYS, Ring, tcp_pair

CASES = [("ping-pong", 2, 2_000), ("1,000 sockets in turn", 1_000, 2_000), ("1,000 sockets at once", 1_000, 0)]


@pytest.mark.parametrize(("case", "places", "count"), CASES)
def test_fds(loop: Any, against: Callable[..., None], case: str, places: int, count: int) -> None:
    """Each callback reads a byte, and in a ring writes it. The floor does that with epoll, from C."""
    compare_ways(loop, against, case, places, count, WAYS)


@pytest.mark.parametrize(("case", "places", "count"), CASES)
def test_own_epoll(loop: Any, against: Callable[..., None], case: str, places: int, count: int) -> None:
    """By the epoll that mqcore has, of which libuv polls only that, beside a `uv_poll_t` for each fd."""
    chosen = {name: WAYS[name] for name in ("libuv from C", "mqcore")}
    compare_ways(loop, against, f"{case}, beside libuv", places, count, chosen)


def test_over_tcp(loop: Any, against: Callable[..., None]) -> None:
    """Beside who reads for the callback: a protocol of asyncio's kind, and a WebSocket."""
    with ExitStack() as stack:
        ways = {name: stack.enter_context(closing(way(loop, 2, 2_000, tcp_pair))) for name, way in TCP_WAYS.items()}
        contenders = {name: way.round for name, way in ways.items()}
        against("fds", "ping-pong over TCP", contenders, rounds=40, count=2_000)


def compare_ways(
    loop: Any, against: Callable[..., None], case: str, places: int, count: int, chosen: dict[str, type[Ring]]
) -> None:
    """Put a row of these ways into the table."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit[1], limit[1]))
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, limit)
        ways = {name: stack.enter_context(closing(way(loop, places, count))) for name, way in chosen.items()}
        contenders = {name: way.round for name, way in ways.items()}
        against("fds", case, contenders, rounds=40 if count else 10, count=count or places * TIMES)
