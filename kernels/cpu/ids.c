#include "ids.h"

#include <string.h>

#include "team.h"

enum { ROWS = 16 };    /* at a time: one cache line of a token's projection */
enum { AHEAD = 16 };   /* tokens whose line is asked for early: a line of each lies in another page */
enum { ADDENDS = 16 }; /* of a long sum at a time, so that rounding errors stay small */

size_t ids_outside(const int64_t *ids, size_t tokens, size_t vocabulary) {
    size_t i = 0;
    while (i < tokens && ids[i] >= 0 && (uint64_t)ids[i] < vocabulary) i++;
    return i;
}

/* A member's blocks of ROWS rows. */
static void own_rows(size_t rows, int member, int members, size_t *first, size_t *end) {
    const size_t blocks = (rows + ROWS - 1) / ROWS;
    *first = blocks * (size_t)member / (size_t)members * ROWS;
    *end = blocks * ((size_t)member + 1) / (size_t)members * ROWS;
    if (*end > rows) *end = rows;
}

static void gather_member(void *argument, int member, int members) {
    const struct gather *task = argument;
    const size_t V = task->vocabulary;
    size_t first, end;
    own_rows(task->rows, member, members, &first, &end);
    for (size_t row = first; row < end; row += ROWS) {
        const size_t count = end - row < ROWS ? end - row : ROWS;
        const float *w = task->w + row * V;
        float bias[ROWS] = {0};
        if (task->b) memcpy(bias, task->b + row, count * sizeof(float));
        for (size_t token = 0; token < task->tokens; token++) {
            const float *column = w + task->ids[token];
            float *out = task->out + token * task->rows + row;
            if (token + AHEAD < task->tokens) __builtin_prefetch(out + AHEAD * task->rows, 1);
            for (size_t r = 0; r < count; r++) out[r] = column[r * V] + bias[r];
        }
    }
}

static void scatter_member(void *argument, int member, int members) {
    const struct scatter *task = argument;
    const size_t V = task->vocabulary;
    size_t first, end;
    own_rows(task->rows, member, members, &first, &end);
    for (size_t row = first; row < end; row += ROWS) {
        const size_t count = end - row < ROWS ? end - row : ROWS;
        float *w = task->d_w + row * V;
        float sums[ROWS] = {0}, few[ROWS] = {0};
        memset(w, 0, count * V * sizeof(float));
        for (size_t token = 0; token < task->tokens; token++) {
            const float *d = task->d + token * task->rows + row;
            if (token + AHEAD < task->tokens) __builtin_prefetch(d + AHEAD * task->rows);
            float *column = w + task->ids[token];
            for (size_t r = 0; r < count; r++) {
                column[r * V] += d[r];
                few[r] += d[r];
            }
            if (token % ADDENDS == ADDENDS - 1 || token + 1 == task->tokens) {
                for (size_t r = 0; r < count; r++) sums[r] += few[r];
                memset(few, 0, sizeof few);
            }
        }
        memcpy(task->d_b + row, sums, count * sizeof(float));
    }
}

void ids_gather(const struct gather *task, int threads) { team_run(threads, gather_member, (void *)task); }
void ids_scatter(const struct scatter *task, int threads) { team_run(threads, scatter_member, (void *)task); }
