"""What waits in a dispatcher for its native plugins' turn; built by test_native_portions.py."""

from mqcore._dispatcher cimport Dispatcher
from mqcore._message cimport NativeSide
from mqcore.native._queue cimport Item, Queue, init_queue, put, take
from mqcore.native._slots cimport Table


cdef Table *table_of(Dispatcher dispatcher):
    return <Table *>(<NativeSide>dispatcher.holds.lists.native).table


cdef int count_in(Queue *queue):
    cdef Item *item = queue.first
    count = 0
    while item != NULL:
        count += item != &queue.stub
        item = item.next
    return count


def given_back(Dispatcher dispatcher not None):
    """Steps that native plugins gave back, and that have not gone on yet."""
    return count_in(&table_of(dispatcher).given)


def let_go(Dispatcher dispatcher not None):
    """Slots of timers, watchers and contexts that were let go, and not taken again yet."""
    return count_in(&table_of(dispatcher).returned[False])


def timers(Dispatcher dispatcher not None):
    """Timers that run, of all plugins."""
    return dispatcher.reactor.running_timers


cdef class Tried:
    """A queue of ten items, each of which may be put in, or only half: as by a thread that is interrupted in the middle."""
    cdef Queue queue
    cdef Item items[10]
    cdef Item *before

    def __cinit__(self):
        init_queue(&self.queue)

    def put(self, int number):
        return put(&self.queue, &self.items[number])

    def begin_to_put(self, int number):
        self.items[number].next = NULL
        self.before = self.queue.last
        self.queue.last = &self.items[number]

    def end_to_put(self, int number):
        self.before.next = &self.items[number]

    def take(self):
        cdef Item *item = <Item *>take(&self.queue)
        return None if item == NULL else item - self.items

    def is_empty(self):
        return self.queue.first == &self.queue.stub and self.queue.last == &self.queue.stub
