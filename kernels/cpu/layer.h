/* One layer and direction in one call, the input projection included, without a backward: what is small costs little
   more than its products. Weights are read where they lie, or packed where many steps or rows read them; packed ones
   may serve many calls. */
#ifndef FASTCELLS_LAYER_H
#define FASTCELLS_LAYER_H

#include "few_rows.h"
#include "layer_packed.h"

struct layer_job {
    const struct layer *task;
    float *x_proj;           /* [T, B, G, H] */
    float *reset_hidden, *z; /* [B, H] each, from the first phase to the second */
    struct barrier *barrier;
};

/* W_ih's product with some rows of x, from the token `first` on, and its bias, for a vector of columns of each gate. */
static void project_rows(const struct layer_job *job, const float *x, size_t x_step, size_t first, size_t count,
                         size_t column) {
    const struct layer *f = job->task;
    const size_t H = f->H, G = CELL_FACTS[f->cell].gates, I = f->I, lanes = lanes_at(H, column);
    few_t products;
    for (size_t g = 0; g < G; g++) {
        const vec b = bias(f->b_ih, H, g, column, lanes);
        for (size_t done = 0, rows; done < count; done += rows) {
            rows = height(count, done, MAX_FEW);
            FEW_ROWS_OF[rows - 1](products, f->w_ih + (g * H + column) * I, lanes, x + done * x_step, x_step, I);
            for (size_t r = 0; r < rows; r++)
                store_n(job->x_proj + ((first + done + r) * G + g) * H + column, load(products[r]) + b, lanes);
        }
    }
}

static void project_columns(const struct layer_job *job, size_t column) {
    const struct layer *f = job->task;
    if (is_even(f)) {
        project_rows(job, f->x, even_step(f), 0, f->T * f->B, column);
        return;
    }
    for (size_t t = 0; t < f->T; t++) project_rows(job, f->x + t * f->x_time, f->x_row, t * f->B, f->B, column);
}

/* A step's phase for a vector of columns. h_prev: [B, H], its rows h_step apart; NULL for zeros. */
INLINE void step_columns(enum cell cell, size_t phase, const struct layer_job *job, size_t t, size_t column,
                         const float *h_prev, size_t h_step) {
    const struct layer *f = job->task;
    const size_t B = f->B, H = f->H, G = CELL_FACTS[cell].gates, lanes = lanes_at(H, column);
    const size_t first_gate = phase ? CELL_FACTS[cell].first_gates : 0;
    const size_t gates = phase ? G - first_gate : CELL_FACTS[cell].first_gates;
    const float *a = phase ? job->reset_hidden : h_prev;
    const size_t a_step = phase ? H : h_step;
    few_t products[MAX_GATES];
    for (size_t row = 0, rows; row < B; row += rows) {
        rows = height(B, row, MAX_FEW);
        for (size_t g = 0; h_prev && g < gates; g++)
            FEW_ROWS_OF[rows - 1](products[g], f->w + ((first_gate + g) * H + column) * H, lanes, a + row * a_step,
                                  a_step, H);
        for (size_t r = 0; r < rows; r++) {
            const size_t own = (row + r) * H + column;
            vec product[MAX_GATES];
            UNROLL for (size_t g = 0; g < gates; g++) {
                product[g] = bias(f->b, H, first_gate + g, column, lanes);
                if (h_prev) product[g] += load(products[g][r]);
            }
            const struct update u = {
                .H = H,
                .lanes = lanes,
                .active = 1,
                .starts_episode = !h_prev,
                .x = job->x_proj + (t * B + row + r) * G * H + column,
                .h_prev = AT_OR_NULL(h_prev, (row + r) * h_step + column),
                .h = f->out + t * f->out_time + (row + r) * f->out_row + column,
                .c = AT_OR_NULL(f->c_n, own),
                .reset_hidden = AT_OR_NULL(job->reset_hidden, own),
                .z = AT_OR_NULL(job->z, own),
            };
            update_vector(cell, phase, &u, product);
        }
    }
}

