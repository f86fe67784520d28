/* The product of a tile: a few rows of the batch times a few vectors of columns, whose sums stay in registers. */
#ifndef FASTCELLS_GEMM_H
#define FASTCELLS_GEMM_H

#include "element.h"
#include "team.h"

enum { MAX_WIDTH = 4 }; /* vectors of a tile: the gates of one vector of columns, or columns of one gate */
#ifdef TILES /* the processor has instructions for the products of matrices */
enum { MAX_ROWS = 16, WIDEST = MAX_WIDTH, WIDE_FOR_TWO = MAX_WIDTH };
#else
enum { MAX_ROWS = 8 };
/* And where there are but one or two rows, so that enough multiplications are on their way at a time: */
enum { WIDEST = 12, WIDE_FOR_TWO = 6 };
#endif
enum { MAX_PREFETCH = 40 * MAX_ROWS }; /* lines: the widest tile's rows times what an LSTM or GRU reads and writes of each */
enum { PART = 512 };         /* terms of a product's sum that are added up one after another */
/* Floats of a panel from what is multiplied to what is fetched: where some rows multiply each weight, a processor looks
   less far ahead by itself (measured from the second cache and beyond: 5 to 15 % of a product). */
enum { AHEAD = 512 };

/* Rows of a tile by its width: accumulators, weights and a broadcast in registers. */
static const size_t ROWS[WIDEST + 1] = {
    0,
#ifdef TILES
    MAX_ROWS, MAX_ROWS, MAX_ROWS, MAX_ROWS,
#else
    8,
    REGISTERS >= 32 ? 8 : 6,
    REGISTERS >= 32 ? 8 : 4,
    REGISTERS >= 32 ? 6 : 3,
    2, 2, 1, 1, 1, 1, 1, 1,
#endif
};

typedef float tile_t[MAX_ROWS][MAX_WIDTH][LANES] __attribute__((aligned(64)));

/* Vector v of row r in a tile so wide; of a wide one, a row takes the place of several. */
INLINE float *in_tile(tile_t tile, size_t width, size_t r, size_t v) {
    return tile[r * ((width + MAX_WIDTH - 1) / MAX_WIDTH) + v / MAX_WIDTH][v % MAX_WIDTH];
}

/* Lines of memory to prefetch in the course of a product. All at once they would be more than a core keeps track of,
   and it would wait for the first ones. */
struct prefetch {
    size_t count;
    const void *line[MAX_PREFETCH];
};

/* Add to the list what the update of a tile reads or writes: `planes` planes of a row, H apart, for `vectors` vectors
   of columns. */
static inline void prefetch(struct prefetch *list, const element *row, size_t planes, size_t H, size_t vectors) {
    enum { LINE = CACHE_LINE / sizeof(element) };
    for (size_t plane = 0; plane < planes; plane++) {
        for (size_t i = 0; i < vectors * LANES && list->count < MAX_PREFETCH; i += LINE)
            list->line[list->count++] = row + plane * H + i;
    }
}

#ifdef TILES
#include "matrix_tiles.h"
#else
static inline void release_tiles(void) {}

/* Keep a vector in a register: compilers would have each multiplication of two or three rows read the weights anew,
   which takes more time than to multiply them. */
#if defined(__x86_64__)
#define IN_REGISTER(v) __asm__("" : "+v"(v))
#else
#define IN_REGISTER(v) ((void)0)
#endif

/* One term of the sums of a tile: acc[r][v] += a[r * row_step] * w[v] */
INLINE void add_term(size_t rows, size_t width, vec acc[MAX_ROWS][WIDEST], const element *restrict a, size_t row_step,
                     const float *restrict w) {
    if (rows == 2 || rows == 3) {
        broadcast s[MAX_ROWS];
        UNROLL for (size_t r = 0; r < rows; r++) s[r] = splat_term(a + r * row_step);
        UNROLL for (size_t r = 0; r < rows; r++) IN_REGISTER(s[r]);
        UNROLL for (size_t v = 0; v < width; v++) {
            vec column = load(w + v * LANES);
            IN_REGISTER(column);
            UNROLL for (size_t r = 0; r < rows; r++) acc[r][v] = add_product(acc[r][v], s[r], column);
        }
        return;
    }
    vec columns[WIDEST];
    UNROLL for (size_t v = 0; rows > 3 && v < width; v++) {
        if (v * LANES * sizeof *w % CACHE_LINE == 0) __builtin_prefetch(w + v * LANES + AHEAD);
    }
    UNROLL for (size_t v = 0; v < width; v++) columns[v] = load(w + v * LANES);
    UNROLL for (size_t r = 0; r < rows; r++) {
        broadcast s = splat_term(a + r * row_step);
        UNROLL for (size_t v = 0; v < width; v++) acc[r][v] = add_product(acc[r][v], s, columns[v]);
    }
}

/* out[r][v] (+)= sum over k of a[r * row_step + k * k_step] * panel[k][v], prefetching `lines` lines on the way; the
   last eighth of it leaves them time to arrive. */
