/* The gradient of a weight matrix: a product along T * B, with both factors stored token by token. */
#ifndef FASTCELLS_WEIGHT_GRAD_H
#define FASTCELLS_WEIGHT_GRAD_H

#include "arguments.h"
#include "panels.h"

enum { ADDENDS = 16 }; /* terms of a bias's gradient that are added up one after another */
/* TOKENS: at most at a time: their part of x stays in the second-level cache. */
#ifdef TILES
enum { TOKENS = 1280, WIDE = MAX_WIDTH, TALL = MAX_ROWS };
#else
enum { TOKENS = TERM > 1 ? 640 : 128 };
enum { WIDE = 3, TALL = REGISTERS >= 32 && LANES >= 8 ? 8 : 4 }; /* the tile; TALL divides LANES */
#endif

enum { ACROSS = TERM * LANES }; /* columns of d that are read at a time: whole lines of memory */

/* Columns of d that a member reads at a time, packed. */
typedef float packed_columns[TERM][TOKENS / TERM * LANES];

struct weight_grad_job {
    const weight_grad_task *task;
    packed_columns *gates; /* of each member; a thread's stack may be small */
    float *panels[2]; /* of some tokens of x; one is written while the other is read */
    float *d_w, *d_b; /* the sums so far, where the tensors have fewer bits */
    size_t tokens;    /* at a time */
    struct barrier *barrier;
};

/* Tokens at a time. Where the sums so far are tensors of their own: in parts of nearly the same size, of whole terms. */
static size_t tokens_at_a_time(size_t tokens) {
    if (!STATES_CARRIED) return TOKENS;
    const size_t even = ceil_div(tokens, ceil_div(tokens, TOKENS));
    return ceil_div(even, TERM) * TERM;
}

/* A token's row of x, from `column` on. */
INLINE const element *row_of_x(const weight_grad_task *task, size_t token, size_t column) {
    const size_t split = task->split;
    return (token < split ? task->x + token * task->columns : task->x_rest + (token - split) * task->columns) + column;
}

/* The columns from `column` on of `tokens` tokens of x from `token` on as a panel [tokens / TERM][vectors][LANES], zero
   past the last column and the last token. */
static void pack_tokens(float *restrict panel, const weight_grad_task *task, size_t token, size_t tokens, size_t column,
                        size_t vectors) {
    for (size_t k = 0; k < tokens; k += TERM) {
        for (size_t v = 0; v < vectors; v++) {
            const size_t first = column + v * LANES, lanes = lanes_at(task->columns, first);
            const vec x = read_n(row_of_x(task, token + k, first), lanes);
            const int paired = TERM > 1 && k + 1 < tokens;
            const vec next = paired ? read_n(row_of_x(task, token + k + 1, first), lanes) : splat(0.0f);
            store(panel + (k / TERM * vectors + v) * LANES, columns_of_terms(x, next));
        }
    }
}

/* Some columns of d, as many as are read at a time, of d or of d_rest. */
struct d_block {
    const element *d; /* of the first token */
    size_t stride;
    size_t row, rows; /* of d_w */
};

static inline size_t blocks_of(const weight_grad_task *task) {
    return ceil_div(task->rows - task->rest_rows, ACROSS) + ceil_div(task->rest_rows, ACROSS);
}
static inline struct d_block block_at(const weight_grad_task *task, size_t block) {
    const size_t first = task->rows - task->rest_rows, blocks = ceil_div(first, ACROSS);
    if (block < blocks) {
        const size_t row = block * ACROSS;
        return (struct d_block){task->d + row, task->d_stride, row, min_size(first - row, ACROSS)};
    }
    const size_t row = (block - blocks) * ACROSS;
    const size_t rows = min_size(task->rest_rows - row, ACROSS);
    return (struct d_block){task->d_rest + row, task->rest_stride, first + row, rows};
}

/* Packed columns as rows of AMX's tiles, [tokens / TERM / LANES][LANES][LANES]: of the last one some columns mean
   nothing. */
