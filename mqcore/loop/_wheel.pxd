# Timers by when they are due: a hierarchical timing wheel, in plain C.

from cpython.object cimport PyObject
from libc.stdint cimport uint16_t, uint64_t

from ._list cimport Link, List

cdef enum:
    SLOT_BITS = 6
    SLOTS = 64                    # of a level: 1 << SLOT_BITS
    LEVELS = 8                    # 64 ** 8 ticks are 8,900 years of ms
    DUE = LEVELS * SLOTS          # the places of what is due: of nodes whose owner needs the GIL,
    DUE_NOGIL = DUE + 1           # and of those whose owner does not
    MOVING = DUE + 2              # of what the wheel has come to, and what moves down or becomes due next
    PLACES = DUE + 3
    MOST_MOVES = 4_096            # in one turn of the wheel: a fraction of a ms

cdef struct Node:
    # One timer. In the list of one place, or in none.
    Link link
    uint64_t tick                 # when it is due
    uint16_t place
    bint is_nogil                 # its owner needs no GIL
    PyObject *owner               # borrowed: the Timer

cdef struct Wheel:
    uint64_t now                  # the tick that `turn_wheel` came to
    size_t due                    # how many nodes are in the place DUE,
    size_t due_nogil              # and in DUE_NOGIL
    uint64_t occupied[LEVELS]     # a bit for each slot that is not empty
    List places[PLACES]

cdef inline Node *node_of(Link *link) noexcept nogil:
    return <Node *>(<char *>link - <size_t>&(<Node *>NULL).link)

cdef void init_wheel(Wheel *wheel, uint64_t now) noexcept nogil
cdef void insert(Wheel *wheel, Node *node) noexcept nogil
cdef void remove(Wheel *wheel, Node *node) noexcept nogil
cdef bint turn_wheel(Wheel *wheel, uint64_t now) noexcept nogil
cdef bint next_tick(Wheel *wheel, uint64_t *tick) noexcept nogil
cdef Node *first_due(Wheel *wheel, int place) noexcept nogil
cdef Node *any_node(Wheel *wheel) noexcept nogil
