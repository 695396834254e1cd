# Handles: the numbers that native plugins have in place of pointers, and the table of what they stand for. Plain C.

from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from ..loop._atomic cimport get, store
from ..loop._list cimport Link, List
from ..loop._reactor cimport Watch
from ..loop._wheel cimport Node
from ._queue cimport Queue

cdef extern from *:
    """
    #include <pthread.h>
    #include <stdint.h>
    #if UINTPTR_MAX != UINT64_MAX
    #error "handles of native plugins need pointers of 64 bits"
    #endif

    /* As PyThread_get_thread_ident() has it. */
    #define mqcore_thread() ((unsigned long)pthread_self())
    """
    unsigned long this_thread "mqcore_thread"() noexcept nogil

cdef extern from *:
    # Of loop/_atomic.pxd, for the types here. get and set: in no order; load and store: what was stored before is seen after.
    uint8_t get_kind "mqcore_get"(uint8_t *) noexcept nogil
    void set_kind "mqcore_set"(uint8_t *, uint8_t) noexcept nogil
    uint32_t get_number "mqcore_get"(uint32_t *) noexcept nogil
    void set_number "mqcore_set"(uint32_t *, uint32_t) noexcept nogil
    void *get_pointer "mqcore_get"(void **) noexcept nogil
    void set_pointer "mqcore_set"(void **, void *) noexcept nogil
    PyObject *get_object "mqcore_get"(PyObject **) noexcept nogil
    void set_object "mqcore_set"(PyObject **, PyObject *) noexcept nogil
    PyObject *load_object "mqcore_load"(PyObject **) noexcept nogil
    void store_object "mqcore_store"(PyObject **, PyObject *) noexcept nogil
    unsigned long get_thread "mqcore_get"(unsigned long *) noexcept nogil
    void set_thread "mqcore_set"(unsigned long *, unsigned long) noexcept nogil
    int load_int "mqcore_load"(int *) noexcept nogil
    void store_int "mqcore_store"(int *, int) noexcept nogil
    Slot *get_slot "mqcore_get"(Slot **) noexcept nogil
    void set_slot "mqcore_set"(Slot **, Slot *) noexcept nogil

cdef enum Kind:
    NOTHING = 0
    CONTEXT = 1
    STEP = 2            # what a hook is called with: connection, message and address
    TIMER = 3
    WATCHER = 4

cdef enum Part:
    # Of what a hook is called with: the two low bits of the generation.
    CONNECTION = 0
    MESSAGE = 1
    ADDRESS = 2         # the hook's argument, or the envelope of its message
    RECIPIENT = 3

cdef enum SlotState:
    FREE = 0            # no handle stands for it
    LIVE = 1            # a context, a timer or a watcher
    CALLED = 2          # a hook is being called with it
    HELD_BY = 3         # the plugin has control
    OVER = 4            # a hold that ended otherwise while its give-back was under way
    CLAIMED = 5         # control was given back, and the message has gone on out of its turn
    GIVEN = 8           # control was given back; with a Decision of the core added

cdef enum:
    CHUNK_BITS = 10
    CHUNK = 1024                    # slots that are made at once
    MOST_CHUNKS = 1 << 14           # 24 bits of slots
    MOST_TABLES = 256               # 8 bits; number 0 is never used, so that no real pointer is a handle
    GENERATION = 4                  # what a new generation adds
    LAST_GENERATIONS = 0xFF         # the high 8 bits: a slot that has them is retired, so that no handle comes twice

cdef union Waiting:
    Node node               # timers
    Watch watch             # watchers
    List started            # contexts: their timers and watchers

cdef struct Reason:
    # Why a step fails; the text follows it in memory.
    Reason *next
    uint32_t generation

cdef struct Slot:
    # What one handle at a time stands for. Atomic, as any thread may look: `word`, `kind`, `held`, `owner`, `hook`, `failing`.
    # The rest belongs to the dispatcher's thread; or, of a step that is held, to whoever has the GIL.
    Slot *next              # in a queue: of slots that were let go, or of steps that were given back
    Link link               # timers and watchers: in the list of their context, or of what is to be stopped
    uint64_t word           # state << 32 | generation: so that the next generation of a state takes an addition
    uint64_t place          # what all its handles have: number << 56 | index << 32
    uint8_t kind
    uint32_t held           # steps: the generation of the last hold; `owner` and `hook` are those of it
    void *owner             # timers, watchers, steps that were held: the MQ_Context of the plugin
    PyObject *object        # steps: the Message, borrowed; contexts: the Context, owned
    PyObject *kept          # what strings that were handed out belong to: of steps a list, of contexts a dict, or NULL
    PyObject *hook          # steps that were held: the hook's name, interned, never freed
    uint32_t failing        # steps: the generation that fails as soon as its plugin is done with it, and 1
    Reason *reasons         # atomic: why steps fail, for any generation
    void *callback          # timers, watchers
    int fd                  # watchers
    void *data              # of the plugin's own
    Waiting waiting         # timers, watchers, contexts

