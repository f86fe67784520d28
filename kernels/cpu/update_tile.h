/* The update of a tile of the forward: its rows and vectors of columns, when the products are there. */
#ifndef FASTCELLS_UPDATE_TILE_H
#define FASTCELLS_UPDATE_TILE_H

#include "arguments.h"
#include "recurrence.h"

/* Packed weights that outlive a call, for tiles of so many vectors of columns; `filled` where a call before has packed
   them. All zeros: there are none. */
struct kept_panels {
    float *data;
    size_t vectors;
    int filled;
    int in_caches; /* whether what an update reads is there already, so that nothing has to be prefetched */
};

struct forward_job {
    const forward_task *task;
    struct kept_panels kept;
    struct division division;
    element *reset_hidden; /* this and z: [B, H] each, from the first phase to the second; or NULL */
    float *z;
    float *h, *c; /* [B, H] each, where the states are carried apart */
};

/* The rows of a tile. */
INLINE void update_rows(enum cell cell, size_t phase, const struct forward_job *job, const struct tile *at,
                        const element *h_prev, tile_t products) {
    const forward_task *f = job->task;
    const size_t B = f->B, H = f->H, G = CELL_FACTS[cell].gates, S = CELL_FACTS[cell].num_saved;
    const size_t first_gate = phase ? CELL_FACTS[cell].first_gates : 0;
    const size_t gates = phase ? G - first_gate : CELL_FACTS[cell].first_gates;
    for (size_t r = 0; r < at->rows; r++) {
        const size_t row = at->row + r, token = at->t * B + row;
        struct update u = {.H = H, .active = is_active(f->lengths, at->t, row)};
        u.starts_episode = !h_prev || starts_episode_at(f->lengths, f->resets, at->t, B, row);
        for (size_t v = 0; v < at->vectors; v++) {
            const size_t column = at->column + v * LANES, own = row * H + column, now = token * H + column;
            vec product[MAX_GATES];
            u.lanes = lanes_at(H, column);
            UNROLL for (size_t g = 0; g < gates; g++) {
                product[g] = bias(f->b, H, first_gate + g, column, u.lanes);
                if (!u.starts_episode || phase > 0)
                    product[g] += load(in_tile(products, gates * at->vectors, r, g * at->vectors + v));
            }
            u.x = f->x + token * G * H + column;
            u.h_prev = AT_OR_NULL(CARRIED(job->h, h_prev), own);
            u.h = CARRIED(job->h + own, f->hidden + now);
            u.hidden = f->hidden + now;
            u.out = AT_OR_NULL(f->out, now);
            u.c = AT_OR_NULL(CARRIED(job->c, f->c_n), own);
            u.cells = AT_OR_NULL(f->cells, now);
            u.saved = AT_OR_NULL(f->saved, token * S * H + column);
            u.reset_hidden = AT_OR_NULL(job->reset_hidden, own);
            u.z = AT_OR_NULL(job->z, own);
            update_vector(cell, phase, &u, product);
        }
    }
}

/* Rows of a tile whose activations are computed side by side; two where a sanitizer looks on, or to compile it would
   take minutes. */
#if !defined(SIDE_BY_SIDE)
enum { ABREAST = 1 };
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { ABREAST = 2 };
#else
enum { ABREAST = 4 };
#endif

enum step { FROM_ZEROS, FROM_STATE, TO_KEEP }; /* from zeros; from a state; and with something kept for a backward */

/* Some rows of a whole vector of columns, where no sequence ends, and none begins but all at once. What the compiler
   knows of that takes half of the instructions away. */
