# A queue that any thread, and any signal handler, puts items into, and one thread takes them from, in order: each in O(1),
# without a lock and without memory (D. Vyukov, "intrusive MPSC node-based queue").
#
# An item begins with a pointer to the next. Who puts one in first makes it the last, and then links it to the one before:
# in between neither that one can be taken nor what comes behind it.

cdef struct Item:
    Item *next              # atomic

cdef struct Queue:
    Item *last              # atomic
    Item *first             # of whoever takes items
    Item stub               # so that it is never empty: in the queue when no other item is, and then it is the last

cdef extern from *:
    Item *load_item "mqcore_load"(Item **) noexcept nogil
    void store_item "mqcore_store"(Item **, Item *) noexcept nogil
    Item *exchange_item "mqcore_exchange"(Item **, Item *) noexcept nogil

cdef inline void init_queue(Queue *queue) noexcept nogil:
    queue.stub.next = NULL
    queue.first = &queue.stub
    queue.last = &queue.stub

cdef inline bint put(Queue *queue, void *item) noexcept nogil:
    """Put `item` behind all others. Whether there was none: then whoever takes them has to be told."""
    cdef Item *before
    store_item(&(<Item *>item).next, NULL)
    before = exchange_item(&queue.last, <Item *>item)
    store_item(&before.next, <Item *>item)
    return before == &queue.stub

cdef inline void *take(Queue *queue) noexcept nogil:
    """The item that was put in first; NULL: there is none that can be taken yet."""
    cdef Item *item = queue.first
    cdef Item *next = load_item(&item.next)
    if item == &queue.stub:
        if next == NULL:
            return NULL
        queue.first = next
        item = next
        next = load_item(&item.next)
    if next == NULL:
        if load_item(&queue.last) != item:
            return NULL
        put(queue, &queue.stub)
        next = load_item(&item.next)
        if next == NULL:  # another one came before the stub
            return NULL
    queue.first = next
    return item

cdef inline bint has_any(Queue *queue) noexcept nogil:
    """Whether there is an item, which whoever takes them has to come for again if it cannot be taken yet. The thread that takes
    them."""
    return queue.first != &queue.stub or load_item(&queue.last) != &queue.stub

cdef inline bint has_new(Queue *queue) noexcept nogil:
    """Whether there is an item that this thread has put in since it took all."""
    return load_item(&queue.last) != &queue.stub
