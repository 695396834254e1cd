"""How often a number was how large, by powers of two."""

cimport cython
from libc.math cimport ceil
from libc.stdint cimport uint64_t

from .._message cimport HOLD_TIMES

cdef extern from *:
    int highest_bit "63 - __builtin_clzll"(uint64_t) noexcept nogil


@cython.final
cdef class Histogram:
    """Counts numbers up to `first`, and above that up to 2, 4 ... 32,768 times as much, and those above all these. `sum` of all
    numbers."""

    def __cinit__(self, double first):
        self.first = first

    cdef void count(self, double value) noexcept:
        cdef double times = ceil(value / self.first)
        cdef int place = 0
        if times > 1 << HOLD_TIMES - 2:
            place = HOLD_TIMES - 1
        elif times > 1:
            place = 1 + highest_bit(<uint64_t>times - 1)
        self.numbers[place] += 1
        self.sum += value

    def add(self, double value):
        self.count(value)

    @property
    def bounds(self):
        """Each number is counted at the first of these that it is not above, or behind them."""
        cdef list bounds = []
        cdef int power
        for power in range(HOLD_TIMES - 1):
            bounds.append(self.first * (1 << power))
        return tuple(bounds)

    @property
    def counts(self):
        """One more than there are bounds."""
        cdef list counts = []
        cdef int place
        for place in range(HOLD_TIMES):
            counts.append(self.numbers[place])
        return tuple(counts)