cdef enum:
    MOST_RECORDS = 1_000    # that wait for one dispatcher: beyond, they are dropped

cdef struct Record:
    # Something to be logged by the dispatcher.
    Record *next            # in a queue
    int taken               # of a table's own: it is in use; atomic
    int priority            # of MQ_log; 0: a misuse, which counts as refused
    void *context           # the MQ_Context of the plugin, or NULL
    void *caller            # an address in the code that called, or NULL
    PyObject *hook          # the name of a hook, interned, never freed, or NULL
    const char *text

cdef enum Use:
    # In `Table.users`.
    OPEN = 1                # the dispatcher is open
    IN_USE = 2              # once for each thread that is just waking it up

cdef struct Table:
    # The handles of one dispatcher. Made once, never freed, and used again by another one when it is closed.
    uint8_t number
    int users               # atomic: see Use
    PyObject *owner         # borrowed: the dispatcher, as long as `users` is not 0; atomic
    unsigned long thread    # that is in native code of this dispatcher, as long as it is in it; atomic
    int inside              # how deep; atomic
    # These are looked at by the thread that is inside, and by the watchdog.
    void *current           # the MQ_Context whose callback is being called, or NULL; atomic
    PyObject *message       # borrowed: the Message whose hook is being called, or NULL; atomic
    Slot *step              # whose hook that is: its word changes with each call; atomic
    void *frame             # where on the thread's stack it went in last
    uint32_t count          # slots that there are; atomic
    uint32_t retired
    Slot *spare             # for the next step, whose hooks have it one after the other
    List ending             # timers and watchers of contexts that are over
    Slot *fresh[2]          # slots that were never used, of steps, [True], and of others: so that both keep the order that they
    int fresh_count[2]      # have in memory
    Queue returned[2]       # slots that were let go
    Queue given             # steps that were given back
    Queue records           # to be logged
    int record_count        # atomic
    int next_record         # atomic: where in `own_records` to look for one that is free
    Record own_records[MOST_RECORDS]  # a misuse may be met where no memory can be had
    Slot *chunks[MOST_CHUNKS]

cdef inline uint32_t generation_of(uint64_t word) noexcept nogil:
    return <uint32_t>word

cdef inline int state_of(uint64_t word) noexcept nogil:
    return word >> 32

cdef inline uint64_t word_of(uint32_t generation, int state) noexcept nogil:
    return <uint64_t>state << 32 | generation

cdef inline void *handle_of(Slot *slot) noexcept nogil:
    """The handle that stands for the slot now."""
    return handle_with(slot, get(&slot.word))

cdef inline void *handle_with(Slot *slot, uint64_t word) noexcept nogil:
    """The same, where its `word` is known."""
    return <void *>(slot.place | generation_of(word))

cdef inline uint32_t generation_in(void *handle) noexcept nogil:
    return <uint32_t><uint64_t>handle & ~<uint32_t>3

cdef inline int part_in(void *handle) noexcept nogil:
    return <uint64_t>handle & 3

cdef inline void make_live(Slot *slot) noexcept nogil:
    """Its handle is valid from now on: of a context, a timer or a watcher."""
    store(&slot.word, word_of(generation_of(get(&slot.word)), LIVE))

cdef inline Slot *slot_at(Link *link) noexcept nogil:
    """NULL for no link."""
    return NULL if link == NULL else <Slot *>(<char *>link - <size_t>&(<Slot *>NULL).link)

cdef inline bint is_open(Table *table) noexcept nogil:
    return load_int(&table.users) & OPEN

cdef Table *open_table(PyObject *owner) noexcept nogil
cdef void close_table(Table *table) noexcept nogil
cdef void forget_tables() noexcept nogil
cdef Table *table_of(void *handle) noexcept nogil
cdef Slot *slot_of(void *handle) noexcept nogil
cdef Slot *live_slot(void *handle, int kind) noexcept nogil
cdef bint begin_use(Table *table) noexcept nogil
cdef void end_use(Table *table) noexcept nogil
cdef bint is_inside(Table *table) noexcept nogil
cdef Table *table_inside() noexcept nogil
cdef Table *any_open_table() noexcept nogil
cdef bint is_any_inside() noexcept nogil
cdef Slot *take_slot(Table *table, int kind) noexcept nogil
cdef void end_slot(Table *table, Slot *slot) noexcept nogil
cdef void free_slot(Table *table, Slot *slot) noexcept nogil
cdef Record *take_record(Table *table) noexcept nogil
cdef void free_record(Table *table, Record *record) noexcept nogil