/* A phase of this member's columns. Every other step goes through them backwards: where the weights are a little larger
   than a core's cache, it begins with those that are still there. */
INLINE void step_phase_of(enum cell cell, size_t phase, const struct layer_job *job, size_t step, struct range vectors,
                          const float *h_prev, size_t h_step) {
    const size_t t = job->task->reverse ? job->task->T - 1 - step : step, count = vectors.end - vectors.first;
    for (size_t i = 0; i < count; i++) {
        const size_t vector = step % 2 ? vectors.end - 1 - i : vectors.first + i;
        step_columns(cell, phase, job, t, vector * LANES, h_prev, h_step);
    }
}

static void layer_phase(const struct layer_job *job, size_t phase, size_t step, struct range vectors,
                        const float *h_prev, size_t h_step) {
    switch (job->task->cell) {
    case RNN_TANH: step_phase_of(RNN_TANH, 0, job, step, vectors, h_prev, h_step); break;
    case RNN_RELU: step_phase_of(RNN_RELU, 0, job, step, vectors, h_prev, h_step); break;
    case GRU_RESET_AFTER: step_phase_of(GRU_RESET_AFTER, 0, job, step, vectors, h_prev, h_step); break;
    case GRU_RESET_BEFORE:
        if (phase == 0)
            step_phase_of(GRU_RESET_BEFORE, 0, job, step, vectors, h_prev, h_step);
        else
            step_phase_of(GRU_RESET_BEFORE, 1, job, step, vectors, h_prev, h_step);
        break;
    default: step_phase_of(LSTM, 0, job, step, vectors, h_prev, h_step);
    }
}

static void layer_member(void *argument, int member, int members) {
    const struct layer_job *job = argument;
    const struct layer *f = job->task;
    const size_t H = f->H, T = f->T, phases = phases_of(f->cell);
    const struct range own = part_of(vectors_of(H), (size_t)member, (size_t)members);
    const size_t first = own.first * LANES, columns = min_size(own.end * LANES, H) - first;
    for (size_t vector = own.first; vector < own.end; vector++)
        project_columns(job, vector * LANES);
    for (size_t row = 0; f->c_n && !f->c0 && row < f->B; row++) memset(f->c_n + row * H + first, 0, columns * sizeof(float));
    if (f->c_n && f->c0) copy_columns(f->c_n + first, H, f->c0 + first, H, f->B, columns);
    const float *h_prev = f->h0;
    size_t h_step = H;
    for (size_t step = 0; step < T; step++) {
        for (size_t phase = 0; phase < phases; phase++) {
            if (step + phase > 0) barrier_wait(job->barrier, (unsigned)members);
            layer_phase(job, phase, step, own, h_prev, h_step);
        }
        h_prev = f->out + (f->reverse ? T - 1 - step : step) * f->out_time;
        h_step = f->out_row;
    }
    if (f->h_n) copy_columns(f->h_n + first, H, h_prev + first, h_step, f->B, columns);
}

static int layer(const struct layer *f, int threads) {
    const size_t plane = f->B * f->H, steps = f->packed ? f->chunk : f->T;
    const size_t x_proj = f->x_proj ? 0 : steps * f->B * CELL_FACTS[f->cell].gates * f->H;
    struct packed_memory parts;
    const size_t own = f->packed ? share_packed_memory(f, NULL, threads, &parts) : 2 * plane;
    struct layer_job job = {.task = f};
    float *memory = scratch(&job.barrier, 1, own + x_proj);
    if (!memory) return -1;
    job.x_proj = f->x_proj ? f->x_proj : memory + own;
    int status = 0;
    if (f->packed) {
        share_packed_memory(f, memory, threads, &parts);
        status = layer_packed(f, job.x_proj, &parts, threads);
    } else {
        job.reset_hidden = memory;
        job.z = memory + plane;
        team_run(threads, layer_member, &job);
    }
    free(job.barrier);
    return status;
}

#endif
