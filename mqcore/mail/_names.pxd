# Names of what clients send.

cdef class Names:
    # Of mails.
    cdef str name_of_run
    cdef unsigned long long count

    cdef unsigned long long take(self, Py_ssize_t count) noexcept
    cdef str name(self, unsigned long long number)

cdef str numbered(str begin, unsigned long long number)