INLINE void update_whole(enum cell cell, size_t phase, enum step step, size_t rows, const struct forward_job *job,
                         const struct tile *at, const element *h_prev, tile_t products, size_t r, size_t v) {
    const forward_task *f = job->task;
    const size_t B = f->B, H = f->H, G = CELL_FACTS[cell].gates, S = CELL_FACTS[cell].num_saved;
    const size_t first_gate = phase ? CELL_FACTS[cell].first_gates : 0, column = at->column + v * LANES;
    const size_t gates = phase ? G - first_gate : CELL_FACTS[cell].first_gates;
    struct update u[ABREAST];
    vec product[ABREAST][MAX_GATES];
    UNROLL for (size_t i = 0; i < rows; i++) {
        const size_t row = at->row + r + i, token = at->t * B + row, own = row * H + column, now = token * H + column;
        UNROLL for (size_t g = 0; g < gates; g++) {
            product[i][g] = bias(f->b, H, first_gate + g, column, LANES);
            if (step != FROM_ZEROS || phase > 0)
                product[i][g] += load(in_tile(products, gates * at->vectors, r + i, g * at->vectors + v));
        }
        u[i] = (struct update){.H = H, .lanes = LANES, .active = 1, .starts_episode = step == FROM_ZEROS};
        u[i].x = f->x + token * G * H + column;
        if (step != FROM_ZEROS) u[i].h_prev = CARRIED(job->h, h_prev) + own;
        u[i].h = CARRIED(job->h + own, f->hidden + now);
        u[i].hidden = f->hidden + now;
        if (step == TO_KEEP) u[i].out = AT_OR_NULL(f->out, now), u[i].cells = AT_OR_NULL(f->cells, now);
        if (step == TO_KEEP) u[i].saved = AT_OR_NULL(f->saved, token * S * H + column);
        if (cell == LSTM) u[i].c = CARRIED(job->c, f->c_n) + own;
        if (cell == GRU_RESET_BEFORE) u[i].reset_hidden = job->reset_hidden + own, u[i].z = job->z + own;
    }
    update_vectors(cell, phase, rows, u, product);
}

INLINE void update_whole_rows(enum cell cell, size_t phase, enum step step, const struct forward_job *job,
                              const struct tile *at, const element *h_prev, tile_t products) {
    for (size_t v = 0; v < at->vectors; v++) {
        size_t r = 0;
        for (; r + ABREAST <= at->rows; r += ABREAST)
            update_whole(cell, phase, step, ABREAST, job, at, h_prev, products, r, v);
        if (ABREAST > 2 && r + 2 <= at->rows) {
            update_whole(cell, phase, step, 2, job, at, h_prev, products, r, v);
            r += 2;
        }
        if (ABREAST > 1 && r < at->rows) update_whole(cell, phase, step, 1, job, at, h_prev, products, r, v);
    }
}

/* An LSTM that saves its gates gains nothing: registers do not suffice. */
INLINE void update_rows_of(enum cell cell, size_t phase, const struct forward_job *job, const struct tile *at,
                           const element *h_prev, tile_t products) {
    const forward_task *f = job->task;
    const int saves = f->saved || f->out;
    if (f->lengths || f->resets || at->column + at->vectors * LANES > f->H || (saves && (!h_prev || cell == LSTM)))
        update_rows(cell, phase, job, at, h_prev, products);
    else if (saves)
        update_whole_rows(cell, phase, TO_KEEP, job, at, h_prev, products);
    else if (h_prev)
        update_whole_rows(cell, phase, FROM_STATE, job, at, h_prev, products);
    else
        update_whole_rows(cell, phase, FROM_ZEROS, job, at, h_prev, products);
}

/* The compiler sees each cell and phase by itself: told at run time, a reset-before GRU took 2 to 5 % more of the whole
   forward (measured with AVX2 and AVX-512, H 256 and 512). With all in one function, sanitizers took it minutes. */
#define UPDATE(name, cell, phase)                                                                                      \
    static __attribute__((noinline)) void update_##name(const struct forward_job *job, const struct tile *at,          \
                                                        const element *h_prev, tile_t products) {                      \
        update_rows_of(cell, phase, job, at, h_prev, products);                                                        \
    }
UPDATE(rnn_tanh, RNN_TANH, 0)
UPDATE(rnn_relu, RNN_RELU, 0)
UPDATE(gru_reset_after, GRU_RESET_AFTER, 0)
UPDATE(gru_reset_before, GRU_RESET_BEFORE, 0)
UPDATE(gru_reset_before_again, GRU_RESET_BEFORE, 1)
UPDATE(lstm, LSTM, 0)

static void update_tile(const struct forward_job *job, const struct tile *at, size_t phase, const element *h_prev,
                        tile_t products) {
    switch (job->task->cell) {
    case RNN_TANH: update_rnn_tanh(job, at, h_prev, products); break;
    case RNN_RELU: update_rnn_relu(job, at, h_prev, products); break;
    case GRU_RESET_AFTER: update_gru_reset_after(job, at, h_prev, products); break;
    case GRU_RESET_BEFORE:
        if (phase == 0)
            update_gru_reset_before(job, at, h_prev, products);
        else
            update_gru_reset_before_again(job, at, h_prev, products);
        break;
    default: update_lstm(job, at, h_prev, products);
    }
}

#endif
