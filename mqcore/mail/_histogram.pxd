# How often a number was how large.

cdef class Histogram:
    cdef readonly double first
    cdef readonly double sum
    cdef unsigned long long numbers[17]

    cdef void count(self, double value) noexcept
