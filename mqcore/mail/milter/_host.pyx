"""What the connections of mail servers to one server of ours share, and which of them are there."""

import logging

cimport cython
from .._gateway cimport Gateway
from .._names cimport Names

from ...milter.events import Wanted
from .sink import MilterSink

log = logging.getLogger("mqcore.mail.milter.server")


@cython.final
@cython.no_gc_clear  # connections that are still there find all of it
cdef class MilterHost:
    """Lets mail servers connect, up to `most` at once; what is asked of each is what some plugin looks at then.

    `sessions`: those that are there. `entered`: how many there have been. `changed` is called when the last ones leave.
    """

    def __cinit__(self, loop not None, Gateway gateway not None, changed not None, *, Py_ssize_t max_message, Py_ssize_t most):
        self.loop = loop
        self.gateway = gateway
        self.dispatcher = gateway.dispatcher
        hook = gateway.dispatcher.hook
        self.connect = hook("mq_smtp_in_connect")
        self.secure = hook("mq_smtp_in_secure")
        self.mailfrom = hook("mq_smtp_in_mailfrom")
        self.rcptto = hook("mq_smtp_in_rcptto")
        self.data = hook("mq_smtp_in_data")
        self.close = hook("mq_smtp_in_close")
        self.names = Names()
        self.max_message = max_message
        self.most = most
        self.plugins = gateway.dispatcher.plugins
        self.changed = changed
        self.sessions = {}

    def stop(self):
        """Let no more in, and let go of those in which nothing is open."""
        self.is_stopping = True
        for session in list(self.sessions):
            if session.is_idle:
                session.close()

    # What a session calls

    cdef object find_wanted(self):
        """What a mail server that connects now is to ask about: what no plugin wants costs both sides nothing."""
        if self.known is not self.plugins.snapshot:
            self.known = self.plugins.snapshot
            order = self.plugins.order
            self.wanted = Wanted(
                connect=bool(order("mq_smtp_in_connect")),
                secure=bool(order("mq_smtp_in_secure")),
                sender=bool(order("mq_smtp_in_mailfrom")),
                recipient=bool(order("mq_smtp_in_rcptto")),
                content=not isinstance(self.gateway.sink, MilterSink)
                or bool(order("mq_smtp_in_data") or order("mq_smtp_in_message")),
            )
        return self.wanted

    cdef int enter(self, session) except -1:
        self.sessions[session] = None
        self.entered += 1
        if len(self.sessions) > self.most:
            log.warning("a connection of a mail server is closed, as %d are there", self.most)
            session.close()
        elif self.is_stopping:
            session.close()
        return 0

    cdef int leave(self, session) except -1:
        self.sessions.pop(session, None)
        if self.is_stopping:
            self.changed()
        return 0
