/* Cross-entropy behind a linear layer, and its gradients: x W^T + b, never all of it. The team takes some rows at a
   time, whose scores stay in the second-level caches until the gradients have been made of them: a member makes those
   of its rows, and when all have, adds up its part of the weights' gradients. Sums go in the order of rows, in parts of
   TOKENS, whatever the number of threads. */
#ifndef FASTCELLS_LINEAR_CROSS_ENTROPY_H
#define FASTCELLS_LINEAR_CROSS_ENTROPY_H

#include "cross_entropy.h"
#include "linear.h"
#include "weight_grad.h"

struct loss_job {
    const struct linear_cross_entropy *task;
    float *weights[2]; /* packed for x W^T, and for the gradient of x */
    float *scores;     /* [rows at a time][step], then their gradients */
    size_t rows, step;
    float scale;       /* of the gradients */
    struct weight_grad_job gradients;
    struct barrier *barrier;
};

/* The products for some rows from `first` on. */
static struct linear scores_of(const struct loss_job *job, size_t first, size_t rows) {
    const struct linear_cross_entropy *f = job->task;
    return (struct linear){.rows = rows, .K = f->K, .columns = f->columns, .x_stride = f->K, .out_stride = job->step,
                           .x = f->x + first * f->K, .w = f->w, .b = f->b, .out = job->scores};
}
static struct linear d_x_of(const struct loss_job *job, size_t first, size_t rows) {
    const struct linear_cross_entropy *f = job->task;
    return (struct linear){.rows = rows, .K = f->columns, .columns = f->K, .x_stride = job->step, .out_stride = f->K,
                           .transposed = 1, .x = job->scores, .w = f->w, .out = f->d_x ? f->d_x + first * f->K : NULL};
}

/* This member's rows of those at hand: scores, losses, and the gradients of x. */
static void loss_rows(const struct loss_job *job, size_t first, size_t rows, struct range own) {
    const struct linear_cross_entropy *f = job->task;
    const struct linear scores = scores_of(job, first, rows);
    struct share share = {own.first, own.end - own.first, 0, linear_tiles(&scores)};
    linear_rows(&(struct linear_job){.task = &scores, .panels = job->weights[0]}, &share);
    const struct cross_entropy losses = {.rows = rows, .columns = f->columns, .x_stride = job->step,
                                         .ignored = f->ignored, .gradient = f->d_x || f->d_w, .targets = f->targets + first,
                                         .smoothing = f->smoothing, .d_loss = f->d_loss ? f->d_loss + first : NULL,
                                         .x = job->scores, .loss = f->loss + first};
    for (size_t row = own.first; row < own.end; row++) cross_entropy_row(&losses, row, job->scale);
    if (!f->d_x) return;
    const struct linear d_x = d_x_of(job, first, rows);
    share.tiles = linear_tiles(&d_x);
    linear_rows(&(struct linear_job){.task = &d_x, .panels = job->weights[1]}, &share);
}

static void loss_member(void *argument, int member, int members) {
    const struct loss_job *job = argument;
    const struct linear_cross_entropy *f = job->task;
    const struct linear scores = scores_of(job, 0, 0), d_x = d_x_of(job, 0, 0);
    pack_weights(&(struct linear_job){.task = &scores, .panels = job->weights[0]}, member, members);
    if (f->d_x) pack_weights(&(struct linear_job){.task = &d_x, .panels = job->weights[1]}, member, members);
    barrier_wait(job->barrier, (unsigned)members);
    for (size_t first = 0, rows; first < f->rows; first += rows) {
        rows = min_size(f->rows - first, job->rows);
        const struct range tiles = part_of(ceil_div(rows, ROWS[LINEAR_WIDE]), (size_t)member, (size_t)members);
        const struct range own = {tiles.first * ROWS[LINEAR_WIDE], min_size(tiles.end * ROWS[LINEAR_WIDE], rows)};
        if (own.first < own.end) loss_rows(job, first, rows, own);
        if (f->d_w) {
            const struct weight_grad sums = {.tokens = rows, .rows = f->columns, .columns = f->K, .d_stride = job->step,
                                             .split = rows, .accumulate = first > 0, .d = job->scores,
                                             .x = f->x + first * f->K, .d_w = f->d_w, .d_b = f->d_b};
            struct weight_grad_job gradients = job->gradients;
            gradients.task = &sums;
            weight_grad_member(&gradients, member, members); /* which waits for all rows first */
        }
        barrier_wait(job->barrier, (unsigned)members);
    }
}

/* Rows at a time: whole parts of the weights' gradients, and so many scores for each member. */
static size_t loss_rows_at_a_time(size_t step, int threads) {
    enum { SCORES = 1 << 17 };
    return TOKENS * ceil_div(SCORES * (size_t)threads, TOKENS * step);
}

static size_t rows_that_count(const struct linear_cross_entropy *f) {
    size_t count = 0;
    for (size_t row = 0; row < f->rows; row++) count += f->targets[row] != f->ignored;
    return count;
}

static void add_losses(const struct linear_cross_entropy *f, size_t count) {
    double sum = 0.0;
    for (size_t row = 0; row < f->rows; row++) sum += (double)f->loss[row];
    *f->sum = (float)(f->mean ? sum / (double)count : sum);
}

/* All targets have to be columns, or ignored. */
static int linear_cross_entropy(const struct linear_cross_entropy *task, int threads) {
    const size_t step = ceil_div(task->columns, LANES) * LANES;
    const size_t rows = min_size(loss_rows_at_a_time(step, threads), task->rows);
    const size_t forward = linear_panels(task->columns, task->K), backward = linear_panels(task->K, task->columns);
    const size_t tokens = task->d_w ? weight_grad_panels(task->K) : 0, gates = weight_grad_gates(threads);
    const size_t count = rows_that_count(task);
    struct loss_job job = {.task = task, .rows = rows, .step = step};
    job.scale = task->mean && count ? 1.0f / (float)count : 1.0f;
    float *memory = scratch(&job.barrier, 2, gates + forward + (task->d_x ? backward : 0) + 2 * tokens + rows * step);
    if (!memory) return -1;
    job.weights[0] = memory + gates;
    job.weights[1] = job.weights[0] + forward;
    job.gradients = (struct weight_grad_job){.gates = (packed_columns *)memory, .tokens = TOKENS, .barrier = job.barrier + 1};
    job.gradients.panels[0] = job.weights[1] + (task->d_x ? backward : 0);
    job.gradients.panels[1] = job.gradients.panels[0] + tokens;
    job.scores = job.gradients.panels[1] + tokens;
    team_run(threads, loss_member, &job);
    free(job.barrier);
    add_losses(task, count);
    return 0;
}

#endif
