/* The backward pass: the adjoint of forward.h, from the last step that was taken to the first.

   What a step hands to the one before it is `through`, the gates' gradients times the weights, and what goes around
   the product (d_h0 and d_c0 carry it from step to step, or floats of their own). */
#ifndef FASTCELLS_BACKWARD_H
#define FASTCELLS_BACKWARD_H

#include "arguments.h"
#include "recurrence.h"

struct backward_job {
    const backward_task *task;
    int in_caches; /* whether nothing has to be prefetched */
    struct division division;
    float *d_h, *d_c; /* [B, H] each, where the states' gradients are carried apart */
};

/* A step, the one taken after it (T for none), and the state before it, [B, H] each. */
struct backward_step {
    size_t t, later;
    const element *h_prev, *c_prev;
};

INLINE struct gradient gradient_at(const struct backward_job *job, const struct backward_step *step, size_t row,
                                   size_t column, int starts_episode) {
    const backward_task *b = job->task;
    const size_t H = b->H, GH = CELL_FACTS[b->cell].gates * H, S = CELL_FACTS[b->cell].num_saved;
    const size_t AH = CELL_FACTS[b->cell].apart_gates * H;
    const size_t token = step->t * b->B + row, own = row * H + column, now = token * H + column;
    return (struct gradient){
        .H = H,
        .lanes = lanes_at(H, column),
        .starts_episode = starts_episode,
        .saved = AT_OR_NULL(b->saved, token * S * H + column),
        .hidden = b->hidden + now,
        .h_prev = step->h_prev + own,
        .cells = AT_OR_NULL(b->cells, now),
        .c_prev = AT_OR_NULL(step->c_prev, own),
        .d_h = CARRIED(job->d_h, b->d_h0) + own,
        .d_c = AT_OR_NULL(CARRIED(job->d_c, b->d_c0), own),
        .d_x = b->d_x + token * GH + column,
        .d_gates = AT_OR_NULL(b->d_gates, token * AH + column),
    };
}

/* `through` is [rows][vectors][LANES], or NULL at the last step. */
static void gradient_tile(const struct backward_job *job, const struct backward_step *step, const struct tile *at,
                          tile_t through) {
    const backward_task *b = job->task;
    const size_t B = b->B, H = b->H, G = CELL_FACTS[b->cell].gates, A = CELL_FACTS[b->cell].apart_gates;
    for (size_t r = 0; r < at->rows; r++) {
        const size_t row = at->row + r, token = step->t * B + row;
        const int active = is_active(b->lengths, step->t, row);
        const int starts_episode = starts_episode_at(b->lengths, b->resets, step->t, B, row);
        const int cut = step->later < b->T && starts_episode_at(b->lengths, b->resets, step->later, B, row);
        for (size_t v = 0; v < at->vectors; v++) {
            const struct gradient g = gradient_at(job, step, row, at->column + v * LANES, starts_episode);
            vec d_h = load_n(g.d_h, g.lanes);
            if (through && !cut) d_h += load(through[r][v]);
            if (active) {
                d_h += read_n(b->d_hidden + token * H + at->column + v * LANES, g.lanes);
                d_h = gradient_vector(b->cell, &g, d_h);
                if (starts_episode) d_h = splat(0.0f); /* nothing went around the product either */
            } else {
                for (size_t gate = 0; gate < G; gate++) write_n(g.d_x + gate * H, splat(0.0f), g.lanes);
                for (size_t gate = 0; gate < A; gate++) write_n(g.d_gates + gate * H, splat(0.0f), g.lanes);
            }
            store_n(g.d_h, d_h, g.lanes);
        }
    }
}

/* The second phase: the last gates' gradients have gone back through their weights. */
static void second_gradient_tile(const struct backward_job *job, const struct backward_step *step,
                                 const struct tile *at, tile_t through) {
    const backward_task *b = job->task;
    for (size_t r = 0; r < at->rows; r++) {
        const size_t row = at->row + r;
        if (!is_active(b->lengths, step->t, row)) continue;
        const int starts_episode = starts_episode_at(b->lengths, b->resets, step->t, b->B, row);
        for (size_t v = 0; v < at->vectors; v++) {
            const struct gradient g = gradient_at(job, step, row, at->column + v * LANES, starts_episode);
            second_gradient_vector(&g, load(through[r][v]));
        }
    }
}

/* d_h0, when the first step's gradients have gone through the weights. */
static void initial_tile(const struct backward_job *job, const struct backward_step *step, const struct tile *at,
                         tile_t through) {
    const backward_task *b = job->task;
    for (size_t r = 0; r < at->rows; r++) {
        const size_t row = at->row + r;
        const int cut = starts_episode_at(b->lengths, b->resets, step->later, b->B, row);
        for (size_t v = 0; v < at->vectors; v++) {
            const size_t column = at->column + v * LANES, lanes = lanes_at(b->H, column), own = row * b->H + column;
            vec d_h = load_n(CARRIED(job->d_h, b->d_h0) + own, lanes);
            if (!cut) d_h += load(through[r][v]);
            write_n(b->d_h0 + own, d_h, lanes);
        }
    }
}

