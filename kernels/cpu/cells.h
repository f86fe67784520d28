/* The cells: the elementwise update of each, forward and backward, on one vector of columns of one row. Nothing else
   distinguishes cells, apart from the facts in cell_facts.h. The equations stand in fastcells/spec.

   A step has a phase for each product: one, or two where some gates multiply what the others have made of h. */
#ifndef FASTCELLS_CELLS_H
#define FASTCELLS_CELLS_H

#include "cell_facts.h"
#include "element.h"

enum { MAX_GATES = 4 };

/* What an update reads and writes, each at its vector of columns; H apart where there are several. */
struct update {
    size_t H, lanes;
    int active, starts_episode; /* whether the sequence goes on at this step, and whether it starts from zeros */
    const element *x;      /* [G, H] input projection */
    const float *h_prev;
    float *h;
    element *hidden, *out; /* hidden: h, where that is carried apart; out: h or 0, or NULL */
    float *c;              /* in and out */
    element *cells;        /* c once more, where `saved` is given */
    element *saved;        /* [S, H], or NULL */
    element *reset_hidden; /* what the first phase leaves for the second: r * h, and z */
    float *z;
};

/* product: h W^T + b of the phase's gates. */
INLINE void update_vector(enum cell cell, size_t phase, const struct update *at, const vec product[MAX_GATES]) {
    const size_t H = at->H, lanes = at->lanes;
    const element *x = at->x;
    element *saved = at->saved;
    vec old = at->starts_episode ? splat(0.0f) : load_n(at->h_prev, lanes), new;
    switch (cell) {
    case RNN_TANH: new = tanh_of(read_n(x, lanes) + product[0]); break;
    case RNN_RELU: new = relu(read_n(x, lanes) + product[0]); break;
    case GRU_RESET_AFTER: {
        vec r = sigmoid(read_n(x, lanes) + product[0]);
        vec z = sigmoid(read_n(x + H, lanes) + product[1]);
        vec n = tanh_of(read_n(x + 2 * H, lanes) + r * product[2]);
        new = n + z * (old - n);
        if (saved) {
            write_n(saved, r, lanes);
            write_n(saved + H, z, lanes);
            write_n(saved + 2 * H, n, lanes);
            write_n(saved + 3 * H, product[2], lanes);
        }
        break;
    }
    case GRU_RESET_BEFORE: {
        if (phase == 0) {
            vec r = sigmoid(read_n(x, lanes) + product[0]);
            vec z = sigmoid(read_n(x + H, lanes) + product[1]);
            write_n(at->reset_hidden, r * old, lanes);
            store_n(at->z, z, lanes);
            if (saved) {
                write_n(saved, r, lanes);
                write_n(saved + H, z, lanes);
            }
            return; /* h follows when r * h has gone through its weights */
        }
        vec n = tanh_of(read_n(x + 2 * H, lanes) + product[0]);
        new = n + load_n(at->z, lanes) * (old - n);
        if (saved) write_n(saved + 2 * H, n, lanes);
        break;
    }
    default: { /* LSTM */
        vec i = sigmoid(read_n(x, lanes) + product[0]);
        vec f = sigmoid(read_n(x + H, lanes) + product[1]);
        vec g = tanh_of(read_n(x + 2 * H, lanes) + product[2]);
        vec o = sigmoid(read_n(x + 3 * H, lanes) + product[3]);
        vec c_old = at->starts_episode ? splat(0.0f) : load_n(at->c, lanes), c_new = f * c_old + i * g;
        new = o * tanh_of(c_new);
        if (!at->active) c_new = c_old;
        store_n(at->c, c_new, lanes);
        if (saved) {
            write_n(saved, i, lanes);
            write_n(saved + H, f, lanes);
            write_n(saved + 2 * H, g, lanes);
            write_n(saved + 3 * H, o, lanes);
            write_n(at->cells, c_new, lanes);
        }
    }
    }
    store_n(at->h, at->active ? new : old, lanes);
    if (STATES_CARRIED) write_n(at->hidden, at->active ? new : old, lanes);
    if (at->out) write_n(at->out, at->active ? new : splat(0.0f), lanes);
}

