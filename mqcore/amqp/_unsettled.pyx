"""Deliveries of one channel that the broker waits to hear of, lowest tag first: a list of slots in one piece of memory.

A message may be held for long while others go by, so what is kept is for what is open, not for all tags from the oldest on.
"""

cimport cython
from libc.stdint cimport int32_t, uint8_t, uint64_t
from libc.stdlib cimport free, realloc

from ._output cimport Output
from ._wire cimport ACK, BASIC, FRAME_END, FRAME_EXTRA, METHOD, put8, put64, put_frame_head, put_method

cdef enum:
    ACK_SIZE = 13                   # class, method, tag, multiple


@cython.final
cdef class Unsettled:

    def __cinit__(self):
        self.first = self.last = self.free = -1

    def __dealloc__(self):
        free(self.slots)
        free(self.acked)

    cdef int grow(self) except -1:
        """The free ones are in a list by `after`."""
        cdef Py_ssize_t capacity = max(2 * self.capacity, 64), i
        cdef Slot *slots = <Slot *>realloc(self.slots, capacity * sizeof(Slot))
        if slots == NULL:
            raise MemoryError
        self.slots = slots
        cdef int32_t *acked = <int32_t *>realloc(self.acked, capacity * sizeof(int32_t))
        if acked == NULL:
            raise MemoryError
        self.acked = acked
        for i in range(capacity - 1, self.capacity - 1, -1):
            slots[i].tag = 0
            slots[i].acked = False
            slots[i].after = self.free
            self.free = <int32_t>i
        self.capacity = capacity
        return 0

    cdef int32_t add(self, uint64_t tag) except -1:
        """The slot for a delivery; tags only rise."""
        if self.free < 0:
            self.grow()
        cdef int32_t slot = self.free
        cdef Slot *it = &self.slots[slot]
        self.free = it.after
        it.tag = tag
        it.acked = False
        it.before = self.last
        it.after = -1
        if self.last >= 0:
            self.slots[self.last].after = slot
        else:
            self.first = slot
        self.last = slot
        self.count += 1
        return slot

    cdef bint is_open(self, int32_t slot, uint64_t tag) noexcept:
        return tag != 0 and slot < self.capacity and self.slots[slot].tag == tag and not self.slots[slot].acked

    cdef bint ack(self, int32_t slot, uint64_t tag) noexcept:
        """Note it for `write_acks`; False if it was settled before."""
        if not self.is_open(slot, tag):
            return False
        self.slots[slot].acked = True
        self.acked[self.acks] = slot
        self.acks += 1
        return True

    cdef bint remove(self, int32_t slot, uint64_t tag) noexcept:
        """It is settled in another way; False if it was before."""
        if not self.is_open(slot, tag):
            return False
        self.drop(slot)
        return True

    cdef int drop(self, int32_t slot) noexcept:
        cdef Slot *it = &self.slots[slot]
        if it.before >= 0:
            self.slots[it.before].after = it.after
        else:
            self.first = it.after
        if it.after >= 0:
            self.slots[it.after].before = it.before
        else:
            self.last = it.before
        it.tag = 0
        it.acked = False
        it.after = self.free
        self.free = slot
        self.count -= 1
        return 0

    cdef int write_acks(self, unsigned int channel, Output out) except -1:
        """One for all that are acked up to the first that is not, and one for each behind that."""
        cdef uint8_t *begin = out.room((self.acks + 1) * (ACK_SIZE + FRAME_EXTRA))
        cdef uint8_t *p = begin
        cdef uint64_t tag = 0
        cdef Py_ssize_t gathered = 0, i
        cdef int32_t slot
        while self.first >= 0 and self.slots[self.first].acked:
            tag = self.slots[self.first].tag
            self.drop(self.first)
            gathered += 1
        if gathered:
            p = put_ack(p, channel, tag, gathered > 1)
        for i in range(self.acks):
            slot = self.acked[i]
            if self.slots[slot].acked:
                p = put_ack(p, channel, self.slots[slot].tag, False)
                self.drop(slot)
        self.acks = 0
        out.used += p - begin
        return 0


cdef uint8_t *put_ack(uint8_t *p, unsigned int channel, uint64_t tag, bint multiple) noexcept:
    p = put_frame_head(p, METHOD, channel, ACK_SIZE)
    p = put64(put_method(p, BASIC, ACK), tag)
    return put8(put8(p, multiple), FRAME_END)
