# Fields of a header as packets have them. `fields`: each behind its length, in 4 octets.

cdef Py_ssize_t split_field(const char *data, Py_ssize_t size, Py_ssize_t *name) noexcept
cdef Py_ssize_t write_head(const char *fields, Py_ssize_t size, char *to) noexcept
cdef bint is_first_field(bytes fields, const char *field, Py_ssize_t name, Py_ssize_t value) noexcept
cdef Py_ssize_t find_line(const char *text, Py_ssize_t size, Py_ssize_t *name, Py_ssize_t *value) noexcept
cdef bytes insertions(bytes fields, bytes top, bytes ending)
