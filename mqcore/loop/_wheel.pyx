"""Timers by when they are due: a hierarchical timing wheel (Varghese and Lauck, 1987), in plain C.

Starting and stopping a timer costs the same however many there are, where libuv's heap has to be sorted each time: most
timers are timeouts, and most timeouts are stopped. A server has them by the thousand.

Time is counted in ticks. Level 0 has a slot for each of the next 64 ticks, level 1 for each of the next 64 stretches of 64
ticks, and so on. A node is on the level of the highest group of 6 bits in which its tick differs from `now`. So all on one
level is due before all on the next, and within a level the slots are in order. When `now` comes to a slot of a higher level,
its nodes move down: the whole slot in one step to the place MOVING, and from there one by one, in portions where they are
many. Nodes of one tick stay in the order in which they were inserted, but for one that comes between two portions.

No Python, and no GIL. Whoever has a wheel calls these functions one at a time.
"""

from libc.stdint cimport uint64_t

from ._list cimport Link, append, append_all, first, init_list, is_empty, unlink

cdef extern from *:
    """
    #define mqcore_lowest_bit(bits) __builtin_ctzll(bits)
    #define mqcore_highest_bit(bits) (63 - __builtin_clzll(bits))
    """
    int lowest_bit "mqcore_lowest_bit"(uint64_t) noexcept nogil
    int highest_bit "mqcore_highest_bit"(uint64_t) noexcept nogil


cdef void init_wheel(Wheel *wheel, uint64_t now) noexcept nogil:
    """Make an empty wheel, at the tick `now`, of zeroed memory."""
    cdef int place
    wheel.now = now
    for place in range(PLACES):
        init_list(&wheel.places[place])


cdef void insert(Wheel *wheel, Node *node) noexcept nogil:
    """Have `node` become due at `node.tick`, or at once when that is not after `now`. It must be in no place."""
    cdef int place
    cdef int level
    if node.tick > wheel.now:
        level = highest_bit(node.tick ^ wheel.now) // SLOT_BITS
        place = level * SLOTS + ((node.tick >> level * SLOT_BITS) & SLOTS - 1)
        wheel.occupied[level] |= <uint64_t>1 << place % SLOTS
    elif node.is_nogil:
        place = DUE_NOGIL
        wheel.due_nogil += 1
    else:
        place = DUE
        wheel.due += 1
    node.place = place
    append(&wheel.places[place], &node.link)


cdef void remove(Wheel *wheel, Node *node) noexcept nogil:
    """Take `node` out of its place."""
    cdef int place = node.place
    unlink(&node.link)
    if place == DUE:
        wheel.due -= 1
    elif place == DUE_NOGIL:
        wheel.due_nogil -= 1
    elif place < DUE and is_empty(&wheel.places[place]):
        wheel.occupied[place // SLOTS] &= ~(<uint64_t>1 << place % SLOTS)


cdef int first_slot(Wheel *wheel) noexcept nogil:
    """The place of the earliest slot that is not empty; DUE when all are."""
    cdef int level = 0
    while level < LEVELS and wheel.occupied[level] == 0:
        level += 1
    return level * SLOTS + (lowest_bit(wheel.occupied[level]) if level < LEVELS else 0)


cdef uint64_t start_of(Wheel *wheel, int place) noexcept nogil:
    """The first tick of an occupied slot: those above its level are as in `now`."""
    cdef int shift = place // SLOTS * SLOT_BITS
    return (wheel.now >> shift + SLOT_BITS << shift + SLOT_BITS) + (<uint64_t>(place % SLOTS) << shift)


cdef bint turn_wheel(Wheel *wheel, uint64_t now) noexcept nogil:
    """Move on to the tick `now`: what is due by then goes to the place DUE or DUE_NOGIL, in order. Whether it came so far;
    where very many nodes have to move it does not in one turn."""
    cdef Link *link
    cdef Node *node
    cdef int place
    cdef int left = MOST_MOVES
    while True:
        link = first(&wheel.places[MOVING])
        while link != NULL:
            if left == 0:
                return False
            left -= 1
            node = node_of(link)
            unlink(link)
            insert(wheel, node)  # it moves down, or becomes due
            link = first(&wheel.places[MOVING])
        place = first_slot(wheel)
        if place == DUE or start_of(wheel, place) > now:
            break
        wheel.now = start_of(wheel, place)
        begin_to_move(wheel, place)
    if now > wheel.now:
        wheel.now = now
    return True


cdef void begin_to_move(Wheel *wheel, int place) noexcept nogil:
    """The wheel has come to this slot. That a node still says that it is there does no harm: see remove()."""
    append_all(&wheel.places[MOVING], &wheel.places[place])
    wheel.occupied[place // SLOTS] &= ~(<uint64_t>1 << place % SLOTS)


cdef bint next_tick(Wheel *wheel, uint64_t *tick) noexcept nogil:
    """Set `tick` to when the wheel has to be turned next: when the first node is due, or has to move down. False when no
    node waits."""
    cdef int place
    if not is_empty(&wheel.places[MOVING]):
        tick[0] = wheel.now
        return True
    place = first_slot(wheel)
    if place == DUE:
        return False
    tick[0] = start_of(wheel, place)
    return True


cdef Node *first_due(Wheel *wheel, int place) noexcept nogil:
    """The first in DUE or DUE_NOGIL, or NULL."""
    cdef Link *link = first(&wheel.places[place])
    return NULL if link == NULL else node_of(link)


cdef Node *any_node(Wheel *wheel) noexcept nogil:
    """Some node, or NULL when there is none."""
    cdef int place = first_slot(wheel)
    while place < MOVING and is_empty(&wheel.places[place]):
        place += 1
    return first_due(wheel, place)
