# What is the same for all connections of one service.

cdef class Terms:
    cdef object service
    cdef bint lmtp
    cdef bint lenient
    cdef bint starttls
    cdef bint auth
    cdef bint auth_without_tls
    cdef bint require_tls
    cdef bint require_login
    cdef bint dsn
    cdef Py_ssize_t max_line
    cdef Py_ssize_t max_message
    cdef Py_ssize_t max_recipients
    cdef Py_ssize_t max_errors
    cdef Py_ssize_t max_idle_commands
    cdef Py_ssize_t max_loops
    cdef bytes trace
    cdef bytes greeting
    cdef str offer                  # how the reply to EHLO begins

cdef Terms terms_of(service)