/* What the gradients of a tile's columns read and write of each row from at's on. */
static void prefetch_gradient(struct prefetch *list, const backward_task *b, const struct backward_step *step,
                              const struct tile *at) {
    const size_t H = b->H, G = CELL_FACTS[b->cell].gates, S = CELL_FACTS[b->cell].num_saved;
    const size_t A = CELL_FACTS[b->cell].apart_gates, column = at->column, vectors = at->vectors;
    const size_t row = at->row, token = step->t * b->B + row;
    prefetch(list, b->d_hidden + token * H + column, H, 1, H, vectors);
    prefetch(list, step->h_prev + row * H + column, H, 1, H, vectors);
    if (b->saved) prefetch(list, b->saved + token * S * H + column, S * H, S, H, vectors);
    if (b->cells) prefetch(list, step->c_prev + row * H + column, H, 1, H, vectors);
    prefetch(list, b->d_x + token * G * H + column, G * H, G, H, vectors);
    if (b->d_gates) prefetch(list, b->d_gates + token * A * H + column, A * H, A, H, vectors);
}

/* The gradients of a phase's gates at step t, times their weights: those of the last gates may be apart. */
static void gradient_product(const backward_task *b, const struct panels *p, size_t t, const struct tile *at,
                             const float *weights, tile_t products, const struct prefetch *list) {
    static const struct prefetch none;
    const size_t H = b->H, G = CELL_FACTS[b->cell].gates, A = CELL_FACTS[b->cell].apart_gates;
    const size_t token = t * b->B + at->row, K = (p->gates - A) * H; /* of whole terms, if A is not 0: 2 H */
    gemm_tile(at->rows, at->vectors, products, b->d_x + (token * G + p->first_gate) * H, G * H, weights, K, 0, list);
    if (A)
        gemm_tile(at->rows, at->vectors, products, b->d_gates + token * A * H, A * H,
                  weights + K / TERM * at->vectors * LANES, A * H, 1, &none);
}

enum backward_phase { GRADIENT, SECOND_GRADIENT, INITIAL };

/* The product is with the gates' gradients of the later step, in the second phase with those of this one. */
static void backward_phase(const struct backward_job *job, const struct share *share, const struct backward_step *step,
                           enum backward_phase phase) {
    const backward_task *b = job->task;
    const struct panels *p = &job->division.panels[phase == SECOND_GRADIENT];
    const size_t from = phase == SECOND_GRADIENT ? step->t : step->later;
    tile_t products;
    struct prefetch list;
    for (size_t tile = share->first_tile; tile < share->first_tile + share->tiles; tile++) {
        struct tile at = {
            .t = step->t, .row = share->first_row, .column = tile * p->vectors * LANES, .vectors = vectors_in(p, tile)};
        list.lines = 0;
        if (phase == GRADIENT && !job->in_caches) prefetch_gradient(&list, b, step, &at);
        for (size_t done = 0; done < share->rows; done += at.rows) {
            at.row = share->first_row + done;
            at.rows = height(share->rows, done, ROWS[at.vectors]);
            const int last = from == b->T;
            prefetch_rows(&list, at.rows);
            if (!last) gradient_product(b, p, from, &at, panel(p, tile), products, &list);
            if (phase == GRADIENT)
                gradient_tile(job, step, &at, last ? NULL : products);
            else if (phase == SECOND_GRADIENT)
                second_gradient_tile(job, step, &at, products);
            else
                initial_tile(job, step, &at, products);
        }
    }
}

static void divide_backward(struct division *d, const backward_task *b, size_t members) {
    divide_cell(d, b->cell, b->B, b->H, tile_width(b->H, members), members);
}

static void backward_member(void *argument, int member, int members) {
    struct backward_job job = *(struct backward_job *)argument;
    const backward_task *b = job.task;
    const size_t B = b->B, H = b->H, T = b->T, phases = phases_of(b->cell);
    struct part part;
    divide_backward(&job.division, b, (size_t)members);
    if (!take_part(&part, &job.division, B, b->w, pack_backward, member, members)) return;
    read_share(&part, H, CARRIED(job.d_h, b->d_h0), b->d_h_n);
    if (b->d_c0) read_share(&part, H, CARRIED(job.d_c, b->d_c0), b->d_c_n);
    struct backward_step step = {.later = T};
    for (size_t i = T; i-- > 0;) {
        const size_t t = b->reverse ? T - 1 - i : i, before = b->reverse ? t + 1 : t - 1;
        step.t = t;
        step.h_prev = i > 0 ? b->hidden + before * B * H : b->h0;
        step.c_prev = i > 0 && b->cells ? b->cells + before * B * H : b->c0;
        for (size_t phase = 0; phase < phases; phase++) {
            backward_phase(&job, &part.share, &step, phase ? SECOND_GRADIENT : GRADIENT);
            barrier_wait(part.group, part.group_members);
        }
        step.later = t;
    }
    backward_phase(&job, &part.share, &step, INITIAL);
    if (STATES_CARRIED && b->d_c0) write_share(&part, H, b->d_c0, job.d_c);
    release_tiles();
}

static int backward(const backward_task *b, int threads) {
    const size_t state = STATES_CARRIED ? b->B * b->H : 0;
    struct backward_job job = {.task = b, .in_caches = stays_in_caches(b->cell, b->T, b->B, b->H)};
    job.d_h = cell_scratch(&job.division, b->cell, b->H, threads, 2 * state, NULL);
    if (!job.d_h) return -1;
    if (b->d_c0) job.d_c = job.d_h + state;
    divide_backward(&job.division, b, (size_t)threads);
    team_run((int)busy_members(&job.division), backward_member, &job);
    free(job.division.barriers);
    return 0;
}

#endif
