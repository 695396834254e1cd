# Handles: the numbers that native plugins have in place of pointers, and the table of what they stand for. Plain C.

from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from ..loop._reactor cimport Watch
from ..loop._wheel cimport Node

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
    ctypedef struct pthread_mutex_t:
        pass
    unsigned long this_thread "mqcore_thread"() noexcept nogil

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
    GIVEN = 8           # control was given back; with a Verdict of the core added

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

cdef struct Slot:
    # What one handle at a time stands for.
    Slot *next              # in the list of free slots, or of those that were given back
    uint64_t word           # generation << 32 | state; atomic, as any thread may look at it and give back
    uint64_t place          # what all its handles have: number << 56 | index << 32
    uint8_t kind
    uint32_t held           # steps: the generation of the last hold; `owner` and `hook` are those of it
    void *owner             # timers, watchers, steps that were held: the MQ_Context of the plugin
    Slot *first             # contexts: their timers and watchers; these: the next of the same context
    Slot *previous          # timers, watchers: the one before; of the first, the context
    PyObject *object        # steps: the Message, borrowed; contexts: the Context, owned
    PyObject *kept          # steps: a list of what strings that were handed out belong to, or NULL
    PyObject *hook          # steps that were held: the hook's name, kept for ever
    void *callback          # timers, watchers
    int fd                  # watchers
    void *data              # of the plugin's own
    Waiting waiting         # timers, watchers

cdef struct Note:
    # Something to be logged by the dispatcher.
    Note *next
    int priority            # of MQ_log; 0: a misuse, which counts as refused
    void *context           # the MQ_Context of the plugin,
    void *base              # or else where its file is in memory; both may be NULL
    PyObject *hook          # the name of a hook, kept for ever, or NULL
    char text[1]

cdef struct Table:
    # The handles of one dispatcher. Made once, never freed, and used again by another one when it is closed.
    uint8_t number
    bint open               # guarded by `lock`, except on the dispatcher's own thread
    PyObject *owner         # borrowed: the dispatcher
    pthread_mutex_t lock    # keeps wake-ups from other threads and closing apart
    unsigned long thread    # that is in native code of this dispatcher, as long as it is in it
    int inside              # how deep
    bint disturbed          # a step, or the dispatcher, was ended in it
    void *current           # the MQ_Context whose callback is being called, or NULL
    PyObject *message       # borrowed: the Message whose hook is being called, or NULL
    void *frame             # where on the thread's stack it went in last
    uint32_t count          # slots that there are
    uint32_t retired
    Slot *spare             # for the next step, whose hooks have it one after the other
    Slot *first_free[2]     # of steps, [True], and of others: so that both keep the order that they have in memory
    Slot *last_free[2]
    Slot *returned          # atomic: slots that any thread let go, last first
    Slot *given             # atomic: steps that were given back, last first
    Slot *waiting           # those that were taken from there and have not gone on yet, first first
    Note *notes             # atomic: last first
    int note_count          # atomic
    Slot *chunks[MOST_CHUNKS]

cdef inline uint32_t generation_of(uint64_t word) noexcept nogil:
    return word >> 32

cdef inline int state_of(uint64_t word) noexcept nogil:
    return <uint32_t>word

cdef inline void *handle_of(Slot *slot) noexcept nogil:
    """The handle that stands for the slot now."""
    return <void *>(slot.place | slot.word >> 32)

cdef inline uint32_t generation_in(void *handle) noexcept nogil:
    return <uint32_t><uint64_t>handle & ~<uint32_t>3

cdef inline int part_in(void *handle) noexcept nogil:
    return <uint64_t>handle & 3

cdef Table *open_table(PyObject *owner) noexcept nogil
cdef void close_table(Table *table) noexcept nogil
cdef void forget_tables() noexcept nogil
cdef Table *table_of(void *handle) noexcept nogil
cdef Slot *slot_of(void *handle) noexcept nogil
cdef Slot *live_slot(void *handle, int kind) noexcept nogil
cdef bint is_inside(Table *table) noexcept nogil
cdef Table *table_inside() noexcept nogil
cdef Table *any_open_table() noexcept nogil
cdef Slot *take_slot(Table *table, int kind) noexcept nogil
cdef void end_slot(Table *table, Slot *slot) noexcept nogil
cdef void free_slot(Table *table, Slot *slot) noexcept nogil
cdef bint push(void *place, void *item) noexcept nogil
cdef void *take_all(void *place) noexcept nogil
