"""Handles: the numbers that native plugins have in place of pointers, and the table of what they stand for.

A handle has 8 bits for the dispatcher, 24 for a slot in its table, and 32 for the slot's generation, of which the low two
say which part is meant of what a hook is called with. The generation grows each time the slot stands for something else, so
whether a handle is valid takes one comparison, and a stale one is never taken for another. No number comes twice: a slot
whose generations are used up is retired.

Slots are taken on the dispatcher's thread, in the order in which they were let go; any thread may look at them, let them go
and give steps back, a signal handler too: so nothing of that takes a lock or memory. Tables and their chunks never move and
are never freed, so whatever number a plugin comes with, looking it up is safe. Number 0 is not used: every real pointer
belongs to it.

No Python, and no GIL.
"""

from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc

from ..loop._atomic cimport add, get, load, store
from ..loop._list cimport init_list
from ._queue cimport init_queue, put, take

cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    int pthread_mutex_init(pthread_mutex_t *, void *)
    int pthread_mutex_lock(pthread_mutex_t *)
    int pthread_mutex_unlock(pthread_mutex_t *)

cdef extern from "sched.h" nogil:
    int sched_yield()

cdef extern from *:
    int exchange_int "mqcore_exchange"(int *, int) noexcept nogil
    Table *load_table "mqcore_load"(Table **) noexcept nogil
    void store_table "mqcore_store"(Table **, Table *) noexcept nogil
    uint32_t load_count "mqcore_load"(uint32_t *) noexcept nogil
    void store_count "mqcore_store"(uint32_t *, uint32_t) noexcept nogil

cdef Table *tables[MOST_TABLES]
cdef pthread_mutex_t opening
pthread_mutex_init(&opening, NULL)


# ---------------------------------------------------------------------------------------------------------------- Tables

cdef Table *open_table(PyObject *owner) noexcept nogil:
    """The table of a new dispatcher; NULL when there are 255 already, or no memory."""
    cdef Table *table = NULL
    cdef int number = 1
    pthread_mutex_lock(&opening)
    while number < MOST_TABLES and tables[number] != NULL and is_used(tables[number]):
        number += 1
    if number < MOST_TABLES:
        table = tables[number]
        if table == NULL:
            table = <Table *>calloc(1, sizeof(Table))
            if table != NULL:
                table.number = number
                init_list(&table.ending)
                init_queue(&table.returned[False])
                init_queue(&table.returned[True])
                init_queue(&table.given)
                init_queue(&table.records)
        if table != NULL:
            set_object(&table.owner, owner)
            store_int(&table.users, OPEN)
            store_table(&tables[number], table)
    pthread_mutex_unlock(&opening)
    return table


cdef bint is_used(Table *table) noexcept nogil:
    return load_object(&table.owner) != NULL or load_int(&table.inside) > 0


cdef void close_table(Table *table) noexcept nogil:
    """Nothing of the owner is touched any more when this returns: it waits for threads that are just waking it up, which is
    one call of uv_async_send()."""
    if not is_open(table):
        return
    add(&table.users, -OPEN)
    while load_int(&table.users) != 0:
        sched_yield()
    store_object(&table.owner, NULL)


cdef bint begin_use(Table *table) noexcept nogil:
    """Whether the table is open; then its owner is there until end_use(). Any thread."""
    if add(&table.users, IN_USE) & OPEN:
        return True
    end_use(table)
    return False


cdef void end_use(Table *table) noexcept nogil:
    add(&table.users, -IN_USE)


cdef void forget_tables() noexcept nogil:
    """In the child of a fork: all belongs to the parent, and its threads are not there."""
    cdef int number
    pthread_mutex_init(&opening, NULL)
    for number in range(MOST_TABLES):
        if tables[number] != NULL:
            store_int(&tables[number].users, 0)


cdef Table *table_of(void *handle) noexcept nogil:
    """The table that a handle names, open or not; NULL when there never was one."""
    return load_table(&tables[<uint64_t>handle >> 56])


cdef bint is_inside(Table *table) noexcept nogil:
    """Whether this thread is in native code that the table's dispatcher called."""
    return load_int(&table.inside) > 0 and get_thread(&table.thread) == this_thread() and is_open(table)


cdef Table *table_inside() noexcept nogil:
    """The table of the dispatcher in whose call this thread is; NULL when in none. Of several, one in a hook of another, the
    innermost: stacks grow downwards."""
    cdef Table *table
    cdef Table *found = NULL
    cdef int number
    for number in range(1, MOST_TABLES):
        table = load_table(&tables[number])
        if table != NULL and is_inside(table) and (found == NULL or table.frame < found.frame):
            found = table
    return found


