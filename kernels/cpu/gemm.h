/* The product of a tile: a few rows of the batch times a few vectors of columns, whose sums stay in registers. */
#ifndef FASTCELLS_GEMM_H
#define FASTCELLS_GEMM_H

#include "team.h"
#include "tile.h"

enum { MAX_LINES = 48 };     /* of a row: what the update of the widest tile of an LSTM or GRU reads and writes of it */
enum { MAX_PREFETCH = (MAX_LINES + 1) * MAX_ROWS };
enum { PART = 512 };         /* terms of a product's sum that are added up one after another */
/* Floats of a panel from what is multiplied to what is fetched: where some rows multiply each weight, a processor looks
   less far ahead by itself (measured from the second cache and beyond: 5 to 15 % of a product). */
enum { AHEAD = 512 };

/* Lines of memory to prefetch in the course of a product. All at once they would be more than a core keeps track of,
   and it would wait for the first ones. The list is made anew for each product, from what is the same for all rows: to
   compute each line's address by itself took a tenth of the time of the products. */
struct prefetch {
    size_t count;
    const char *line[MAX_PREFETCH];
    size_t lines; /* of a row; and of the first row that is not on the list yet, with the distance to the one after it */
    const char *next[MAX_LINES];
    size_t step[MAX_LINES];
};

/* Of each row, `step` apart: `planes` planes, H apart, for `vectors` vectors of columns. */
static inline void prefetch(struct prefetch *list, const element *row, size_t step, size_t planes, size_t H,
                            size_t vectors) {
    enum { LINE = CACHE_LINE / sizeof(element) };
    for (size_t plane = 0; plane < planes; plane++) {
        for (size_t i = 0; i < vectors * LANES && list->lines < MAX_LINES; i += LINE) {
            list->next[list->lines] = (const char *)(row + plane * H + i);
            list->step[list->lines++] = step * sizeof(element);
        }
    }
}

/* The list for the next rows. */
static inline void prefetch_rows(struct prefetch *list, size_t rows) {
    const char **line = list->line;
    for (size_t i = 0; i < list->lines; i++, line += rows) {
        const size_t step = list->step[i];
        const char *next = list->next[i];
        UNROLL for (size_t r = 0; r < MAX_ROWS; r++) line[r] = next + r * step; /* too many are overwritten */
        list->next[i] = next + rows * step;
    }
    list->count = rows * list->lines;
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

/* out[r * out_step][v] = sum over k of a[r * row_step + k * k_step] * panel[k][v], on top of what is at `add`, which may
   be NULL, or out. It prefetches `lines` lines on the way; the last eighth of it leaves them time to arrive. */
INLINE void gemm_part(size_t rows, size_t width, float *out, size_t out_step, const float *add, size_t add_step,
                      const element *restrict a, size_t row_step, size_t k_step, const float *restrict panel, size_t K,
                      const char *const *line, size_t lines) {
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
        UNROLL for (size_t v = 0; v < width; v++)
            store(out + r * out_step + v * LANES, add ? load(add + r * add_step + v * LANES) + acc[r][v] : acc[r][v]);
    }
}

/* One function for each size of a tile. */
#define GEMM_PART(rows, width)                                                                                         \
    static __attribute__((noinline)) void gemm_part_##rows##_##width(                                                  \
        float *out, size_t out_step, const float *add, size_t add_step, const element *a, size_t row_step,             \
        size_t k_step, const float *panel, size_t K, const char *const *line, size_t lines) {                          \
        gemm_part(rows, width, out, out_step, add, add_step, a, row_step, k_step, panel, K, line, lines);              \
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

typedef void (*gemm_part_fn)(float *, size_t, const float *, size_t, const element *, size_t, size_t, const float *,
                             size_t, const char *const *, size_t);
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
static inline void product_part(size_t rows, size_t width, float *out, size_t out_step, const float *add,
                                size_t add_step, const element *a, size_t a_stride, const float *panel, size_t terms,
                                const char *const *line, size_t lines) {
#ifdef TILES
    (void)out_step, (void)add_step; /* it is a tile */
    const struct tile_rows from = {(const char *)a, a_stride * sizeof *a, TILE_BYTES};
    tiles_part(rows, width, (void *)out, from, panel, terms, add != NULL, line, lines);
#else
    GEMM_PART_OF[width - 1][rows - 1](out, out_step, add, add_step, a, a_stride, TERM, panel, terms, line, lines);
#endif
}

/* Long sums are taken in parts of nearly the same length, so that rounding errors do not pile up along K. */
INLINE size_t part_length(size_t terms) {
    enum { STEP = 16 };
    const size_t parts = (terms + PART - 1) / PART;
    return parts < 2 ? terms : ((terms + parts - 1) / parts + STEP - 1) / STEP * STEP;
}

/* out[r][v] = sum over k of a[r][k] * panel[k][v], for K whole terms, on top of what is at `add` if that is not NULL. */
static inline void gemm_rows(size_t rows, size_t width, float *out, size_t out_step, const float *add, size_t add_step,
                             const element *a, size_t a_stride, const float *panel, size_t K,
                             const struct prefetch *list) {
    const size_t length = part_length(K);
    size_t fetched = 0;
    for (size_t k = 0; k < K; k += length) {
        const size_t terms = K - k < length ? K - k : length;
        const size_t upto = terms == K ? list->count : list->count * (k + terms) / K;
        product_part(rows, width, out, out_step, add, add_step, a + k * TERM, a_stride, panel + k * width * LANES,
                     terms, list->line + fetched, upto - fetched);
        add = out;
        add_step = out_step;
        fetched = upto;
    }
}

/* out[r][v] (+)= sum over k of a[r][k] * panel[k][v]. A panel has ceil(K / TERM) terms. */
static inline void gemm_tile(size_t rows, size_t width, tile_t out, const element *a, size_t a_stride,
                             const float *panel, size_t K, int add, const struct prefetch *list) {
    const size_t whole = K / TERM, step = tile_step(width);
    float *to = (float *)out;
    gemm_rows(rows, width, to, step, add ? to : NULL, step, a, a_stride, panel, whole, list);
    if (K % TERM == 0) return;
    for (size_t r = 0; r < rows; r++) {
        for (size_t v = 0; v < width; v++) {
            float *at = in_tile(out, width, r, v);
            const vec sum = add || whole ? load(at) : splat(0.0f);
            store(at, add_last(sum, a + r * a_stride + K - 1, load(panel + (whole * width + v) * LANES)));
        }
    }
}

#endif