static inline void pack_tiles(float *packed, size_t terms) {
    for (float *square = packed; square < packed + terms * LANES; square += LANES * LANES) {
        vec rows[LANES];
        UNROLL for (size_t i = 0; i < LANES; i++) rows[i] = load(square + i * LANES);
        transpose(rows);
        UNROLL for (size_t i = 0; i < LANES; i++) store(square + i * LANES, rows[i]);
    }
}

/* LANES columns of d, [tokens / TERM][LANES], and their sums, a few addends at a time, so that rounding errors stay
   small. */
static vec pack_gates(float *restrict to, const element *restrict d, size_t step, size_t lanes, size_t tokens) {
    vec sum = splat(0.0f);
    for (size_t part = 0; part < tokens; part += ADDENDS) {
        vec few = splat(0.0f);
        for (size_t k = part; k < tokens && k < part + ADDENDS; k += TERM) {
            const vec v = read_n(d + k * step, lanes);
            const vec next = TERM > 1 && k + 1 < tokens ? read_n(d + (k + 1) * step, lanes) : splat(0.0f);
            store(to + k / TERM * LANES, columns_of_terms(v, next));
            few += v;
            if (TERM > 1) few += next;
        }
        sum += few;
    }
    return sum;
}

/* Some of the packed columns of d, which are the rows of the product, times a panel; on top of `add`, NULL or out. */
static inline void tokens_product(size_t rows, size_t width, float *out, size_t step, const float *add,
                                  const float *gates, size_t first, const float *panel, size_t terms,
                                  const char *const *line, size_t lines) {
#ifdef TILES
    (void)first, (void)step; /* 0, a tile has them all; and it is a tile */
    const struct tile_rows a = {(const char *)gates, TILE_BYTES, TILE_BYTES * LANES};
    tiles_part(rows, width, (void *)out, a, panel, terms, add != NULL, line, lines);
#else
    const element *a = (const element *)(gates + first);
    GEMM_PART_OF[width - 1][rows - 1](out, step, add, step, a, TERM, LANES * TERM, panel, terms, line, lines);
#endif
}

/* Add to the sums of a result what some tokens give. sums, result: the same, or floats where a result is rounded. */
INLINE void add_sum(const weight_grad_task *task, float *sums, element *result, vec v, size_t lanes, size_t token,
                    int last) {
    if (token > 0)
        v = load_n(sums, lanes) + v;
    else if (task->accumulate)
        v = read_n(result, lanes) + v;
    if (STATES_CARRIED && last)
        write_n(result, v, lanes);
    else
        store_n(sums, v, lanes);
}

INLINE void add_rows(const struct weight_grad_job *job, tile_t products, size_t row, size_t rows, size_t vector,
                     size_t count, size_t token, int whole) {
    const weight_grad_task *task = job->task;
    const int last = token + job->tokens >= task->tokens;
    for (size_t r = 0; r < rows; r++) {
        const size_t at = (row + r) * task->columns + vector * LANES;
        float *sums = CARRIED(job->d_w, task->d_w) + at;
        UNROLL for (size_t v = 0; v < count; v++) {
            const size_t lanes = whole ? LANES : lanes_at(task->columns, (vector + v) * LANES);
            add_sum(task, sums + v * LANES, task->d_w + at + v * LANES, load(products[r][v]), lanes, token, last);
        }
    }
}

/* Whole vectors, which most are, are loops that a compiler unrolls. */
static void add_tile(const struct weight_grad_job *job, tile_t products, size_t row, size_t rows, size_t vector,
                     size_t count, size_t token) {
    const int whole = (vector + count) * LANES <= job->task->columns;
    if (whole && count == WIDE)
        add_rows(job, products, row, rows, vector, WIDE, token, 1);
    else if (whole && count == WIDE - 1)
        add_rows(job, products, row, rows, vector, WIDE - 1, token, 1);
    else
        add_rows(job, products, row, rows, vector, count, token, 0);
}

