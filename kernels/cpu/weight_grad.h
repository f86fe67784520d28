/* The gradient of a weight matrix: a product along T * B, with both factors stored token by token. */
#ifndef FASTCELLS_WEIGHT_GRAD_H
#define FASTCELLS_WEIGHT_GRAD_H

#include "arguments.h"
#include "grid.h"

enum { ADDENDS = 16 }; /* terms of a bias's gradient that are added up one after another */
enum { TOKENS = 128 };                                   /* at a time: their part of x stays in the second-level cache */
enum { WIDE = 3, TALL = REGISTERS >= 32 && LANES >= 8 ? 8 : 4 }; /* the tile; TALL divides LANES */

struct weight_grad_job {
    const struct weight_grad *task;
    float *panels[2]; /* of some tokens of x; one is written while the other is read */
    struct barrier *barrier;
};

/* The columns from `column` on of `tokens` tokens of x from `token` on as a panel [tokens][vectors][LANES], zero past
   the last one. */
static void pack_tokens(float *restrict panel, const struct weight_grad *task, size_t token, size_t tokens, size_t column,
                        size_t vectors) {
    for (size_t k = 0; k < tokens; k++) {
        const size_t at = token + k, columns = task->columns;
        const float *x = at < task->split ? task->x + at * columns : task->x_rest + (at - task->split) * columns;
        for (size_t v = 0; v < vectors; v++) {
            const size_t first = column + v * LANES;
            store(panel + (k * vectors + v) * LANES, load_n(x + first, lanes_at(columns, first)));
        }
    }
}

/* LANES columns of d, [tokens][LANES], and their sums, a few addends at a time, so that rounding errors stay small. */
static vec pack_gates(float *restrict to, const float *restrict d, size_t step, size_t lanes, size_t tokens) {
    vec sum = splat(0.0f);
    for (size_t part = 0; part < tokens; part += ADDENDS) {
        vec few = splat(0.0f);
        for (size_t k = part; k < tokens && k < part + ADDENDS; k++) {
            vec v = load_n(d + k * step, lanes);
            store(to + k * LANES, v);
            few += v;
        }
        sum += few;
    }
    return sum;
}

/* out += products, or out = products for the first tokens of all. */
static void add_tile(const struct weight_grad *task, tile_t products, size_t row, size_t rows, size_t vector, size_t count,
                     int first) {
    for (size_t r = 0; r < rows; r++) {
        for (size_t v = 0; v < count; v++) {
            const size_t column = (vector + v) * LANES, lanes = lanes_at(task->columns, column);
            float *out = task->d_w + (row + r) * task->columns + column;
            const vec p = load(products[r][v]);
            store_n(out, first ? p : load_n(out, lanes) + p, lanes);
        }
    }
}

static void weight_grad_member(void *argument, int member, int members) {
    const struct weight_grad_job *job = argument;
    const struct weight_grad *task = job->task;
    const size_t me = (size_t)member, team = (size_t)members;
    const size_t vectors = ceil_div(task->columns, LANES), tiles = ceil_div(vectors, WIDE);
    const struct range packed = part_of(tiles, me, team), own = part_of(ceil_div(task->rows, LANES), me, team);
    for (size_t token = 0; token < task->tokens; token += TOKENS) {
        const size_t tokens = min_size(task->tokens - token, TOKENS);
        float *panels = job->panels[token / TOKENS % 2];
        const int first = token == 0 && !task->accumulate;
        for (size_t tile = packed.first; tile < packed.end; tile++) {
            const struct range v = part_of(vectors, tile, tiles);
            pack_tokens(panels + v.first * LANES * TOKENS, task, token, tokens, v.first * LANES, v.end - v.first);
        }
        barrier_wait(job->barrier, (unsigned)members);
        for (size_t block = own.first; block < own.end; block++) {
            float gates[TOKENS * LANES] __attribute__((aligned(64)));
            tile_t products;
            const size_t row = block * LANES, lanes = lanes_at(task->rows, row);
            const vec sum = pack_gates(gates, task->d + token * task->d_stride + row, task->d_stride, lanes, tokens);
            store_n(task->d_b + row, first ? sum : load_n(task->d_b + row, lanes) + sum, lanes);

            /* Meanwhile, prefetch what the next block reads of d: a line of each token, far from each other. */
            const void *line[TOKENS];
            const size_t next_token = block + 1 < own.end ? token : token + TOKENS;
            const size_t next_row = block + 1 < own.end ? row + LANES : own.first * LANES;
            size_t lines = 0, fetched = 0, done = 0;
            for (; lines < TOKENS && next_token + lines < task->tokens; lines++)
                line[lines] = task->d + (next_token + lines) * task->d_stride + next_row;

            const size_t products_of_block = tiles * ceil_div(lanes, TALL);
            for (size_t tile = 0; tile < tiles; tile++) {
                const size_t v = part_of(vectors, tile, tiles).first, count = part_of(vectors, tile, tiles).end - v;
                for (size_t r = 0; r < lanes; r += TALL) {
                    const size_t rows = min_size(lanes - r, TALL);
                    const size_t upto = lines * ++done / products_of_block;
                    const float *panel = panels + v * LANES * TOKENS;
                    GEMM_PART_OF[count - 1][rows - 1](products, gates + r, 1, LANES, panel, tokens, 0, line + fetched,
                                                      upto - fetched);
                    fetched = upto;
                    add_tile(task, products, row + r, rows, v, count, first);
                }
            }
        }
    }
}

static int weight_grad(const struct weight_grad *task, int threads) {
    const size_t panels = ceil_div(task->columns, LANES) * LANES * TOKENS;
    struct weight_grad_job job = {.task = task};
    job.panels[0] = scratch(&job.barrier, 1, 2 * panels);
    if (!job.panels[0]) return -1;
    job.panels[1] = job.panels[0] + panels;
    team_run(threads, weight_grad_member, &job);
    free(job.barrier);
    return 0;
}

#endif
