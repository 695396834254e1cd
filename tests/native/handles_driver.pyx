# cython: language_level=3
"""The handle table of native plugins, for tests: slots by their handles, as numbers."""

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from mqcore.loop._atomic cimport store
from mqcore.native._slots cimport (
    LIVE, TIMER, WATCHER, Slot, Table, close_table, end_slot, handle_of, live_slot, make_live, open_table, slot_of,
    take_slot, word_of)


cdef class Driver:
    cdef Table *table
    cdef object owner

    def __cinit__(self):
        self.owner = object()
        self.table = open_table(<PyObject *>self.owner)
        if self.table == NULL:
            raise MemoryError("every table is open")

    def close(self):
        close_table(self.table)

    @property
    def number(self):
        return self.table.number

    @property
    def counts(self):
        """Slots that there are, and those of them that are retired."""
        return self.table.count, self.table.retired

    def take(self):
        cdef Slot *slot = take_slot(self.table, TIMER)
        make_live(slot)
        return <uint64_t>handle_of(slot)

    def free(self, uint64_t handle):
        end_slot(self.table, slot_of(<void *>handle))

    def is_live(self, uint64_t handle):
        assert live_slot(<void *>handle, WATCHER) == NULL
        return live_slot(<void *>handle, TIMER) != NULL

    def age(self, uint64_t handle, int left):
        """Make the slot one of which so many generations are left. Its new handle."""
        cdef Slot *slot = slot_of(<void *>handle)
        store(&slot.word, word_of(0xFF000000 - 4 * left, LIVE))
        return <uint64_t>handle_of(slot)