cdef Table *any_open_table() noexcept nogil:
    cdef Table *table
    cdef int number
    for number in range(1, MOST_TABLES):
        table = load_table(&tables[number])
        if table != NULL and is_open(table):
            return table
    return NULL


cdef bint is_any_inside() noexcept nogil:
    """Whether any thread is in native code that a dispatcher called."""
    cdef Table *table
    cdef int number
    for number in range(1, MOST_TABLES):
        table = load_table(&tables[number])
        if table != NULL and load_int(&table.inside) > 0:
            return True
    return False


# ----------------------------------------------------------------------------------------------------------------- Slots

cdef Slot *slot_of(void *handle) noexcept nogil:
    """The slot that a handle names, whatever that stands for now; NULL when there never was one."""
    cdef Table *table = table_of(handle)
    cdef uint32_t index = <uint64_t>handle >> 32 & 0xFFFFFF
    if table == NULL or index >= load_count(&table.count):
        return NULL
    return &table.chunks[index >> CHUNK_BITS][index & CHUNK - 1]


cdef Slot *live_slot(void *handle, int kind) noexcept nogil:
    """The slot of a context, timer or watcher, if the handle stands for it; else NULL."""
    cdef Slot *slot = slot_of(handle)
    cdef uint64_t live = word_of(generation_in(handle), LIVE)
    if slot == NULL or load(&slot.word) != live or get_kind(&slot.kind) != kind or part_in(handle) != 0:
        return NULL
    return slot


cdef bint add_chunk(Table *table, bint steps) noexcept nogil:
    cdef Slot *chunk
    cdef int each
    if table.count >= CHUNK * MOST_CHUNKS:
        return False
    chunk = <Slot *>calloc(CHUNK, sizeof(Slot))
    if chunk == NULL:
        return False
    for each in range(CHUNK):
        chunk[each].place = <uint64_t>table.number << 56 | <uint64_t>(table.count + each) << 32
        chunk[each].word = word_of(GENERATION, FREE)
    table.fresh[steps] = chunk
    table.fresh_count[steps] = CHUNK
    table.chunks[table.count >> CHUNK_BITS] = chunk
    store_count(&table.count, table.count + CHUNK)
    return True


cdef Slot *free_one(Table *table, bint steps) noexcept nogil:
    """A slot that is free: one that was never used, or that was let go first. NULL: there is none."""
    if table.fresh_count[steps] == 0:
        return <Slot *>take(&table.returned[steps])
    table.fresh_count[steps] -= 1
    table.fresh[steps] += 1
    return table.fresh[steps] - 1


cdef Slot *take_slot(Table *table, int kind) noexcept nogil:
    """A slot that stands for nothing yet. The dispatcher's thread. NULL: there is no memory, or no number left."""
    cdef bint steps = kind == STEP
    cdef Slot *slot
    while True:
        slot = free_one(table, steps)
        if slot == NULL and add_chunk(table, steps):
            slot = free_one(table, steps)
        if slot == NULL:
            return NULL
        if generation_of(get(&slot.word)) >> 24 != LAST_GENERATIONS:
            break
        table.retired += 1
    set_kind(&slot.kind, kind)
    return slot


cdef void end_slot(Table *table, Slot *slot) noexcept nogil:
    """Its handle stands for nothing any more; then let it go."""
    store(&slot.word, word_of(generation_of(get(&slot.word)) + GENERATION, FREE))
    free_slot(table, slot)


cdef void free_slot(Table *table, Slot *slot) noexcept nogil:
    """Let a slot go whose handle stands for nothing any more. Any thread."""
    slot.object = NULL
    put(&table.returned[get_kind(&slot.kind) == STEP], slot)


# --------------------------------------------------------------------------------------------------------------- Records

cdef Record *take_record(Table *table) noexcept nogil:
    """A record of the table's own; NULL when too many wait already. Any thread."""
    cdef Record *record
    cdef int each
    cdef int start
    if add(&table.record_count, 1) <= MOST_RECORDS:
        start = add(&table.next_record, 1)
        for each in range(MOST_RECORDS):
            record = &table.own_records[<uint32_t>(start + each) % MOST_RECORDS]
            if exchange_int(&record.taken, True) == 0:
                return record
    add(&table.record_count, -1)
    return NULL


cdef void free_record(Table *table, Record *record) noexcept nogil:
    add(&table.record_count, -1)
    store_int(&record.taken, False)
