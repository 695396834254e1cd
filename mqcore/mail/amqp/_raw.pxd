# What a message says of a mail that is its body as it is.

from libc.stdint cimport uint64_t

cdef struct RawFields:
    const char *table           # of headers, without its size
    Py_ssize_t table_size
    const char *message_id      # in the header that was read; NULL: it has none
    Py_ssize_t message_id_size
    uint64_t timestamp
    bint has_timestamp

cdef bint scan_raw(bytes header, RawFields *fields) except -1
cdef dict read_raw(bytes header)
cdef bytes write_raw(known, str id)
cdef bytes pass_on_raw(bytes header, str id)
