/* The digest of a row: BLAKE2b (RFC 7693) with 128 bits and no key, of one row or of four at once. */

#ifndef SIPHA_STATE_DIGEST_H
#define SIPHA_STATE_DIGEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 128
#define DIGEST 16
#define ROUNDS 12

static const uint64_t INITIAL[8] = {
    0x6a09e667f3bcc908, 0xbb67ae8584caa73b, 0x3c6ef372fe94f82b, 0xa54ff53a5f1d36f1,
    0x510e527fade682d1, 0x9b05688c2b3e6c1f, 0x1f83d9abfb41bd6b, 0x5be0cd19137e2179,
};

static const uint8_t SIGMA[ROUNDS][16] = {
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
    {11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4}, {7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8},
    {9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13}, {2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9},
    {12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11}, {13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10},
    {6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5}, {10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, {14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3},
};

static inline uint64_t little(const uint8_t *at)
{
    uint64_t value = 0;
#pragma GCC unroll 8
    for (int i = 7; i >= 0; i--)
        value = value << 8 | at[i];
    return value;
}

static inline uint64_t right(uint64_t word, int bits) { return word >> bits | word << (64 - bits); }

#define MIX(right, a, b, c, d, x, y)                                                                                   \
    do {                                                                                                               \
        a += b + (x);                                                                                                  \
        d = right(d ^ a, 32);                                                                                          \
        c += d;                                                                                                        \
        b = right(b ^ c, 24);                                                                                          \
        a += b + (y);                                                                                                  \
        d = right(d ^ a, 16);                                                                                          \
        c += d;                                                                                                        \
        b = right(b ^ c, 63);                                                                                          \
    } while (0)

/* One round, of words or of lanes of them, which `right` turns. */
#define MIX_ALL(right, v, m, s)                                                                                        \
    do {                                                                                                               \
        MIX(right, v[0], v[4], v[8], v[12], m[s[0]], m[s[1]]);                                                         \
        MIX(right, v[1], v[5], v[9], v[13], m[s[2]], m[s[3]]);                                                         \
        MIX(right, v[2], v[6], v[10], v[14], m[s[4]], m[s[5]]);                                                        \
        MIX(right, v[3], v[7], v[11], v[15], m[s[6]], m[s[7]]);                                                        \
        MIX(right, v[0], v[5], v[10], v[15], m[s[8]], m[s[9]]);                                                        \
        MIX(right, v[1], v[6], v[11], v[12], m[s[10]], m[s[11]]);                                                      \
        MIX(right, v[2], v[7], v[8], v[13], m[s[12]], m[s[13]]);                                                       \
        MIX(right, v[3], v[4], v[9], v[14], m[s[14]], m[s[15]]);                                                       \
    } while (0)

static inline void compress(uint64_t h[8], const uint8_t block[BLOCK], uint64_t hashed, bool last)
{
    uint64_t m[16], v[16];
    for (int i = 0; i < 16; i++)
        m[i] = little(block + 8 * i);
    for (int i = 0; i < 8; i++) {
        v[i] = h[i];
        v[i + 8] = INITIAL[i];
    }
    v[12] ^= hashed;
    if (last)
        v[14] = ~v[14];
#pragma GCC unroll 12
    for (int round = 0; round < ROUNDS; round++)
        MIX_ALL(right, v, m, SIGMA[round]);
    for (int i = 0; i < 8; i++)
        h[i] ^= v[i] ^ v[i + 8];
}

static inline void digest(const uint8_t *data, size_t size, uint8_t out[DIGEST])
{
    uint64_t h[8];
    memcpy(h, INITIAL, sizeof h);
    h[0] ^= 0x01010000 ^ DIGEST;
    uint64_t hashed = 0;
    while (size - hashed > BLOCK) {
        hashed += BLOCK;
        compress(h, data + hashed - BLOCK, hashed, false);
    }
    uint8_t block[BLOCK] = {0};
    if (size > hashed)
        memcpy(block, data + hashed, size - hashed);
    compress(h, block, size, true);
    for (int i = 0; i < DIGEST; i++)
        out[i] = (uint8_t)(h[i / 8] >> 8 * (i % 8));
}

/* -- the same of four at once, one in each lane of AVX2's registers; in those of SSE2 it would take longer ---------------- */

#define LANES 4

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(SIPHA_NO_LANES)
#define HAS_LANES

#define OF_LANES __attribute__((target("avx2")))

typedef uint64_t Lanes __attribute__((vector_size(8 * LANES)));
typedef uint8_t Bytes __attribute__((vector_size(8 * LANES)));

OF_LANES __attribute__((always_inline)) static inline Lanes right_each(Lanes words, int bits)
{
    if (bits % 8)
        return words >> bits | words << (64 - bits);
    const Bytes at = {0,  1,  2,  3,  4,  5,  6,  7,  8,  9,  10, 11, 12, 13, 14, 15,
                      16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31};
    return (Lanes)__builtin_shuffle((Bytes)words, (at & 0xf8) | ((at + (uint8_t)(bits / 8)) & 7)); /* in one step */
}

/* Where a lane of `open` is 0, its h stays: what it had to hash has ended. */
OF_LANES static inline void compress_lanes(Lanes h[8], const uint8_t *const blocks[LANES], Lanes hashed, Lanes last,
                                           Lanes open)
{
    Lanes m[16], v[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        m[i] = (Lanes){little(blocks[0] + 8 * i), little(blocks[1] + 8 * i), little(blocks[2] + 8 * i),
                       little(blocks[3] + 8 * i)};
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        v[i] = h[i];
        v[i + 8] = (Lanes){0} + INITIAL[i];
    }
    v[12] ^= hashed;
    v[14] ^= last;
#pragma GCC unroll 12
    for (int round = 0; round < ROUNDS; round++)
        MIX_ALL(right_each, v, m, SIGMA[round]);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        h[i] ^= (v[i] ^ v[i + 8]) & open;
}

/* Up to four; lanes without any hash nothing, for nobody. */
OF_LANES static void digest_lanes(const uint8_t *const data[], const size_t sizes[], uint8_t *const out[], int count)
{
    Lanes size = {0}, end = {0}, h[8];
    uint8_t ends[LANES][BLOCK] = {{0}}; /* the last block of each, which begins at its `end` */
    uint64_t longest = 0;
    for (int i = 0; i < count; i++) {
        size[i] = sizes[i];
        end[i] = sizes[i] ? (sizes[i] - 1) / BLOCK * BLOCK : 0;
        memcpy(ends[i], data[i] + end[i], sizes[i] - end[i]);
        if (end[i] > longest)
            longest = end[i];
    }
    for (int i = 0; i < 8; i++)
        h[i] = (Lanes){0} + INITIAL[i];
    h[0] ^= 0x01010000 ^ DIGEST;
    for (uint64_t from = 0; from <= longest; from += BLOCK) {
        const uint8_t *blocks[LANES];
        for (int i = 0; i < LANES; i++)
            blocks[i] = from < end[i] ? data[i] + from : ends[i];
        Lanes last = (Lanes)(end <= from);
        compress_lanes(h, blocks, (size & last) | ((from + BLOCK) & ~last), last, (Lanes)(end >= from));
    }
    for (int i = 0; i < count; i++)
        for (int j = 0; j < DIGEST; j++)
            out[i][j] = (uint8_t)(h[j / 8][i] >> 8 * (j % 8));
}
#endif

#endif
