"""Failed logins: how long a client waits for the reply to one, so that passwords cannot be guessed at any speed."""

from __future__ import annotations

from collections import OrderedDict

from .networks import network_of

LONGEST = 30.0
"""Seconds that a reply waits at most."""
MOST_NETWORKS = 10_000
FORGET = 900.0
"""Seconds after which failures of a network are forgotten, if no other came."""


class FailedLogins:
    """Those of all clients, by network. Who comes from another one does not wait for them, nor does a login that is right."""

    def __init__(self) -> None:
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def count(self, peer: str, in_connection: int, now: float) -> float:
        """Count one from this address, the first, second, ... `in_connection`: seconds that its reply waits."""
        return min(2.0 ** min(max(in_connection, self._count_in_network(peer, now)) - 1, 10), LONGEST)

    def _count_in_network(self, peer: str, now: float) -> int:
        if not peer:  # a Unix socket
            return 1
        network = network_of(peer)
        count, last = self._failures.pop(network, (0, now))
        count = 1 if now - last > FORGET else count + 1
        self._failures[network] = count, now
        if len(self._failures) > MOST_NETWORKS:
            self._failures.popitem(last=False)
        return count
