/* The input projection of token ids: the product of a one-hot vector with W^T is a column of W, and its gradient is
   added to that column. Tokens are taken in the order of their ids. LANES neighbours in the vocabulary are a block, which
   is read or written as whole vectors and turned in registers; where few columns are named, they are taken one by one. */
#ifndef FASTCELLS_GATHER_H
#define FASTCELLS_GATHER_H

#include "arguments.h"
#include "grid.h"

enum { GATHERED = 128 };    /* rows of W at a time: some lines of a token's projection, and not too many pages */
enum { FEW_TOKENS = 2 };    /* for each block: with fewer, columns are taken one by one */
enum { TOKENS_AHEAD = 16 }; /* a token's lines lie in a page of their own, and are asked for early */
enum { BLOCKS_AHEAD = 4 };  /* and so are those of W; columns, where they are taken one by one */
enum { SUMMANDS = 16 };     /* of a long sum at a time, so that rounding errors stay small */

/* The positions of tokens, those of one block of LANES ids after another, and where each block's end. */
struct by_id {
    size_t blocks;
    int turns; /* whether blocks are turned */
    size_t *end, *token;
};

/* free(sorted->end) ends it. */
static int sort_by_id(struct by_id *sorted, const int64_t *ids, size_t tokens, size_t vocabulary) {
    sorted->blocks = ceil_div(vocabulary, LANES);
    sorted->turns = tokens >= FEW_TOKENS * sorted->blocks;
    sorted->end = calloc(sorted->blocks + tokens + 1, sizeof(size_t));
    if (!sorted->end) return -1;
    sorted->token = sorted->end + sorted->blocks;
    for (size_t i = 0; i < tokens; i++) sorted->end[ids[i] / LANES]++;
    for (size_t block = 0, before = 0; block < sorted->blocks; block++) {
        const size_t count = sorted->end[block];
        sorted->end[block] = before; /* its first, and when all are in their places, its end */
        before += count;
    }
    for (size_t i = 0; i < tokens; i++) sorted->token[sorted->end[ids[i] / LANES]++] = i;
    return 0;
}

/* What is done with some rows of W. */
typedef void (*ids_part)(const void *task, const struct by_id *sorted, size_t row, size_t rows);

/* A gather or a scatter. */
struct ids_job {
    const void *task;
    struct by_id sorted;
    size_t rows; /* in all */
    ids_part part;
};

typedef float turned_t[LANES][GATHERED] __attribute__((aligned(64))); /* a row for each id */

/* The columns of LANES ids. w: at their first one. */
static void turn_columns(turned_t to, const float *w, size_t step, size_t lanes, const float *b, size_t rows) {
    for (size_t r = 0; r < rows; r += LANES) {
        const size_t count = lanes_at(rows, r);
        const vec bias = b ? load_n(b + r, count) : splat(0.0f);
        vec square[LANES];
        if (count == LANES && lanes == LANES) {
            UNROLL for (size_t i = 0; i < LANES; i++) square[i] = load(w + (r + i) * step);
        } else {
            for (size_t i = 0; i < LANES; i++) square[i] = i < count ? load_n(w + (r + i) * step, lanes) : splat(0.0f);
        }
        transpose(square);
        UNROLL for (size_t i = 0; i < LANES; i++) store(to[i] + r, square[i] + bias);
    }
}

/* And back. */
static void turn_back(const turned_t from, float *w, size_t step, size_t lanes, size_t rows) {
    for (size_t r = 0; r < rows; r += LANES) {
        vec square[LANES];
        UNROLL for (size_t i = 0; i < LANES; i++) square[i] = load(from[i] + r);
        transpose(square);
        if (lanes_at(rows, r) == LANES && lanes == LANES) {
            UNROLL for (size_t i = 0; i < LANES; i++) store(w + (r + i) * step, square[i]);
        } else {
            for (size_t i = 0; i < lanes_at(rows, r); i++) store_n(w + (r + i) * step, square[i], lanes);
        }
    }
}

static void prefetch_column(const float *p, size_t step, size_t rows) {
    for (size_t r = 0; r < rows; r++) __builtin_prefetch(p + r * step);
}
static void prefetch_row(const float *p, size_t floats, int write) {
    for (size_t i = 0; i < floats; i += CACHE_LINE / sizeof *p) {
        if (write)
            __builtin_prefetch(p + i, 1);
        else
            __builtin_prefetch(p + i);
    }
}

static void gather_columns(const void *argument, const struct by_id *sorted, size_t row, size_t rows) {
    const struct gather *task = argument;
    const size_t V = task->vocabulary, *token = sorted->token;
    const float *w = task->w + row * V;
    for (size_t at = 0; at < task->tokens; at++) {
        const float *column = w + task->ids[token[at]];
        float *out = task->out + token[at] * task->rows + row;
        if (at + BLOCKS_AHEAD < task->tokens) prefetch_column(w + task->ids[token[at + BLOCKS_AHEAD]], V, rows);
        for (size_t r = 0; r < rows; r++) out[r] = column[r * V] + (task->b ? task->b[row + r] : 0.0f);
    }
}

