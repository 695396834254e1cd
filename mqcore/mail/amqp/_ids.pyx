"""The ids of the messages of a queue: BLAKE2b (RFC 7693) of its name, the message's own id, and the body.

It is here as calling `hashlib` for three short pieces of each message costs more than the sum.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ...amqp._wire cimport put32

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    static const uint64_t mqcore_blake2b_iv[8] = {
        0x6a09e667f3bcc908u, 0xbb67ae8584caa73bu, 0x3c6ef372fe94f82bu, 0xa54ff53a5f1d36f1u,
        0x510e527fade682d1u, 0x9b05688c2b3e6c1fu, 0x1f83d9abfb41bd6bu, 0x5be0cd19137e2179u
    };

    static inline uint64_t mqcore_load64(const uint8_t *p)
    {
        uint64_t word;
        memcpy(&word, p, 8);
    #if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        word = __builtin_bswap64(word);
    #endif
        return word;
    }

    #define MQCORE_TURN(x, n) ((x) >> (n) | (x) << (64 - (n)))
    #define MQCORE_MIX(a, b, c, d, x, y) \\
        a += b + m[x]; d = MQCORE_TURN(d ^ a, 32); c += d; b = MQCORE_TURN(b ^ c, 24); \\
        a += b + m[y]; d = MQCORE_TURN(d ^ a, 16); c += d; b = MQCORE_TURN(b ^ c, 63);
    #define MQCORE_ROUND(a, b, c, d, e, f, g, h, i, j, k, l, n, o, p, q) \\
        MQCORE_MIX(v0, v4, v8, v12, a, b) MQCORE_MIX(v1, v5, v9, v13, c, d) \\
        MQCORE_MIX(v2, v6, v10, v14, e, f) MQCORE_MIX(v3, v7, v11, v15, g, h) \\
        MQCORE_MIX(v0, v5, v10, v15, i, j) MQCORE_MIX(v1, v6, v11, v12, k, l) \\
        MQCORE_MIX(v2, v7, v8, v13, n, o) MQCORE_MIX(v3, v4, v9, v14, p, q)

    /* One block of 128 octets; `count`: those up to its end; `last`: all ones for the last, else 0. */
    static void mqcore_blake2b_block(uint64_t *h, const uint8_t *block, uint64_t count, uint64_t last)
    {
        const uint64_t *iv = mqcore_blake2b_iv;
        uint64_t m[16];
        uint64_t v0 = h[0], v1 = h[1], v2 = h[2], v3 = h[3], v4 = h[4], v5 = h[5], v6 = h[6], v7 = h[7];
        uint64_t v8 = iv[0], v9 = iv[1], v10 = iv[2], v11 = iv[3];
        uint64_t v12 = iv[4] ^ count, v13 = iv[5], v14 = iv[6] ^ last, v15 = iv[7];
        for (int i = 0; i < 16; i++)
            m[i] = mqcore_load64(block + 8 * i);
        MQCORE_ROUND(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
        MQCORE_ROUND(14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3)
        MQCORE_ROUND(11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4)
        MQCORE_ROUND(7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8)
        MQCORE_ROUND(9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13)
        MQCORE_ROUND(2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9)
        MQCORE_ROUND(12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11)
        MQCORE_ROUND(13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10)
        MQCORE_ROUND(6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5)
        MQCORE_ROUND(10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0)
        MQCORE_ROUND(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
        MQCORE_ROUND(14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3)
        h[0] ^= v0 ^ v8; h[1] ^= v1 ^ v9; h[2] ^= v2 ^ v10; h[3] ^= v3 ^ v11;
        h[4] ^= v4 ^ v12; h[5] ^= v5 ^ v13; h[6] ^= v6 ^ v14; h[7] ^= v7 ^ v15;
    }
    """
    const uint64_t *IV "mqcore_blake2b_iv"
    void take_block "mqcore_blake2b_block"(uint64_t *h, const uint8_t *block, uint64_t count, uint64_t last) noexcept

cdef extern from "Python.h":
    object PyUnicode_New(Py_ssize_t size, Py_ssize_t highest)
    char *PyUnicode_DATA(object text) noexcept

cdef const char *DIGITS = b"0123456789abcdef"


cdef void begin(State *state) noexcept:
    memcpy(state.h, IV, sizeof(state.h))
    state.h[0] ^= 0x01010000 ^ ID_SIZE
    state.count = 0
    state.used = 0


cdef void add(State *state, const uint8_t *p, Py_ssize_t size) noexcept:
    """The last block, which is another one than the others, is kept until more comes."""
    cdef Py_ssize_t part
    while size > 0:
        if state.used == BLOCK:
            state.count += BLOCK
            take_block(state.h, state.block, state.count, 0)
            state.used = 0
        while state.used == 0 and size > BLOCK:
            state.count += BLOCK
            take_block(state.h, p, state.count, 0)
            p += BLOCK
            size -= BLOCK
        part = min(size, BLOCK - state.used)
        memcpy(state.block + state.used, p, part)
        state.used += part
        p += part
        size -= part


cdef void end(State *state) noexcept:
    """The digest is in `h`, its first octet the lowest."""
    memset(state.block + state.used, 0, BLOCK - state.used)
    take_block(state.h, state.block, state.count + state.used, <uint64_t>-1)


cdef void add_text(State *state, const char *text, Py_ssize_t size) noexcept:
    cdef uint8_t head[4]
    put32(head, <uint32_t>size)
    add(state, head, 4)
    add(state, <const uint8_t *>text, size)


@cython.final
cdef class Ids:
    """What the ids of all messages of a queue begin with is worked out once."""

    def __cinit__(self, str queue not None):
        cdef bytes name = queue.encode("utf-8", "surrogateescape")
        begin(&self.begun)
        add_text(&self.begun, name, len(name))

    def id(self, str message_id not None, bytes body not None):
        """The same when the message comes again: 32 hex digits."""
        cdef uint64_t key
        cdef bytes text = message_id.encode("utf-8", "surrogateescape")
        return self.make(text, len(text), body, &key)

    cdef str make(self, const char *message_id, Py_ssize_t size, bytes body, uint64_t *key):
        """Likewise. `key` is a part of it."""
        cdef State state = self.begun
        cdef str made
        cdef char *digit
        cdef uint64_t word
        cdef int i
        add_text(&state, message_id, size)
        add(&state, <const uint8_t *>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))
        end(&state)
        made = PyUnicode_New(2 * ID_SIZE, 127)
        digit = PyUnicode_DATA(made)
        for i in range(ID_SIZE):
            word = state.h[i // 8] >> 8 * (i % 8)
            digit[2 * i] = DIGITS[word >> 4 & 15]
            digit[2 * i + 1] = DIGITS[word & 15]
        key[0] = state.h[0]
        return made
