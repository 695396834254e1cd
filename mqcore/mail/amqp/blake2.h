/* BLAKE2b (RFC 7693), and BLAKE2bp, which is four of them side by side: what one core can hash with vectors. */

#ifndef MQCORE_BLAKE2_H
#define MQCORE_BLAKE2_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define BLAKE2_BLOCK 128
#define BLAKE2_MOST 64 /* octets of a digest */

typedef struct {
    uint64_t h[8];
    uint64_t count; /* octets before those in `block` */
    uint8_t block[BLAKE2_BLOCK];
    size_t have;
    int is_last_node;
} blake2_state;

typedef uint64_t blake2_lanes __attribute__((vector_size(32)));

static const uint64_t blake2_iv[8] = {
    0x6a09e667f3bcc908ULL, 0xbb67ae8584caa73bULL, 0x3c6ef372fe94f82bULL, 0xa54ff53a5f1d36f1ULL,
    0x510e527fade682d1ULL, 0x9b05688c2b3e6c1fULL, 0x1f83d9abfb41bd6bULL, 0x5be0cd19137e2179ULL};

static const uint8_t blake2_sigma[12][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3}};

static inline uint64_t blake2_load(const uint8_t *p)
{
    uint64_t word = 0;
    int i;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    (void)i;
    memcpy(&word, p, 8);
#else
    for (i = 7; i >= 0; i--)
        word = word << 8 | p[i];
#endif
    return word;
}

/* For a word, and for four of them. */
#define BLAKE2_TURN(x, n) ((x) >> (n) | (x) << (64 - (n)))
#define BLAKE2_G(a, b, c, d, x, y)                                                                                           \
    do {                                                                                                                     \
        v[a] += v[b] + (x), v[d] = BLAKE2_TURN(v[d] ^ v[a], 32), v[c] += v[d], v[b] = BLAKE2_TURN(v[b] ^ v[c], 24);          \
        v[a] += v[b] + (y), v[d] = BLAKE2_TURN(v[d] ^ v[a], 16), v[c] += v[d], v[b] = BLAKE2_TURN(v[b] ^ v[c], 63);          \
    } while (0)
#define BLAKE2_ROUNDS                                                                                                        \
    for (round = 0; round < 12; round++) {                                                                                   \
        const uint8_t *s = blake2_sigma[round];                                                                              \
        BLAKE2_G(0, 4, 8, 12, m[s[0]], m[s[1]]);                                                                             \
        BLAKE2_G(1, 5, 9, 13, m[s[2]], m[s[3]]);                                                                             \
        BLAKE2_G(2, 6, 10, 14, m[s[4]], m[s[5]]);                                                                            \
        BLAKE2_G(3, 7, 11, 15, m[s[6]], m[s[7]]);                                                                            \
        BLAKE2_G(0, 5, 10, 15, m[s[8]], m[s[9]]);                                                                            \
        BLAKE2_G(1, 6, 11, 12, m[s[10]], m[s[11]]);                                                                          \
        BLAKE2_G(2, 7, 8, 13, m[s[12]], m[s[13]]);                                                                           \
        BLAKE2_G(3, 4, 9, 14, m[s[14]], m[s[15]]);                                                                           \
    }

/* `count`: octets up to the end of this block. */
static inline void blake2_compress(uint64_t h[8], const uint8_t *block, uint64_t count, int is_last, int is_last_node)
{
    uint64_t v[16], m[16];
    int i, round;
    for (i = 0; i < 16; i++)
        m[i] = blake2_load(block + 8 * i);
    for (i = 0; i < 8; i++) {
        v[i] = h[i];
        v[i + 8] = blake2_iv[i];
    }
    v[12] ^= count;
    v[14] ^= is_last ? ~0ULL : 0;
    v[15] ^= is_last && is_last_node ? ~0ULL : 0;
    BLAKE2_ROUNDS
    for (i = 0; i < 8; i++)
        h[i] ^= v[i] ^ v[i + 8];
}

/* So many stripes: each has a block of each of four hashes, which is not the last one. They have had nothing before. */
static inline __attribute__((always_inline)) void blake2_compress_lanes(blake2_lanes h[8], const uint8_t *stripe,
                                                                        size_t stripes)
{
    uint64_t count = 0;
    blake2_lanes v[16], m[16];
    int i, round;
    for (; stripes > 0; stripes--, stripe += 4 * BLAKE2_BLOCK) {
        count += BLAKE2_BLOCK;
        for (i = 0; i < 16; i++) {
            const uint8_t *p = stripe + 8 * i;
            m[i] = (blake2_lanes){blake2_load(p), blake2_load(p + BLAKE2_BLOCK), blake2_load(p + 2 * BLAKE2_BLOCK),
                                  blake2_load(p + 3 * BLAKE2_BLOCK)};
        }
        for (i = 0; i < 8; i++) {
            v[i] = h[i];
            v[i + 8] = (blake2_lanes){blake2_iv[i], blake2_iv[i], blake2_iv[i], blake2_iv[i]};
        }
        v[12] ^= (blake2_lanes){count, count, count, count};
        BLAKE2_ROUNDS
        for (i = 0; i < 8; i++)
            h[i] ^= v[i] ^ v[i + 8];
    }
}

