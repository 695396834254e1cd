# One mail on a connection to a server, as long as its replies are the usual ones.

cdef enum Next:
    WAIT        # for more
    SEND        # the message
    OVER        # all have it
    UNUSUAL     # see `Exchange`

cdef class Exchange:
    cdef readonly bytes said        # by the server, since MAIL
    cdef readonly Py_ssize_t before  # octets of that which came before the message was sent; 0 if it is not sent yet
    cdef readonly list replies      # (code, text) of each to the message
    cdef Py_ssize_t at              # octets that were read
    cdef Py_ssize_t commands        # replies to come to MAIL, each RCPT, and DATA
    cdef Py_ssize_t messages        # and after those

    cdef Next receive(self, bytes data) except *
    cdef bint take(self, const char *line, Py_ssize_t size) except -1

cdef bytes write_commands(str sender, list recipients, str parameters)
cdef bint is_plain(str address) noexcept