INLINE void gemm_part(size_t rows, size_t width, tile_t out, const element *restrict a, size_t row_step, size_t k_step,
                      const float *restrict panel, size_t K, int add, const void *const *line, size_t lines) {
    vec acc[MAX_ROWS][WIDEST];
    UNROLL for (size_t r = 0; r < rows; r++) {
        UNROLL for (size_t v = 0; v < width; v++) acc[r][v] = splat(0.0f);
    }
    const size_t terms_a_line = lines ? (K - K / 8) / lines : 0;
    size_t k = 0;
    for (size_t i = 0; i < lines; i++) {
        __builtin_prefetch(line[i]);
        for (const size_t end = k + terms_a_line; k < end; k++)
            add_term(rows, width, acc, a + k * k_step, row_step, panel + k * width * LANES);
    }
    for (; k < K; k++) add_term(rows, width, acc, a + k * k_step, row_step, panel + k * width * LANES);
    UNROLL for (size_t r = 0; r < rows; r++) {
        UNROLL for (size_t v = 0; v < width; v++) {
            float *to = in_tile(out, width, r, v);
            store(to, add ? load(to) + acc[r][v] : acc[r][v]);
        }
    }
}

/* One function for each size of a tile. */
#define GEMM_PART(rows, width)                                                                                         \
    static __attribute__((noinline)) void gemm_part_##rows##_##width(                                                  \
        tile_t out, const element *a, size_t row_step, size_t k_step, const float *panel, size_t K, int add,           \
        const void *const *line, size_t lines) {                                                                       \
        gemm_part(rows, width, out, a, row_step, k_step, panel, K, add, line, lines);                                  \
    }
#define GEMM_PARTS(width)                                                                                              \
    GEMM_PART(1, width)                                                                                                \
    GEMM_PART(2, width)                                                                                                \
    GEMM_PART(3, width)                                                                                                \
    GEMM_PART(4, width)                                                                                                \
    GEMM_PART(5, width)                                                                                                \
    GEMM_PART(6, width)                                                                                                \
    GEMM_PART(7, width)                                                                                                \
    GEMM_PART(8, width)
GEMM_PARTS(1)
GEMM_PARTS(2)
GEMM_PARTS(3)
GEMM_PARTS(4)
GEMM_PART(1, 5)
GEMM_PART(2, 5)
GEMM_PART(1, 6)
GEMM_PART(2, 6)
GEMM_PART(1, 7)
GEMM_PART(1, 8)
GEMM_PART(1, 9)
GEMM_PART(1, 10)
GEMM_PART(1, 11)
GEMM_PART(1, 12)

typedef void (*gemm_part_fn)(tile_t, const element *, size_t, size_t, const float *, size_t, int, const void *const *,
                             size_t);
#define GEMM_PART_NAMES(width)                                                                                         \
    {gemm_part_1_##width, gemm_part_2_##width, gemm_part_3_##width, gemm_part_4_##width,                               \
     gemm_part_5_##width, gemm_part_6_##width, gemm_part_7_##width, gemm_part_8_##width}
static const gemm_part_fn GEMM_PART_OF[WIDEST][MAX_ROWS] = {
    GEMM_PART_NAMES(1),
    GEMM_PART_NAMES(2),
    GEMM_PART_NAMES(3),
    GEMM_PART_NAMES(4),
    {gemm_part_1_5, gemm_part_2_5},
    {gemm_part_1_6, gemm_part_2_6},
    {gemm_part_1_7},
    {gemm_part_1_8},
    {gemm_part_1_9},
    {gemm_part_1_10},
    {gemm_part_1_11},
    {gemm_part_1_12},
};

#endif

/* The same for rows whose terms lie side by side. */
static inline void product_part(size_t rows, size_t width, tile_t out, const element *a, size_t a_stride,
                                const float *panel, size_t terms, int add, const void *const *line, size_t lines) {
#ifdef TILES
    const struct tile_rows from = {(const char *)a, a_stride * sizeof *a, TILE_BYTES};
    tiles_part(rows, width, out, from, panel, terms, add, line, lines);
#else
    GEMM_PART_OF[width - 1][rows - 1](out, a, a_stride, TERM, panel, terms, add, line, lines);
#endif
}

/* out[r][v] (+)= sum over k of a[r][k] * panel[k][v]. Long sums are taken in parts, so that rounding errors do not pile
   up along K. A panel has ceil(K / TERM) terms. */
static inline void gemm_tile(size_t rows, size_t width, tile_t out, const element *a, size_t a_stride,
                             const float *panel, size_t K, int add, const struct prefetch *list) {
    const size_t whole = K / TERM;
    size_t fetched = 0;
    for (size_t k = 0; k < whole; k += PART) {
        const size_t terms = whole - k < PART ? whole - k : PART, upto = list->count * (k + terms) / whole;
        product_part(rows, width, out, a + k * TERM, a_stride, panel + k * width * LANES, terms, add || k > 0,
                     list->line + fetched, upto - fetched);
        fetched = upto;
    }
    if (K % TERM == 0) return;
    for (size_t r = 0; r < rows; r++) {
        for (size_t v = 0; v < width; v++) {
            float *to = in_tile(out, width, r, v);
            const vec sum = add || whole ? load(to) : splat(0.0f);
            store(to, add_last(sum, a + r * a_stride + K - 1, load(panel + (whole * width + v) * LANES)));
        }
    }
}

#endif