static void weight_grad_member(void *argument, int member, int members) {
    const struct weight_grad_job *job = argument;
    const weight_grad_task *task = job->task;
    const size_t me = (size_t)member, team = (size_t)members;
    const size_t vectors = ceil_div(task->columns, LANES), tiles = ceil_div(vectors, WIDE);
    const struct range packed = part_of(tiles, me, team), own = part_of(blocks_of(task), me, team);
    for (size_t token = 0; token < task->tokens; token += job->tokens) {
        const size_t tokens = min_size(task->tokens - token, job->tokens);
        float *panels = job->panels[token / job->tokens % 2];
        const int last = token + tokens == task->tokens;
        for (size_t tile = packed.first; tile < packed.end; tile++) {
            const struct range v = part_of(vectors, tile, tiles);
            pack_tokens(panels + v.first * LANES * terms_of(TOKENS), task, token, tokens, v.first * LANES, v.end - v.first);
        }
        barrier_wait(job->barrier, (unsigned)members);
        for (size_t block = own.first; block < own.end; block++) {
            float(*gates)[TOKENS / TERM * LANES] = job->gates[me];
            tile_t products;
            const struct d_block at = block_at(task, block);
            for (size_t r = 0; r < at.rows; r += LANES) {
                const size_t lanes = lanes_at(at.rows, r), row = at.row + r;
                const vec sum = pack_gates(gates[r / LANES], at.d + token * at.stride + r, at.stride, lanes, tokens);
                add_sum(task, CARRIED(job->d_b, task->d_b) + row, task->d_b + row, sum, lanes, token, last);
#ifdef TILES
                pack_tiles(gates[r / LANES], terms_of(tokens));
#endif
            }

            /* Meanwhile, prefetch what the next block reads of d: a line of each token, far from each other. */
            const char *line[TOKENS];
            const size_t next_token = block + 1 < own.end ? token : token + tokens;
            const struct d_block next = block_at(task, block + 1 < own.end ? block + 1 : own.first);
            size_t lines = 0, fetched = 0, done = 0;
            for (; lines < job->tokens && next_token + lines < task->tokens; lines++)
                line[lines] = (const char *)(next.d + (next_token + lines) * next.stride);

            const size_t products_of_block = tiles * ceil_div(at.rows, TALL);
            for (size_t tile = 0; tile < tiles; tile++) {
                const size_t v = part_of(vectors, tile, tiles).first, count = part_of(vectors, tile, tiles).end - v;
                for (size_t r = 0; r < at.rows; r += TALL) {
                    const size_t rows = min_size(at.rows - r, TALL);
                    const size_t upto = lines * ++done / products_of_block;
                    const float *panel = panels + v * LANES * terms_of(TOKENS);
                    const size_t first = (at.row + r) * task->columns + v * LANES;
                    /* Whole vectors are added where they belong. */
                    float *sums = CARRIED(job->d_w, task->d_w) + first;
                    const int here = !STATES_CARRIED && (v + count) * LANES <= task->columns;
                    const int more = here && (token > 0 || task->accumulate);
                    const size_t step = here ? task->columns : tile_step(count);
                    tokens_product(rows, count, here ? sums : (float *)products, step, more ? sums : NULL,
                                   gates[r / LANES], r % LANES, panel, terms_of(tokens), line + fetched,
                                   upto - fetched);
                    fetched = upto;
                    if (!here) add_tile(job, products, at.row + r, rows, v, count, token);
                }
            }
        }
    }
    release_tiles();
}

static size_t weight_grad_panels(size_t columns) { return ceil_div(columns, LANES) * LANES * terms_of(TOKENS); }

static size_t weight_grad_gates(int threads) { return (size_t)threads * sizeof(packed_columns) / sizeof(float); }

static int weight_grad(const weight_grad_task *task, int threads) {
    const size_t panels = weight_grad_panels(task->columns), gates = weight_grad_gates(threads);
    const size_t sums = STATES_CARRIED && task->tokens > TOKENS ? task->rows * (task->columns + 1) : 0;
    struct weight_grad_job job = {.task = task, .tokens = tokens_at_a_time(task->tokens)};
    float *memory = scratch(&job.barrier, 1, gates + 2 * panels + sums);
    if (!memory) return -1;
    job.gates = (packed_columns *)memory;
    job.panels[0] = memory + gates;
    job.panels[1] = job.panels[0] + panels;
    job.d_w = job.panels[1] + panels;
    job.d_b = job.d_w + task->rows * task->columns;
    team_run(threads, weight_grad_member, &job);
    free(job.barrier);
    return 0;
}

#endif
