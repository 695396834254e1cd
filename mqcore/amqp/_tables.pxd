# Field tables, and the reading of what stands in frames: every read is checked against the end.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef struct Cursor:
    const uint8_t *at
    const uint8_t *end

cdef const uint8_t *take(Cursor *cursor, Py_ssize_t size) except NULL
cdef str take_short_string(Cursor *cursor)
cdef bytes take_long_string(Cursor *cursor)
cdef Cursor take_part(Cursor *cursor, int depth) except *
cdef dict take_table(Cursor *cursor, int depth)
cdef object take_value(Cursor *cursor, int depth)

cdef int put_short_string(bytearray out, str text) except -1
cdef int put_number(bytearray out, uint64_t value, int size) except -1
cdef int put_table(bytearray out, table, int depth) except -1
