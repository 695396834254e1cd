# Looking at what is held.

from libc.stdint cimport uint64_t

from ._holds cimport HoldTable

cdef list oldest(HoldTable table, Py_ssize_t limit, str plugin, str hook)
cdef dict oldest_of_each(HoldTable table, Py_ssize_t among)
cdef void begin_scan(HoldTable table, uint64_t until, Py_ssize_t most) noexcept
cdef list scan(HoldTable table, Py_ssize_t steps, str plugin, object match)
