# What a message says of a mail that is its body as it is.

from libc.stdint cimport uint64_t

cdef struct RawFields:
    bint is_raw                 # else nothing else is known
    const char *message_id      # in the header that was read; NULL: it has none
    Py_ssize_t message_id_size
    uint64_t timestamp
    bint has_timestamp

cdef dict read_raw(bytes header, RawFields *fields)
cdef bytes write_raw(known, str id)
