"""Timers by when they are due: a hierarchical timing wheel (Varghese and Lauck, 1987), in plain C.

Starting and stopping a timer costs the same however many there are, where libuv's heap has to be sorted each time: most
timers are timeouts, and most timeouts are stopped. A server has them by the thousand.

Time is counted in ticks. Level 0 has a slot for each of the next 64 ticks, level 1 for each of the next 64 stretches of 64
ticks, and so on. A node is on the level of the highest group of 6 bits in which its tick differs from `now`. So all on one
level is due before all on the next, and within a level the slots are in order. When `now` comes to a slot of a higher level,
its nodes move down. Nodes of one tick stay in the order in which they were inserted.

No Python, and no GIL. Whoever has a wheel calls these functions one at a time.
"""

from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #define mqcore_lowest_bit(bits) __builtin_ctzll(bits)
    #define mqcore_highest_bit(bits) (63 - __builtin_clzll(bits))
    """
    int lowest_bit "mqcore_lowest_bit"(uint64_t) noexcept nogil
    int highest_bit "mqcore_highest_bit"(uint64_t) noexcept nogil


cdef void insert(Wheel *wheel, Node *node) noexcept nogil:
    """Have `node` become due at `node.tick`, or at once when that is not after `now`. It must be in no place."""
    cdef int place
    cdef int level
    cdef Node *first
    if node.tick > wheel.now:
        level = highest_bit(node.tick ^ wheel.now) // SLOT_BITS
        place = level * SLOTS + ((node.tick >> level * SLOT_BITS) & SLOTS - 1)
        wheel.occupied[level] |= <uint64_t>1 << place % SLOTS
    elif node.bare:
        place = DUE_BARE
        wheel.due_bare += 1
    else:
        place = DUE
        wheel.due += 1
    node.place = place
    first = wheel.first[place]
    if first == NULL:
        wheel.first[place] = node
        node.next = node
        node.previous = node
    else:
        node.next = first
        node.previous = first.previous
        first.previous.next = node
        first.previous = node


cdef void remove(Wheel *wheel, Node *node) noexcept nogil:
    """Take `node` out of its place."""
    cdef int place = node.place
    if node.next == node:
        wheel.first[place] = NULL
        if place < DUE:
            wheel.occupied[place // SLOTS] &= ~(<uint64_t>1 << place % SLOTS)
    else:
        node.next.previous = node.previous
        node.previous.next = node.next
        if wheel.first[place] == node:
            wheel.first[place] = node.next
    if place == DUE:
        wheel.due -= 1
    elif place == DUE_BARE:
        wheel.due_bare -= 1
    node.next = NULL


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


cdef void turn_wheel(Wheel *wheel, uint64_t now) noexcept nogil:
    """Move on to the tick `now`: what is due by then goes to the place DUE or DUE_BARE, in order."""
    cdef Node *node
    cdef uint64_t start
    cdef int place = first_slot(wheel)
    while place != DUE:
        start = start_of(wheel, place)
        if start > now:
            break
        wheel.now = start
        while wheel.first[place] != NULL:  # each moves down, or becomes due
            node = wheel.first[place]
            remove(wheel, node)
            insert(wheel, node)
        place = first_slot(wheel)
    if now > wheel.now:
        wheel.now = now


cdef bint next_tick(Wheel *wheel, uint64_t *tick) noexcept nogil:
    """Set `tick` to when the wheel has to be turned next: when the first node is due, or has to move down. False when no
    node waits."""
    cdef int place = first_slot(wheel)
    if place == DUE:
        return False
    tick[0] = start_of(wheel, place)
    return True


cdef Node *any_node(Wheel *wheel) noexcept nogil:
    """Some node, or NULL when there is none."""
    cdef int place = first_slot(wheel)
    return wheel.first[DUE_BARE] if place == DUE and wheel.due == 0 else wheel.first[place]