/* The same for the backward. */
struct gradient {
    size_t H, lanes;
    int starts_episode;
    const element *saved, *hidden, *h_prev, *cells, *c_prev;
    float *d_h, *d_c;       /* of the state, from step to step */
    element *d_x, *d_gates; /* [G, H] */
};

INLINE vec h_before(const struct gradient *at) {
    return at->starts_episode ? splat(0.0f) : read_n(at->h_prev, at->lanes);
}

/* The gates' gradients from that of h. Returns what d_h hands on to the step before around the product. */
INLINE vec gradient_vector(enum cell cell, const struct gradient *at, vec d_h) {
    const size_t H = at->H, lanes = at->lanes;
    const element *saved = at->saved;
    element *d_x = at->d_x;
    switch (cell) {
    case RNN_TANH: {
        vec h = read_n(at->hidden, lanes);
        write_n(d_x, d_h * (1.0f - h * h), lanes);
        return splat(0.0f);
    }
    case RNN_RELU:
        write_n(d_x, where(read_n(at->hidden, lanes) <= 0.0f, splat(0.0f), d_h), lanes);
        return splat(0.0f);
    case GRU_RESET_AFTER: {
        vec r = read_n(saved, lanes), z = read_n(saved + H, lanes), n = read_n(saved + 2 * H, lanes);
        vec d_n = d_h * (1.0f - z) * (1.0f - n * n);
        vec d_r = d_n * read_n(saved + 3 * H, lanes) * r * (1.0f - r);
        vec d_z = d_h * (h_before(at) - n) * z * (1.0f - z);
        write_n(d_x, d_r, lanes);
        write_n(d_x + H, d_z, lanes);
        write_n(d_x + 2 * H, d_n, lanes);
        write_n(at->d_gates, d_r, lanes);
        write_n(at->d_gates + H, d_z, lanes);
        write_n(at->d_gates + 2 * H, d_n * r, lanes);
        return d_h * z;
    }
    case GRU_RESET_BEFORE: { /* d_r follows when d_n has gone through its weights */
        vec z = read_n(saved + H, lanes), n = read_n(saved + 2 * H, lanes);
        write_n(d_x + H, d_h * (h_before(at) - n) * z * (1.0f - z), lanes);
        write_n(d_x + 2 * H, d_h * (1.0f - z) * (1.0f - n * n), lanes);
        return d_h * z;
    }
    default: { /* LSTM */
        vec i = read_n(saved, lanes), f = read_n(saved + H, lanes);
        vec g = read_n(saved + 2 * H, lanes), o = read_n(saved + 3 * H, lanes);
        vec s = tanh_of(read_n(at->cells, lanes));
        vec d_c = load_n(at->d_c, lanes) + d_h * o * (1.0f - s * s);
        write_n(d_x, d_c * g * i * (1.0f - i), lanes);
        vec c_old = at->starts_episode ? splat(0.0f) : read_n(at->c_prev, lanes);
        write_n(d_x + H, d_c * c_old * f * (1.0f - f), lanes);
        write_n(d_x + 2 * H, d_c * i * (1.0f - g * g), lanes);
        write_n(d_x + 3 * H, d_h * s * o * (1.0f - o), lanes);
        store_n(at->d_c, at->starts_episode ? splat(0.0f) : d_c * f, lanes);
        return splat(0.0f);
    }
    }
}

/* The second phase, of a reset-before GRU: `d` is the gradient of r * h. */
INLINE void second_gradient_vector(const struct gradient *at, vec d) {
    const vec r = read_n(at->saved, at->lanes);
    if (at->starts_episode) { /* r * h was 0 */
        write_n(at->d_x, splat(0.0f), at->lanes);
        return;
    }
    write_n(at->d_x, d * read_n(at->h_prev, at->lanes) * r * (1.0f - r), at->lanes);
    store_n(at->d_h, load_n(at->d_h, at->lanes) + d * r, at->lanes);
}

#endif