static void gather_blocks(const void *argument, const struct by_id *sorted, size_t row, size_t rows) {
    const struct gather *task = argument;
    const size_t V = task->vocabulary;
    for (size_t block = 0, at = 0; block < sorted->blocks; block++) {
        const size_t first = block * LANES, end = sorted->end[block];
        if (at == end) continue;
        turned_t turned;
        const float *w = task->w + row * V + first;
        if (first + BLOCKS_AHEAD * LANES < V) prefetch_column(w + BLOCKS_AHEAD * LANES, V, rows);
        turn_columns(turned, w, V, lanes_at(V, first), task->b ? task->b + row : NULL, rows);
        for (; at < end; at++) {
            const size_t token = sorted->token[at];
            float *out = task->out + token * task->rows + row;
            if (at + TOKENS_AHEAD < task->tokens)
                prefetch_row(task->out + sorted->token[at + TOKENS_AHEAD] * task->rows + row, rows, 1);
            const float *from = turned[(size_t)task->ids[token] - first];
            for (size_t r = 0; r < rows; r += LANES) store_n(out + r, load(from + r), lanes_at(rows, r));
        }
    }
}

static void scatter_columns(const void *argument, const struct by_id *sorted, size_t row, size_t rows) {
    const struct scatter *task = argument;
    const size_t V = task->vocabulary, *token = sorted->token;
    float *w = task->d_w + row * V, sums[GATHERED] = {0}, few[GATHERED] = {0};
    memset(w, 0, rows * V * sizeof *w);
    for (size_t at = 0; at < task->tokens; at++) {
        const float *d = task->d + token[at] * task->rows + row;
        float *column = w + task->ids[token[at]];
        if (at + BLOCKS_AHEAD < task->tokens) prefetch_column(w + task->ids[token[at + BLOCKS_AHEAD]], V, rows);
        for (size_t r = 0; r < rows; r++) column[r * V] += d[r], few[r] += d[r];
        if (at % SUMMANDS < SUMMANDS - 1 && at + 1 < task->tokens) continue;
        for (size_t r = 0; r < rows; r++) sums[r] += few[r];
        memset(few, 0, sizeof few);
    }
    memcpy(task->d_b + row, sums, rows * sizeof *sums);
}

static void scatter_blocks(const void *argument, const struct by_id *sorted, size_t row, size_t rows) {
    const struct scatter *task = argument;
    const size_t V = task->vocabulary;
    float sums[GATHERED] = {0}, few[GATHERED] = {0};
    for (size_t block = 0, at = 0; block < sorted->blocks; block++) {
        const size_t first = block * LANES, end = sorted->end[block];
        turned_t turned = {{0}};
        float *w = task->d_w + row * V + first;
        if (first + BLOCKS_AHEAD * LANES < V) prefetch_column(w + BLOCKS_AHEAD * LANES, V, rows);
        for (; at < end; at++) {
            const size_t token = sorted->token[at];
            const float *d = task->d + token * task->rows + row;
            if (at + TOKENS_AHEAD < task->tokens)
                prefetch_row(task->d + sorted->token[at + TOKENS_AHEAD] * task->rows + row, rows, 0);
            float *to = turned[(size_t)task->ids[token] - first];
            for (size_t r = 0; r < rows; r += LANES) {
                const vec v = load_n(d + r, lanes_at(rows, r));
                store(to + r, load(to + r) + v);
                store(few + r, load(few + r) + v);
            }
            if (at % SUMMANDS < SUMMANDS - 1 && at + 1 < task->tokens) continue;
            for (size_t r = 0; r < rows; r += LANES) store(sums + r, load(sums + r) + load(few + r));
            memset(few, 0, sizeof few);
        }
        turn_back(turned, w, V, lanes_at(V, first), rows);
    }
    memcpy(task->d_b + row, sums, rows * sizeof *sums);
}

/* A member's rows of W: whole lines of a token's projection. */
static void ids_member(void *argument, int member, int members) {
    enum { LINE = CACHE_LINE / sizeof(float) };
    const struct ids_job *job = argument;
    const struct range lines = part_of(ceil_div(job->rows, LINE), (size_t)member, (size_t)members);
    const size_t end = min_size(lines.end * LINE, job->rows);
    for (size_t row = lines.first * LINE, rows; row < end; row += rows) {
        rows = min_size(end - row, GATHERED);
        job->part(job->task, &job->sorted, row, rows);
    }
}

/* By blocks, or by columns where few are named. All ids have to be inside the vocabulary (ids.h). */
static int by_blocks_or_columns(struct ids_job job, const int64_t *ids, size_t tokens, size_t vocabulary,
                                ids_part blocks, ids_part columns, int threads) {
    if (sort_by_id(&job.sorted, ids, tokens, vocabulary)) return -1;
    job.part = job.sorted.turns ? blocks : columns;
    team_run(threads, ids_member, &job);
    free(job.sorted.end);
    return 0;
}

static int gather(const struct gather *task, int threads) {
    return by_blocks_or_columns((struct ids_job){.task = task, .rows = task->rows}, task->ids, task->tokens,
                                task->vocabulary, gather_blocks, gather_columns, threads);
}

/* The adjoint. The sums go in the order of the tokens, that of the bias's gradient in the order of their ids. */
static int scatter(const struct scatter *task, int threads) {
    return by_blocks_or_columns((struct ids_job){.task = task, .rows = task->rows}, task->ids, task->tokens,
                                task->vocabulary, scatter_blocks, scatter_columns, threads);
}

#endif
