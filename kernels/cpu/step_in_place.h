/* One step of one sequence, and matrix times vector: what generating text is made of. Each weight is read once, where
   it lies; packing would cost more than it saves. */
#ifndef FASTCELLS_STEP_IN_PLACE_H
#define FASTCELLS_STEP_IN_PLACE_H

#include "arguments.h"
#include "recurrence.h"

/* out[i] = sum over k of w[i][k] x[k], for rows first to end; a few rows at a time, so that their loads overlap. */
static void rows_times_vector(float *out, const float *w, const float *x, size_t first, size_t end, size_t K) {
    enum { FEW = 4 };
    for (size_t row = first; row < end; row += FEW) {
        const size_t rows = min_size(end - row, FEW);
        vec sum[FEW] = {{0}};
        for (size_t k = 0; k < K; k += LANES) {
            const size_t lanes = lanes_at(K, k);
            const vec v = load_n(x + k, lanes);
            for (size_t r = 0; r < rows; r++) sum[r] += load_n(w + (row + r) * K + k, lanes) * v;
        }
        for (size_t r = 0; r < rows; r++) {
            float total = 0.0f;
            for (size_t lane = 0; lane < LANES; lane++) total += sum[r][lane];
            out[row + r] = total;
        }
    }
}

struct step_in_place_job {
    const struct step_in_place *task;
    float *x, *products;        /* [G, H] */
    float *reset_hidden, *z, *h; /* [H]; h: the new one, while the old one is read */
    struct barrier *barrier;
};

/* The input projection of some rows of W_ih. */
static void project(const struct step_in_place *s, float *out, size_t first, size_t end) {
    if (s->id == s->I)
        rows_times_vector(out, s->w_ih, s->x, first, end, s->I);
    else
        for (size_t row = first; row < end; row++) out[row] = s->w_ih[row * s->I + s->id];
    for (size_t row = first; s->b_ih && row < end; row++) out[row] += s->b_ih[row];
}

/* A phase of some columns: gates `first_gate` to `end_gate` of W_hh times a, and the update. */
static void step_phase(const struct step_in_place_job *job, size_t phase, size_t first_gate, size_t end_gate,
                       const float *a, struct range columns) {
    const struct step_in_place *s = job->task;
    const size_t H = s->H;
    for (size_t g = first_gate; g < end_gate; g++)
        rows_times_vector(job->products, s->w_hh, a, g * H + columns.first, g * H + columns.end, H);
    for (size_t column = columns.first; column < columns.end; column += LANES) {
        const size_t lanes = lanes_at(columns.end, column);
        vec product[MAX_GATES];
        for (size_t g = first_gate; g < end_gate; g++)
            product[g - first_gate] =
                load_n(job->products + g * H + column, lanes) + bias(s->b_hh, H, g, column, lanes);
        const struct update u = {
            .H = H,
            .lanes = lanes,
            .active = 1,
            .x = job->x + column,
            .h_prev = s->h + column,
            .h = job->h + column,
            .c = AT_OR_NULL(s->c, column),
            .reset_hidden = job->reset_hidden + column,
            .z = job->z + column,
        };
        update_vector(s->cell, phase, &u, product);
    }
}

static void step_in_place_member(void *argument, int member, int members) {
    const struct step_in_place_job *job = argument;
    const struct step_in_place *s = job->task;
    const size_t H = s->H, G = CELL_FACTS[s->cell].gates, first_gates = CELL_FACTS[s->cell].first_gates;
    const struct range vectors = part_of(vectors_of(H), (size_t)member, (size_t)members);
    const struct range own = {vectors.first * LANES, min_size(vectors.end * LANES, H)};
    for (size_t g = 0; g < G; g++) project(s, job->x, g * H + own.first, g * H + own.end);
    step_phase(job, 0, 0, first_gates, s->h, own);
    if (phases_of(s->cell) > 1) {
        barrier_wait(job->barrier, (unsigned)members);
        step_phase(job, 1, first_gates, G, job->reset_hidden, own);
    }
    barrier_wait(job->barrier, (unsigned)members); /* everybody has read the old h */
    memcpy(s->h + own.first, job->h + own.first, (own.end - own.first) * sizeof(float));
}

static int step_in_place(const struct step_in_place *s, int threads) {
    const size_t gates = CELL_FACTS[s->cell].gates * s->H;
    struct step_in_place_job job = {.task = s};
    job.x = scratch(&job.barrier, 1, 2 * gates + 3 * s->H);
    if (!job.x) return -1;
    job.products = job.x + gates;
    job.reset_hidden = job.products + gates;
    job.z = job.reset_hidden + s->H;
    job.h = job.z + s->H;
    team_run(threads, step_in_place_member, &job);
    free(job.barrier);
    return 0;
}

static void matvec_member(void *argument, int member, int members) {
    const struct matvec *task = argument;
    const struct range own = part_of(task->rows, (size_t)member, (size_t)members);
    rows_times_vector(task->out, task->w, task->x, own.first, own.end, task->columns);
    for (size_t row = own.first; task->b && row < own.end; row++) task->out[row] += task->b[row];
}

static int matvec(const struct matvec *task, int threads) {
    team_run(threads, matvec_member, (void *)task);
    return 0;
}

#endif
