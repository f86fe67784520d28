/* One layer and direction from packed weights, some steps at a time: their input projection is read while a core's
   caches still have it, and is never in memory for all steps. */
#ifndef FASTCELLS_LAYER_PACKED_H
#define FASTCELLS_LAYER_PACKED_H

#include "forward.h"
#include "linear.h"

/* Whether the rows of x lie evenly, step after step; and how far apart then. */
static int is_even(const struct layer *f) { return f->B == 1 || f->T == 1 || f->x_time == f->B * f->x_row; }
static size_t even_step(const struct layer *f) { return f->B == 1 ? f->x_time : f->x_row; }

/* Whether out is [T, B, H] without gaps. */
static int is_dense(const struct layer *f) {
    return (f->B == 1 || f->out_row == f->H) && (f->T == 1 || f->out_time == f->B * f->H);
}

/* Rows of columns from one place to another, each `step` apart. */
static void copy_columns(float *to, size_t to_step, const float *from, size_t from_step, size_t rows, size_t columns) {
    for (size_t r = 0; r < rows; r++) memcpy(to + r * to_step, from + r * from_step, columns * sizeof *to);
}

/* Memory for the packed weights of a layer and direction, in floats: W_ih's, then W_hh's. vectors: of columns in a tile
   of the latter, as calls of B rows by so many threads have it. */
static size_t layer_panels(enum cell cell, size_t B, size_t H, size_t I, int threads, size_t *vectors) {
    const size_t G = CELL_FACTS[cell].gates;
    *vectors = forward_vectors(cell, B, H, (size_t)threads);
    return linear_panels(G * H, I) + panels_size(H, G);
}

/* What a call takes beside the projection of a chunk. */
struct packed_memory {
    float *panels;       /* of the weights, or NULL: each product finds memory for its own in turn */
    float *last, *zeros; /* [B, H] each */
    float *out;          /* a state, and the steps of a chunk after it, where out has gaps */
    float *x;            /* [chunk, B, I], where x does not lie evenly */
};

/* Returns the floats; `from` may be NULL, when nothing is there yet. */
static size_t share_packed_memory(const struct layer *f, float *from, int threads, struct packed_memory *memory) {
    const size_t plane = f->B * f->H;
    size_t vectors;
    const int once = f->panels || f->chunk >= f->T; /* what is read by one chunk alone, that finds memory for itself */
    const size_t panels = once ? 0 : layer_panels(f->cell, f->B, f->H, f->I, threads, &vectors);
    const size_t out = is_dense(f) ? 0 : (f->chunk + 1) * plane, x = is_even(f) ? 0 : f->chunk * f->B * f->I;
    if (from) {
        memory->panels = once ? f->panels : from;
        memory->last = from + panels;
        memory->zeros = memory->last + plane;
        memory->out = memory->zeros + plane;
        memory->x = memory->out + out;
    }
    return panels + 2 * plane + out + x;
}

/* Whether a chunk's projection stays in a core's second cache, beside the weights that go through it at each step.
   Prefetches then cost 10 to 15 % at H 64, 2 to 5 % at H 256; where weights come from the third cache they pay. */
static int in_caches(const struct layer *f) {
    const size_t G = CELL_FACTS[f->cell].gates, steps = min_size(f->chunk, f->T);
    return panels_size(f->H, G) <= (size_t)1 << 18 && steps * f->B * G * f->H <= (size_t)1 << 19;
}

/* The input projection of some steps, the first of which is `first`. */
static int project_chunk(const struct layer *f, size_t first, size_t steps, float *x_proj,
                         const struct packed_memory *memory, int filled, int threads) {
    const size_t B = f->B, I = f->I, columns = CELL_FACTS[f->cell].gates * f->H;
    const float *x = f->x + first * f->x_time;
    struct linear task = {.rows = steps * B, .K = I, .columns = columns, .x_stride = I, .out_stride = columns, .x = x,
                          .w = f->w_ih, .b = f->b_ih, .out = x_proj};
    if (is_even(f)) {
        task.x_stride = even_step(f);
    } else {
        for (size_t t = 0; t < steps; t++) copy_columns(memory->x + t * B * I, I, x + t * f->x_time, f->x_row, B, I);
        task.x = memory->x;
    }
    return linear_with(&task, memory->panels, filled, in_caches(f), threads);
}

static int layer_packed(const struct layer *f, float *x_proj, const struct packed_memory *memory, int threads) {
    const size_t T = f->T, B = f->B, H = f->H, plane = B * H;
    const float *h = f->h0;
    const size_t columns = CELL_FACTS[f->cell].gates * H, vectors = forward_vectors(f->cell, B, H, (size_t)threads);
    struct kept_panels kept = {AT_OR_NULL(memory->panels, linear_panels(columns, f->I)),
                               f->panels ? f->vectors : vectors, f->kept, in_caches(f)};
    int filled = f->kept;
    if (T == 1 && !h && !f->panels && phases_of(f->cell) == 1) kept.data = x_proj, kept.filled = 1; /* W_hh: unused */
    const float *c = !f->c_n || f->c0 ? f->c0 : memory->zeros;
    if (c == memory->zeros) memset(memory->zeros, 0, plane * sizeof *memory->zeros);
    for (size_t done = 0, steps; done < T; done += steps) {
        steps = min_size(f->chunk, T - done);
        const size_t first = f->reverse ? T - done - steps : done;
        if (project_chunk(f, first, steps, x_proj, memory, filled, threads)) return -1;
        float *out = is_dense(f) ? f->out + first * plane : memory->out + plane;
        const struct forward task = {.cell = f->cell, .T = steps, .B = B, .H = H, .reverse = f->reverse, .x = x_proj,
                                     .w = f->w, .b = f->b, .h0 = h, .c0 = c, .out = out,
                                     .h_n = f->h_n ? f->h_n : memory->last, .c_n = f->c_n};
        if (forward_with(&task, kept, threads)) return -1;
        filled = kept.filled = 1;
        c = f->c_n;
        h = out + (f->reverse ? 0 : steps - 1) * plane;
        if (is_dense(f)) continue;
        for (size_t t = 0; t < steps; t++)
            copy_columns(f->out + (first + t) * f->out_time, f->out_row, out + t * plane, H, B, H);
        memcpy(memory->out, h, plane * sizeof *out);
        h = memory->out;
    }
    return 0;
}

#endif
