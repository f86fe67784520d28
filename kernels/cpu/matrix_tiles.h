/* Products of bfloat16 by AMX: registers of up to 16 rows of 64 bytes, of which one instruction multiplies two and adds
   to a third: the sum of all pairs' first products, and that of their second ones. */
#ifndef FASTCELLS_MATRIX_TILES_H
#define FASTCELLS_MATRIX_TILES_H

#include "tile.h"

#ifndef EMULATED_TILES /* tests define it where they compute what the instructions do in C */
#include <immintrin.h>
#define TILES_CONFIGURE(shapes) _tile_loadconfig(shapes)
#define TILES_RELEASE() _tile_release()
#define TILE_ZERO(tile) _tile_zero(tile)
#define TILE_LOAD(tile, from, bytes) _tile_loadd(tile, from, bytes)
#define TILE_STORE(tile, to, bytes) _tile_stored(tile, to, bytes)
#define TILE_MULTIPLY(sums, a, w) _tile_dpbf16ps(sums, a, w)
#endif

/* GCC is not told what ldtilecfg (but for 8 bytes) and tileloadd read, and would leave out what was written for them. */
#define MEMORY_IS_READ(p) __asm__ volatile("" : : "r"(p) : "memory")

enum { TILE_BYTES = 64 }; /* of a row */
enum { TERMS_OF_TILE = TILE_BYTES / 4 }; /* of a product's sum: pairs */

/* The operand of ldtilecfg. */
struct tile_shapes {
    uint8_t palette, first_row, reserved[14];
    uint16_t bytes[16]; /* of a row */
    uint8_t rows[16];
};

/* The registers, which compilers want as literals; the first four have sums. Where there is A_LAST, W_NEXT is not. */
#define A_TILE 4
#define W_TILE 5
#define W_NEXT 6
#define A_LAST 6
#define W_LAST 7

/* What this thread has configured; all 0: nothing. */
static _Thread_local struct {
    size_t rows, last;
} configured;

/* rows: of sums. last: terms after the last whole tile of them, for which a row of a and a column of weights are
   shorter. It takes as long as a tile of products. */
static __attribute__((noinline)) void configure_tiles(size_t rows, size_t last) {
    struct tile_shapes shapes = {.palette = 1};
    for (size_t tile = 0; tile < 8; tile++) {
        const int weights = tile == W_TILE || (tile == W_NEXT && !last);
        shapes.rows[tile] = (uint8_t)(weights ? TERMS_OF_TILE : rows);
        shapes.bytes[tile] = TILE_BYTES;
    }
    if (last) shapes.bytes[A_LAST] = (uint16_t)(last * 4);
    shapes.rows[W_LAST] = (uint8_t)(last ? last : TERMS_OF_TILE);
    MEMORY_IS_READ(&shapes);
    TILES_CONFIGURE(&shapes);
    configured.rows = rows;
    configured.last = last;
}

/* Others who use the registers configure them anew; what is left in them costs each switch between threads. */
static inline void release_tiles(void) {
    if (configured.rows) TILES_RELEASE();
    configured.rows = 0;
}

/* Where the rows of a product are: lines of TILE_BYTES, `row` bytes apart, and `block` from one tile to the next. */
struct tile_rows {
    const char *at;
    size_t row, block;
};

/* out[r][v] = sum over k of a[r][k] * panel[k][v] for `terms` terms, of which the last ones may be less than a tile. */
INLINE void multiply_tiles(size_t width, tile_t out, struct tile_rows a, const float *panel, size_t terms,
                           const char *const *line, size_t lines) {
    const size_t blocks = terms / TERMS_OF_TILE, last = terms % TERMS_OF_TILE, step = width * LANES * sizeof(float);
    size_t fetched = 0;
#define ALL_SUMS(DO)                                                                                                   \
    do {                                                                                                               \
        DO(0);                                                                                                         \
        if (width > 1) DO(1);                                                                                          \
        if (width > 2) DO(2);                                                                                          \
        if (width > 3) DO(3);                                                                                          \
    } while (0)
#define MULTIPLY(v, a_tile, w_tile)                                                                                    \
    do {                                                                                                               \
        TILE_LOAD(w_tile, panel + v * LANES, step);                                                                    \
        TILE_MULTIPLY(v, a_tile, w_tile);                                                                              \
    } while (0)
#define ZERO(v) TILE_ZERO(v)
#define PUT(v) TILE_STORE(v, out[0][v], sizeof out[0])
#define BY_ONE(v) MULTIPLY(v, A_TILE, W_TILE)
#define LAST(v) MULTIPLY(v, A_LAST, W_LAST)
    MEMORY_IS_READ(out);
    ALL_SUMS(ZERO);
    for (size_t k = 0; k < blocks; k++) {
        for (const size_t end = lines * (k + 1) / blocks; fetched < end; fetched++) __builtin_prefetch(line[fetched]);
        TILE_LOAD(A_TILE, a.at, a.row);
        if (last) {
            ALL_SUMS(BY_ONE);
        } else { /* two registers in turn: the next weights are loaded meanwhile */
            MULTIPLY(0, A_TILE, W_TILE);
            if (width > 1) MULTIPLY(1, A_TILE, W_NEXT);
            if (width > 2) MULTIPLY(2, A_TILE, W_TILE);
            if (width > 3) MULTIPLY(3, A_TILE, W_NEXT);
        }
        a.at += a.block;
        panel += TERMS_OF_TILE * width * LANES;
    }
    if (last) {
        TILE_LOAD(A_LAST, a.at, a.row);
        ALL_SUMS(LAST);
    }
    ALL_SUMS(PUT);
}

#define MULTIPLY_TILES(width)                                                                                          \
    static __attribute__((noinline)) void multiply_tiles_##width(tile_t out, struct tile_rows a, const float *panel,   \
                                                                 size_t terms, const char *const *line,                \
                                                                 size_t lines) {                                       \
        multiply_tiles(width, out, a, panel, terms, line, lines);                                                      \
    }
MULTIPLY_TILES(1)
MULTIPLY_TILES(2)
MULTIPLY_TILES(3)
MULTIPLY_TILES(4)

/* out[r][v] (+)= sum over k of a[r][k] * panel[k][v], as gemm_part in gemm.h. */
static inline void tiles_part(size_t rows, size_t width, tile_t out, struct tile_rows a, const float *panel,
                              size_t terms, int add, const char *const *line, size_t lines) {
    static void (*const of_width[MAX_WIDTH])(tile_t, struct tile_rows, const float *, size_t, const char *const *,
                                             size_t) = {multiply_tiles_1, multiply_tiles_2, multiply_tiles_3,
                                                        multiply_tiles_4};
    const size_t last = terms % TERMS_OF_TILE;
    tile_t sums;
    if (configured.rows != rows || configured.last != last) configure_tiles(rows, last);
    of_width[width - 1](add ? sums : out, a, panel, terms, line, lines);
    for (size_t r = 0; add && r < rows; r++) {
        for (size_t v = 0; v < width; v++) store(out[r][v], load(out[r][v]) + load(sums[r][v]));
    }
}

#endif
