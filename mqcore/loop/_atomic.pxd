# What several threads look at without a lock, as the compiler's builtins have it.

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>

    #define mqcore_load(place) __atomic_load_n(place, __ATOMIC_ACQUIRE)
    #define mqcore_store(place, value) __atomic_store_n(place, value, __ATOMIC_RELEASE)
    #define mqcore_get(place) __atomic_load_n(place, __ATOMIC_RELAXED)
    #define mqcore_set(place, value) __atomic_store_n(place, value, __ATOMIC_RELAXED)
    #define mqcore_exchange(place, value) __atomic_exchange_n(place, value, __ATOMIC_ACQ_REL)
    #define mqcore_fence() __atomic_thread_fence(__ATOMIC_ACQ_REL)
    #define mqcore_add(place, value) __atomic_add_fetch(place, value, __ATOMIC_ACQ_REL)

    static inline int mqcore_swap(uint64_t *place, uint64_t before, uint64_t after)
    {
        return __atomic_compare_exchange_n(place, &before, after, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    }

    static inline int mqcore_swap_pointer(void *place, void *before, void *after)
    {
        return __atomic_compare_exchange_n((void **)place, &before, after, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
    }
    """
    uint64_t load "mqcore_load"(uint64_t *) noexcept nogil
    void store "mqcore_store"(uint64_t *, uint64_t) noexcept nogil
    bint load_flag "mqcore_load"(bint *) noexcept nogil
    void store_flag "mqcore_store"(bint *, bint) noexcept nogil
    uint32_t load_version "mqcore_load"(uint32_t *) noexcept nogil
    void store_version "mqcore_store"(uint32_t *, uint32_t) noexcept nogil
    void fence "mqcore_fence"() noexcept nogil
    uint64_t get "mqcore_get"(uint64_t *) noexcept nogil
    void set "mqcore_set"(uint64_t *, uint64_t) noexcept nogil
    uint8_t get_byte "mqcore_get"(uint8_t *) noexcept nogil
    void set_byte "mqcore_set"(uint8_t *, uint8_t) noexcept nogil
    int add "mqcore_add"(int *, int) noexcept nogil
    uint64_t add_number "mqcore_add"(uint64_t *, uint64_t) noexcept nogil
    bint swap "mqcore_swap"(uint64_t *, uint64_t before, uint64_t after) noexcept nogil
    bint swap_pointer "mqcore_swap_pointer"(void *, void *before, void *after) noexcept nogil
