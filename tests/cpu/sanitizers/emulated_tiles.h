/* AMX's tiles in C, included ahead of each file of the kernels: on processors that have none, and where a sanitizer is
   to see what they read and write. What an instruction refuses ends the program. The products are those of Intel's
   manual (TDPBF16PS): a sum of the first of each pair, a sum of the second, and then both to what there is; subnormal
   numbers are 0. */
#ifndef CPU_SANITIZERS_EMULATED_TILES_H
#define CPU_SANITIZERS_EMULATED_TILES_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EMULATED_TILES

enum { EMULATED_TILE_COUNT = 8, EMULATED_ROWS = 16, EMULATED_BYTES = 64 };

struct emulated_tiles {
    int configured;
    size_t rows[EMULATED_TILE_COUNT], bytes[EMULATED_TILE_COUNT];
    unsigned char data[EMULATED_TILE_COUNT][EMULATED_ROWS][EMULATED_BYTES];
};
/* One for each thread, whatever file asks. */
__attribute__((weak)) _Thread_local struct emulated_tiles emulated_tiles;

static inline void emulated_check(int right, const char *what) {
    if (right) return;
    fprintf(stderr, "tiles: %s\n", what);
    abort();
}

static inline void emulated_configure(const void *from) {
    struct {
        uint8_t palette, first_row, reserved[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } wanted;
    struct emulated_tiles *t = &emulated_tiles;
    memcpy(&wanted, from, sizeof wanted);
    emulated_check(wanted.palette == 1 && wanted.first_row == 0, "no such palette");
    for (size_t i = 0; i < sizeof wanted.reserved; i++) emulated_check(!wanted.reserved[i], "reserved");
    memset(t, 0, sizeof *t);
    t->configured = 1;
    for (size_t i = 0; i < 16; i++) {
        emulated_check(!wanted.rows[i] == !wanted.bytes[i], "rows without columns, or columns without rows");
        emulated_check(i < EMULATED_TILE_COUNT || !wanted.rows[i], "more than eight");
        emulated_check(wanted.rows[i] <= EMULATED_ROWS && wanted.bytes[i] <= EMULATED_BYTES, "too large");
        if (i < EMULATED_TILE_COUNT) t->rows[i] = wanted.rows[i], t->bytes[i] = wanted.bytes[i];
    }
}

static inline void emulated_move(int tile, const void *from, void *to, size_t step) {
    struct emulated_tiles *t = &emulated_tiles;
    emulated_check(t->configured && t->rows[tile], "not configured");
    if (!to) memset(t->data[tile], 0, sizeof t->data[tile]);
    for (size_t r = 0; r < t->rows[tile]; r++) {
        if (from) memcpy(t->data[tile][r], (const char *)from + r * step, t->bytes[tile]);
        if (to) memcpy((char *)to + r * step, t->data[tile][r], t->bytes[tile]);
    }
}

/* Inside of the tiles there is nothing for a sanitizer to see, and much to compute. */
#if defined(__clang__)
#define EMULATED_INSIDE __attribute__((no_sanitize("address", "thread", "undefined")))
#else
#define EMULATED_INSIDE __attribute__((no_sanitize("address", "thread", "undefined"), optimize("O2")))
#endif

/* Bits of a float; a subnormal number is 0. */
EMULATED_INSIDE static inline float emulated_float(uint32_t bits) {
    float value;
    if (!(bits & 0x7f800000u)) bits &= 0x80000000u;
    memcpy(&value, &bits, sizeof value);
    return value;
}

EMULATED_INSIDE static inline float emulated_normal(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return emulated_float(bits);
}

EMULATED_INSIDE static inline float emulated_element(const unsigned char *row, size_t i) {
    uint16_t half;
    memcpy(&half, row + i * sizeof half, sizeof half);
    return emulated_float((uint32_t)half << 16);
}

/* A product of two elements is exact as a float, so that a fused addition rounds no less. */
EMULATED_INSIDE static inline void emulated_multiply(int sums, int a, int w) {
    struct emulated_tiles *t = &emulated_tiles;
    emulated_check(t->configured && sums != a && sums != w && a != w, "not three tiles");
    emulated_check(t->rows[sums] && t->rows[sums] == t->rows[a] && t->bytes[sums] == t->bytes[w] &&
                       t->bytes[a] == 4 * t->rows[w],
                   "shapes that do not fit");
    for (size_t r = 0; r < t->rows[sums]; r++) {
        for (size_t column = 0; column < t->bytes[sums] / sizeof(float); column++) {
            float part[2] = {0.0f, 0.0f}, sum;
            for (size_t k = 0; k < t->rows[w]; k++) {
                for (size_t i = 0; i < 2; i++)
                    part[i] = emulated_normal(part[i] + emulated_element(t->data[a][r], 2 * k + i) *
                                                            emulated_element(t->data[w][k], 2 * column + i));
            }
            memcpy(&sum, t->data[sums][r] + column * sizeof sum, sizeof sum);
            sum = emulated_normal(emulated_normal(sum) + emulated_normal(part[0] + part[1]));
            memcpy(t->data[sums][r] + column * sizeof sum, &sum, sizeof sum);
        }
    }
}

#define TILES_CONFIGURE(shapes) emulated_configure(shapes)
#define TILES_RELEASE() ((void)memset(&emulated_tiles, 0, sizeof emulated_tiles))
#define TILE_ZERO(tile) emulated_move(tile, NULL, NULL, 0)
#define TILE_LOAD(tile, from, bytes) emulated_move(tile, from, NULL, bytes)
#define TILE_STORE(tile, to, bytes) emulated_move(tile, NULL, to, bytes)
#define TILE_MULTIPLY(sums, a, w) emulated_multiply(sums, a, w)

#endif
