# Timers by when they are due: a hierarchical timing wheel, in plain C.

from cpython.object cimport PyObject
from libc.stdint cimport uint16_t, uint64_t

cdef enum:
    SLOT_BITS = 6
    SLOTS = 64                    # of a level: 1 << SLOT_BITS
    LEVELS = 8                    # 64 ** 8 ticks are 8,900 years of ms
    DUE = LEVELS * SLOTS          # the places of what is due: of nodes whose owner needs the GIL,
    DUE_BARE = DUE + 1            # and of those whose owner does not
    PLACES = DUE + 2

cdef struct Node:
    # One timer. In the list of one place, or with `next` NULL in none.
    Node *next
    Node *previous
    uint64_t tick                 # when it is due
    uint16_t place
    bint bare                     # its owner needs no GIL
    PyObject *owner               # borrowed: the Timer

cdef struct Wheel:
    uint64_t now                  # the tick that `turn_wheel` came to
    size_t due                    # how many nodes are in the place DUE,
    size_t due_bare               # and in DUE_BARE
    uint64_t occupied[LEVELS]     # a bit for each slot that is not empty
    Node *first[PLACES]           # each a ring; the last is before the first

cdef void insert(Wheel *wheel, Node *node) noexcept nogil
cdef void remove(Wheel *wheel, Node *node) noexcept nogil
cdef void turn_wheel(Wheel *wheel, uint64_t now) noexcept nogil
cdef bint next_tick(Wheel *wheel, uint64_t *tick) noexcept nogil
cdef Node *any_node(Wheel *wheel) noexcept nogil