typedef void blake2_stripes(blake2_lanes h[8], const uint8_t *stripe, size_t stripes);

static inline void blake2_stripes_anywhere(blake2_lanes h[8], const uint8_t *stripe, size_t stripes)
{
    blake2_compress_lanes(h, stripe, stripes);
}

#ifdef __x86_64__
__attribute__((target("avx2"))) static inline void blake2_stripes_avx2(blake2_lanes h[8], const uint8_t *stripe,
                                                                         size_t stripes)
{
    blake2_compress_lanes(h, stripe, stripes);
}

__attribute__((target("avx512vl"))) static inline void blake2_stripes_avx512(blake2_lanes h[8], const uint8_t *stripe,
                                                                               size_t stripes)
{
    blake2_compress_lanes(h, stripe, stripes);
}
#endif

/* What this processor does quickest. */
static inline blake2_stripes *blake2_choose(void)
{
#ifdef __x86_64__
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512vl"))
        return blake2_stripes_avx512;
    if (__builtin_cpu_supports("avx2"))
        return blake2_stripes_avx2;
#endif
    return blake2_stripes_anywhere;
}

/* Sizes, fanout and depth, and which node of a tree it is. */
static inline void blake2_begin_node(blake2_state *state, size_t size, unsigned fanout, unsigned depth, uint64_t node,
                              unsigned node_depth, size_t inner)
{
    memcpy(state->h, blake2_iv, sizeof state->h);
    state->h[0] ^= size | (uint64_t)fanout << 16 | (uint64_t)depth << 24;
    state->h[1] ^= node;
    state->h[2] ^= node_depth | (uint64_t)inner << 8;
    state->count = 0;
    state->have = 0;
    state->is_last_node = 0;
}

/* A hash of `size` octets. */
static inline void blake2_begin(blake2_state *state, size_t size)
{
    blake2_begin_node(state, size, 1, 1, 0, 0, 0);
}

static inline void blake2_update(blake2_state *state, const uint8_t *data, size_t size)
{
    while (size > 0) {
        size_t part = BLAKE2_BLOCK - state->have;
        if (part == 0) { /* there is more: it is not the last block */
            state->count += BLAKE2_BLOCK;
            blake2_compress(state->h, state->block, state->count, 0, 0);
            state->have = 0;
            part = BLAKE2_BLOCK;
        }
        if (part > size)
            part = size;
        memcpy(state->block + state->have, data, part);
        state->have += part;
        data += part;
        size -= part;
    }
}

static inline void blake2_end(blake2_state *state, uint8_t *digest, size_t size)
{
    uint8_t all[BLAKE2_MOST];
    int i, octet;
    memset(state->block + state->have, 0, BLAKE2_BLOCK - state->have);
    blake2_compress(state->h, state->block, state->count + state->have, 1, state->is_last_node);
    for (i = 0; i < 8; i++)
        for (octet = 0; octet < 8; octet++)
            all[8 * i + octet] = (uint8_t)(state->h[i] >> 8 * octet);
    memcpy(digest, all, size);
}

/* BLAKE2bp with 64 octets of digest. `compress`: what `blake2_choose` gave. */
static inline void blake2bp(blake2_stripes *compress, const uint8_t *data, size_t size, uint8_t digest[BLAKE2_MOST])
{
    blake2_state leaves[4], root;
    blake2_lanes h[8];
    size_t stripes, place;
    int lane, i;
    for (lane = 0; lane < 4; lane++)
        blake2_begin_node(&leaves[lane], BLAKE2_MOST, 4, 2, (uint64_t)lane, 0, BLAKE2_MOST);
    leaves[3].is_last_node = 1;
    stripes = size > 7 * BLAKE2_BLOCK ? (size - 3 * BLAKE2_BLOCK - 1) / (4 * BLAKE2_BLOCK) : 0; /* with no leaf's last block */
    if (stripes > 0) {
        for (i = 0; i < 8; i++)
            h[i] = (blake2_lanes){leaves[0].h[i], leaves[1].h[i], leaves[2].h[i], leaves[3].h[i]};
        compress(h, data, stripes);
        for (lane = 0; lane < 4; lane++) {
            for (i = 0; i < 8; i++)
                leaves[lane].h[i] = h[i][lane];
            leaves[lane].count = stripes * BLAKE2_BLOCK;
        }
    }
    for (place = stripes * 4 * BLAKE2_BLOCK, lane = 0; place < size; place += BLAKE2_BLOCK, lane = (lane + 1) % 4)
        blake2_update(&leaves[lane], data + place, size - place < BLAKE2_BLOCK ? size - place : BLAKE2_BLOCK);
    blake2_begin_node(&root, BLAKE2_MOST, 4, 2, 0, 1, BLAKE2_MOST);
    root.is_last_node = 1;
    for (lane = 0; lane < 4; lane++) {
        blake2_end(&leaves[lane], digest, BLAKE2_MOST);
        blake2_update(&root, digest, BLAKE2_MOST);
    }
    blake2_end(&root, digest, BLAKE2_MOST);
}

#endif
