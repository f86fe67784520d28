/* One layer and direction in one call, the input projection included, without a backward: what is small costs little
   more than its products. Weights are read where they lie, or packed where many steps or rows read them; packed ones
   may serve many calls. */
#ifndef FASTCELLS_LAYER_H
#define FASTCELLS_LAYER_H

#include "few_rows.h"
#include "forward.h"
#include "linear.h"

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

/* Whether the rows of x lie evenly, step after step; and how far apart then. */
static int is_even(const struct layer *f) { return f->B == 1 || f->T == 1 || f->x_time == f->B * f->x_row; }
static size_t even_step(const struct layer *f) { return f->B == 1 ? f->x_time : f->x_row; }

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

/* Rows of columns from one place to another, each `step` apart. */
static void copy_columns(float *to, size_t to_step, const float *from, size_t from_step, size_t rows, size_t columns) {
    for (size_t r = 0; r < rows; r++) memcpy(to + r * to_step, from + r * from_step, columns * sizeof *to);
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

/* Whether out is [T, B, H] without gaps. */
static int is_dense(const struct layer *f) {
    return (f->B == 1 || f->out_row == f->H) && (f->T == 1 || f->out_time == f->B * f->H);
}

/* Memory for the packed weights of a layer and direction, in floats: W_ih's, then W_hh's. vectors: of columns in a tile
   of the latter, as calls of B rows by so many threads have it. */
static size_t layer_panels(enum cell cell, size_t B, size_t H, size_t I, int threads, size_t *vectors) {
    const size_t G = CELL_FACTS[cell].gates;
    *vectors = forward_vectors(cell, B, H, (size_t)threads);
    return linear_panels(G * H, I) + panels_size(H, G);
}

/* The kernels for any size, one after the other. memory: see layer. */
static int layer_packed(const struct layer *f, float *x_proj, float *memory, int threads) {
    const size_t T = f->T, B = f->B, H = f->H, columns = CELL_FACTS[f->cell].gates * H, plane = B * H;
    float *last = memory, *zeros = last + plane, *more = zeros + plane;
    const struct kept_panels kept = {AT_OR_NULL(f->panels, linear_panels(columns, f->I)), f->vectors, f->kept};
    struct linear project = {.rows = T * B, .K = f->I, .columns = columns, .x_stride = f->I, .out_stride = columns,
                             .x = f->x, .w = f->w_ih, .b = f->b_ih, .out = x_proj};
    if (is_even(f)) {
        project.x_stride = even_step(f);
    } else {
        for (size_t t = 0; t < T; t++) copy_columns(more + t * B * f->I, f->I, f->x + t * f->x_time, f->x_row, B, f->I);
        project.x = more;
    }
    if (linear_with(&project, f->panels, f->kept, threads)) return -1;
    const struct forward steps = {.cell = f->cell, .T = T, .B = B, .H = H, .reverse = f->reverse, .x = x_proj,
                                  .w = f->w, .b = f->b, .h0 = f->h0,
                                  .c0 = !f->c_n || f->c0 ? f->c0 : zeros, .out = is_dense(f) ? f->out : more,
                                  .h_n = f->h_n ? f->h_n : last, .c_n = f->c_n};
    if (steps.c0 == zeros) memset(zeros, 0, plane * sizeof *zeros);
    if (forward_with(&steps, kept, threads)) return -1;
    for (size_t t = 0; steps.out != f->out && t < T; t++)
        copy_columns(f->out + t * f->out_time, f->out_row, more + t * plane, H, B, H);
    return 0;
}

static int layer(const struct layer *f, int threads) {
    const size_t plane = f->B * f->H, tokens = f->T * f->B, x_proj = tokens * CELL_FACTS[f->cell].gates * f->H;
    /* x or out once more, where one of them is not as the kernels for any size have it */
    const size_t more = f->packed && !(is_even(f) && is_dense(f)) ? tokens * (f->H > f->I ? f->H : f->I) : 0;
    struct layer_job job = {.task = f};
    job.reset_hidden = scratch(&job.barrier, 1, 2 * plane + more + (f->x_proj ? 0 : x_proj));
    if (!job.reset_hidden) return -1;
    job.x_proj = f->x_proj ? f->x_proj : job.reset_hidden + 2 * plane + more;
    job.z = job.reset_hidden + plane;
    int status = 0;
    if (f->packed)
        status = layer_packed(f, job.x_proj, job.reset_hidden, threads);
    else
        team_run(threads, layer_member, &job);
    free(job.barrier);
    return status;
}

#endif
