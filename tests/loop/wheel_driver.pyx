"""Drives a wheel from Python; built by test_model_wheel.py."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from mqcore.loop._list cimport is_linked
from mqcore.loop._wheel cimport (
    DUE, DUE_NOGIL, Node, Wheel, any_node, first_due, init_wheel, insert, next_tick, remove, turn_wheel)


cdef class Driver:
    """A wheel whose nodes are known by numbers from 0 to 99. The odd ones need no GIL."""
    cdef Wheel wheel
    cdef Node *nodes

    def __cinit__(self, now):
        init_wheel(&self.wheel, now)
        self.nodes = <Node *>calloc(100, sizeof(Node))

    def __dealloc__(self):
        free(self.nodes)

    def insert(self, number, tick):
        assert not is_linked(&self.nodes[number].link)
        self.nodes[number].tick = tick
        self.nodes[number].is_nogil = number % 2
        insert(&self.wheel, &self.nodes[number])

    def remove(self, number):
        assert is_linked(&self.nodes[number].link)
        remove(&self.wheel, &self.nodes[number])

    def turn(self, now):
        while not turn_wheel(&self.wheel, now):
            pass

    def take(self):
        """The numbers of what is due, in order, first those that need the GIL; it is removed."""
        numbers = []
        while self.wheel.due:
            numbers.append(first_due(&self.wheel, DUE) - self.nodes)
            remove(&self.wheel, first_due(&self.wheel, DUE))
        while self.wheel.due_nogil:
            numbers.append(first_due(&self.wheel, DUE_NOGIL) - self.nodes)
            remove(&self.wheel, first_due(&self.wheel, DUE_NOGIL))
        assert first_due(&self.wheel, DUE) == NULL and first_due(&self.wheel, DUE_NOGIL) == NULL
        return numbers

    def next_tick(self):
        cdef uint64_t tick = 0
        return tick if next_tick(&self.wheel, &tick) else None

    def drop_all(self):
        """How many nodes there were, found one by one."""
        count = 0
        while any_node(&self.wheel) != NULL:
            remove(&self.wheel, any_node(&self.wheel))
            count += 1
        return count
