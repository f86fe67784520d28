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

/* product: h W^T + b of the phase's gates. `rows` of them, a step of each in turn, for the activations' sake. */
INLINE void update_vectors(enum cell cell, size_t phase, size_t rows, const struct update at[],
                           vec product[][MAX_GATES]) {
    const size_t H = at->H, lanes = at->lanes;
    vec old[MAX_ABREAST], new[MAX_ABREAST];
    UNROLL for (size_t i = 0; i < rows; i++)
        old[i] = at[i].starts_episode ? splat(0.0f) : load_n(at[i].h_prev, lanes);
    switch (cell) {
    case RNN_TANH:
        UNROLL for (size_t i = 0; i < rows; i++) new[i] = read_n(at[i].x, lanes) + product[i][0];
        activate(0, rows, new);
        break;
    case RNN_RELU:
        UNROLL for (size_t i = 0; i < rows; i++) new[i] = relu(read_n(at[i].x, lanes) + product[i][0]);
        break;
    case GRU_RESET_AFTER: {
        vec gates[MAX_ABREAST];
        UNROLL for (size_t i = 0; i < rows; i++) {
            gates[2 * i] = read_n(at[i].x, lanes) + product[i][0];
            gates[2 * i + 1] = read_n(at[i].x + H, lanes) + product[i][1];
        }
        activate(2 * rows, 2 * rows, gates);
        UNROLL for (size_t i = 0; i < rows; i++) new[i] = read_n(at[i].x + 2 * H, lanes) + gates[2 * i] * product[i][2];
        activate(0, rows, new);
        UNROLL for (size_t i = 0; i < rows; i++) {
            const vec r = gates[2 * i], z = gates[2 * i + 1], n = new[i];
            new[i] = n + z * (old[i] - n);
            element *saved = at[i].saved;
            if (!saved) continue;
            write_n(saved, r, lanes);
            write_n(saved + H, z, lanes);
            write_n(saved + 2 * H, n, lanes);
            write_n(saved + 3 * H, product[i][2], lanes);
        }
        break;
    }
    case GRU_RESET_BEFORE: {
        if (phase == 0) {
            vec gates[MAX_ABREAST];
            UNROLL for (size_t i = 0; i < rows; i++) {
                gates[2 * i] = read_n(at[i].x, lanes) + product[i][0];
                gates[2 * i + 1] = read_n(at[i].x + H, lanes) + product[i][1];
            }
            activate(2 * rows, 2 * rows, gates);
            UNROLL for (size_t i = 0; i < rows; i++) {
                write_n(at[i].reset_hidden, gates[2 * i] * old[i], lanes);
                store_n(at[i].z, gates[2 * i + 1], lanes);
                if (!at[i].saved) continue;
                write_n(at[i].saved, gates[2 * i], lanes);
                write_n(at[i].saved + H, gates[2 * i + 1], lanes);
            }
            return; /* h follows when r * h has gone through its weights */
        }
        UNROLL for (size_t i = 0; i < rows; i++) new[i] = read_n(at[i].x + 2 * H, lanes) + product[i][0];
        activate(0, rows, new);
        UNROLL for (size_t i = 0; i < rows; i++) {
            const vec n = new[i];
            new[i] = n + load_n(at[i].z, lanes) * (old[i] - n);
            if (at[i].saved) write_n(at[i].saved + 2 * H, n, lanes);
        }
        break;
    }
    default: { /* LSTM */
        vec o[MAX_ABREAST], c_new[MAX_ABREAST];
        UNROLL for (size_t i = 0; i < rows; i++) {
            const element *x = at[i].x;
            vec gates[] = {read_n(x, lanes) + product[i][0], read_n(x + H, lanes) + product[i][1],
                           read_n(x + 3 * H, lanes) + product[i][3], read_n(x + 2 * H, lanes) + product[i][2]};
            activate(3, 4, gates);
            const vec c_old = at[i].starts_episode ? splat(0.0f) : load_n(at[i].c, lanes);
            c_new[i] = gates[1] * c_old + gates[0] * gates[3], o[i] = gates[2];
            const vec c = at[i].active ? c_new[i] : c_old;
            store_n(at[i].c, c, lanes);
            element *saved = at[i].saved;
            if (!saved) continue;
            write_n(saved, gates[0], lanes);
            write_n(saved + H, gates[1], lanes);
            write_n(saved + 2 * H, gates[3], lanes);
            write_n(saved + 3 * H, gates[2], lanes);
            write_n(at[i].cells, c, lanes);
        }
        activate(0, rows, c_new);
        UNROLL for (size_t i = 0; i < rows; i++) new[i] = o[i] * c_new[i];
    }
    }
    UNROLL for (size_t i = 0; i < rows; i++) {
        store_n(at[i].h, at[i].active ? new[i] : old[i], lanes);
        if (STATES_CARRIED) write_n(at[i].hidden, at[i].active ? new[i] : old[i], lanes);
        if (at[i].out) write_n(at[i].out, at[i].active ? new[i] : splat(0.0f), lanes);
    }
}

INLINE void update_vector(enum cell cell, size_t phase, const struct update *at, vec product[MAX_GATES]) {
    update_vectors(cell, phase, 1, at, (vec(*)[MAX_GATES])product);
}

/* The same for the backward. */
struct gradient {
    size_t H, lanes;
    int starts_episode;
    const element *saved, *hidden, *h_prev, *cells, *c_prev;
    float *d_h, *d_c;       /* of the state, from step to step */
    element *d_x;           /* [G, H] */
    element *d_gates;       /* [A, H] */
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
        write_n(at->d_gates, d_n * r, lanes);
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
