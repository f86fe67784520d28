/* Cross-entropy of rows of scores, with smoothed targets, and its gradient in the scores' place. A row is read three
   times, and stays in a core's caches meanwhile. */
#ifndef FASTCELLS_CROSS_ENTROPY_H
#define FASTCELLS_CROSS_ENTROPY_H

#include <math.h>

#include "arguments.h"
#include "grid.h"

enum { SUMMED = 128 }; /* vectors that are added up one after another, so that rounding errors stay small */

/* As load_n, with `rest` past the last lane. */
INLINE vec load_or(const float *p, size_t n, float rest) {
    if (n == LANES) return load(p);
    vec v = splat(rest);
    memcpy(&v, p, n * sizeof(float));
    return v;
}

static float sum_of(vec v) {
    float sum = 0.0f;
    for (size_t lane = 0; lane < LANES; lane++) sum += v[lane];
    return sum;
}

/* The largest of a row; NaN is passed over, and found by who subtracts this from it. */
static float largest_of(const float *x, size_t columns) {
    vec most = splat(-INFINITY);
    for (size_t column = 0; column < columns; column += LANES) {
        const vec v = load_or(x + column, lanes_at(columns, column), -INFINITY);
        most = where(v > most, v, most);
    }
    float largest = -INFINITY;
    for (size_t lane = 0; lane < LANES; lane++) largest = most[lane] > largest ? most[lane] : largest;
    return largest;
}

/* The sum of exp(x - largest); `keep`: these values take the place of x. */
static float exponentials(float *x, size_t columns, float largest, int keep) {
    vec sum = splat(0.0f);
    for (size_t part = 0; part < columns; part += SUMMED * LANES) {
        vec few = splat(0.0f);
        for (size_t column = part; column < columns && column < part + SUMMED * LANES; column += LANES) {
            const size_t lanes = lanes_at(columns, column);
            const vec e = exp_of(load_or(x + column, lanes, -INFINITY) - largest);
            if (keep) store_n(x + column, e, lanes);
            few += e;
        }
        sum += few;
    }
    return sum_of(sum);
}

/* The sum of x - largest. */
static float below_largest(const float *x, size_t columns, float largest) {
    vec sum = splat(0.0f);
    for (size_t part = 0; part < columns; part += SUMMED * LANES) {
        vec few = splat(0.0f);
        for (size_t column = part; column < columns && column < part + SUMMED * LANES; column += LANES)
            few += load_or(x + column, lanes_at(columns, column), largest) - largest;
        sum += few;
    }
    return sum_of(sum);
}

/* One row, whose gradient is `scale` times as large. With q the smoothed target: loss = -sum q log p = log(sum exp(x - largest)) - sum q (x - largest). */
static void cross_entropy_row(const struct cross_entropy *task, size_t row, float scale) {
    const size_t columns = task->columns;
    const float on = task->smoothing[0], all = task->smoothing[1];
    float *x = task->x + row * task->x_stride;
    const int64_t target = task->targets[row];
    if (target == task->ignored) {
        task->loss[row] = 0.0f;
        if (task->gradient) memset(x, 0, columns * sizeof(float));
        return;
    }
    const float largest = largest_of(x, columns);
    float expected = on * (x[target] - largest);
    if (all != 0.0f) expected += all * below_largest(x, columns, largest);
    const float sum = exponentials(x, columns, largest, task->gradient);
    task->loss[row] = logf(sum) - expected;
    if (!task->gradient) return;
    const float d = task->d_loss ? task->d_loss[row] * scale : scale, share = d / sum;
    for (size_t column = 0; column < columns; column += LANES) {
        const size_t lanes = lanes_at(columns, column);
        store_n(x + column, load_n(x + column, lanes) * share - d * all, lanes);
    }
    x[target] -= d * on;
}

static void cross_entropy_member(void *argument, int member, int members) {
    const struct cross_entropy *task = argument;
    const struct range own = part_of(task->rows, (size_t)member, (size_t)members);
    for (size_t row = own.first; row < own.end; row++) cross_entropy_row(task, row, 1.0f);
}

static int cross_entropy(const struct cross_entropy *task, int threads) {
    team_run(threads, cross_entropy_member, (void *)task);
    return 0;
}

#endif
