"""What is the same for all connections of one service."""

cimport cython

cdef Terms last_terms = None


@cython.final
cdef class Terms:
    """A service, as the protocols of its connections need it: at hand."""

    def __cinit__(self, service):
        self.service = service
        self.lmtp = service.lmtp
        self.lenient = service.lenient
        self.starttls = service.starttls
        self.auth = service.auth
        self.auth_without_tls = service.auth_without_tls
        self.require_tls = service.require_tls
        self.require_login = service.require_login
        self.dsn = service.dsn
        self.max_line = service.max_line
        self.max_message = service.max_message
        self.max_recipients = service.max_recipients
        self.max_errors = service.max_errors
        self.max_idle_commands = service.max_idle_commands
        self.max_loops = service.max_loops
        self.trace = service.trace
        self.greeting = f"220 {service.name} {'LMTP' if self.lmtp else 'ESMTP'}\r\n".encode()
        self.offer = (f"250-{service.name}\r\n250-PIPELINING\r\n250-SIZE {service.max_message}\r\n250-8BITMIME\r\n"
                      "250-SMTPUTF8\r\n")
        if self.dsn:
            self.offer += "250-DSN\r\n"


cdef Terms terms_of(service):
    """Made once for many connections."""
    global last_terms
    if last_terms is None or last_terms.service is not service:
        last_terms = Terms(service)
    return last_terms
