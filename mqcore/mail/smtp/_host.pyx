"""What the connections of one server share, and which of its clients are there."""

import asyncio
import dataclasses
from collections import Counter

cimport cython
from .._gateway cimport Gateway
from .._names cimport Names
from ._counters cimport SmtpCounters
from ._trace cimport Tracer

from ...smtp import syntax
from ..verdicts import Rejection
from . import networks
from .logins import FailedLogins

cdef object STOPPING = Rejection(421, syntax.SHUTTING_DOWN)
cdef object TOO_MANY = Rejection(421, "4.3.2 too many connections; try again later")
cdef object TOO_MANY_FROM_THERE = Rejection(421, "4.7.0 too many connections from your network; try again later")


@cython.final
@cython.no_gc_clear  # connections that are still there find all of it
cdef class Host:
    """Lets connections in, up to so many, and so many from one network; each of them gets a number of its own.

    `connections`: those that are there, each with the network that it is counted by; empty if it is by none. `from_network`:
    how many are there of each, with those that shake hands yet. `reserved`: octets of messages in memory.
    """

    def __cinit__(self, loop not None, Gateway gateway not None, make_service not None, Tracer tracer, *, bint implicit_tls,
                  xclient_from, xforward_from, Py_ssize_t max_reserved):
        self.loop = loop
        self.gateway = gateway
        self.sink = gateway.sink
        hook = gateway.dispatcher.hook
        self.connect = hook("mq_smtp_in_connect")
        self.secure = hook("mq_smtp_in_secure")
        self.authenticate = hook("mq_smtp_in_authenticate")
        self.mailfrom = hook("mq_smtp_in_mailfrom")
        self.rcptto = hook("mq_smtp_in_rcptto")
        self.data = hook("mq_smtp_in_data")
        self.close = hook("mq_smtp_in_close")
        self.names = Names()
        self.tracer = tracer
        self.failed_logins = FailedLogins()
        self.counters = SmtpCounters()
        self.plugins = gateway.dispatcher.plugins
        self.make_service = make_service
        self.implicit_tls = implicit_tls
        self.xclient_from = xclient_from
        self.xforward_from = xforward_from
        self.trusts_some = bool(xclient_from) or bool(xforward_from)
        self.connections = {}
        self.from_network = Counter()
        self.max_reserved = max_reserved
        self.empty = asyncio.Event()

    def configure(self, *, tls, double timeout, Py_ssize_t max_connections, max_from_network):
        """For those who connect from now on."""
        self.tls = tls
        self.timeout = timeout
        self.max_connections = max_connections
        self.max_from_network = max_from_network
        self.renew()

    cdef int renew(self) except -1:
        self.known = self.plugins.snapshot
        self.service = self.make_service()
        self.service_with_dsn = dataclasses.replace(self.service, dsn=True)
        return 0

    async def wait_until_empty(self):
        """Until all have left."""
        while self.connections:
            self.empty.clear()
            await self.empty.wait()

    # What a connection calls

    cdef object offered(self):
        """The service for a connection that begins now."""
        if self.known is not self.plugins.snapshot:  # logins are offered where a plugin takes them
            self.renew()
        return self.service_with_dsn if self.sink.takes_dsn else self.service

    cdef object enter(self, connection, str peer):
        """The number of a new connection, or the Rejection that its client is told if it is not let in."""
        cdef str network = self.network_of(peer)
        if self.is_stopping:
            self.counters.refused["shutting_down"] += 1
            return STOPPING
        # With implicit TLS this one is still among the handshakes, and was counted there.
        if not self.implicit_tls:
            excess = self.find_excess(network, 0, peer)
            if excess is not None:
                return excess
        return self.admit(connection, network)

    cdef object reenter(self, connection, str peer):
        """The same for one that is there, and speaks for this client now."""
        cdef str network = self.network_of(peer)
        self.part(self.connections[connection])
        self.connections[connection] = ""
        excess = self.find_excess(network, -1, peer)
        return self.admit(connection, network) if excess is None else excess

    cdef object admit(self, connection, str network):
        self.connections[connection] = network
        self.join(network)
        self.entered += 1
        return self.entered

    cdef int leave(self, connection) except -1:
        self.part(self.connections.pop(connection, ""))
        if not self.connections:
            self.empty.set()
        return 0

    cdef bint reserve(self, Py_ssize_t size) except -1:
        """Count so many octets more (or less) of messages in memory; whether there is room for them."""
        self.reserved += size
        return self.reserved <= self.max_reserved

    # Too many

    cpdef str network_of(self, str peer):
        """That of a client, where clients are counted by it; else it is empty."""
        return "" if self.max_from_network is None or not peer else networks.network_of(peer)

    cpdef object find_excess(self, str network, Py_ssize_t handshakes, str peer):
        """What a client is told who comes now, if there are too many with so many handshakes; that is noted as well."""
        if len(self.connections) + handshakes >= self.max_connections:
            excess = TOO_MANY
            self.counters.refused["too_many"] += 1
        elif network and self.max_from_network is not None and self.from_network[network] >= self.max_from_network:
            excess = TOO_MANY_FROM_THERE
            self.counters.refused["too_many_from_network"] += 1
        else:
            return None
        code, text = excess
        self.gateway.refusals.note("connect", code, text, client=peer)
        return excess

    cpdef int join(self, str network) except -1:
        if network:
            self.from_network[network] += 1
        return 0

    cpdef int part(self, str network) except -1:
        if network:
            self.from_network[network] -= 1
            if not self.from_network[network]:
                del self.from_network[network]
        return 0
