# What the connections of one server share.

from ..._hook cimport Hook
from .._gateway cimport Gateway
from .._names cimport Names
from ._counters cimport SmtpCounters
from ._trace cimport Tracer

cdef class Host:
    cdef object loop
    cdef Gateway gateway
    cdef object sink
    cdef Hook connect
    cdef Hook secure
    cdef Hook authenticate
    cdef Hook mailfrom
    cdef Hook rcptto
    cdef Hook data
    cdef Hook close
    cdef Names names
    cdef readonly SmtpCounters counters
    cdef object plugins
    cdef object known               # the snapshot of the plugins that the services are for
    cdef object make_service
    cdef readonly Tracer tracer     # None: no trace is written
    cdef readonly object failed_logins  # FailedLogins
    cdef object service
    cdef object service_with_dsn
    cdef object tls                 # an ssl.SSLContext
    cdef bint implicit_tls
    cdef double timeout
    cdef object xclient_from        # Networks
    cdef object xforward_from
    cdef bint trusts_some           # whether one of these has any
    cdef readonly dict connections
    cdef readonly object from_network  # a Counter
    cdef object max_from_network    # None: they are not counted
    cdef Py_ssize_t max_connections
    cdef readonly unsigned long long entered
    cdef readonly Py_ssize_t reserved
    cdef Py_ssize_t max_reserved
    cdef object empty               # an asyncio.Event
    cdef public bint is_stopping
    cdef public bint is_held_off        # the sink takes nothing for now

    cdef object offered(self)
    cdef int renew(self) except -1
    cdef object enter(self, connection, str peer)
    cdef object reenter(self, connection, str peer)
    cdef object admit(self, connection, str network)
    cdef int leave(self, connection) except -1
    cdef bint reserve(self, Py_ssize_t size) except -1
    cpdef str network_of(self, str peer)
    cpdef object find_excess(self, str network, Py_ssize_t handshakes, str peer)
    cpdef int join(self, str network) except -1
    cpdef int part(self, str network) except -1
