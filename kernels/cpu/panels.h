/* Weights in the order in which the products read them. */
#ifndef FASTCELLS_PANELS_H
#define FASTCELLS_PANELS_H

#include "grid.h"

/* A product of some gates: their weights for tile j stand at panel(j), [H / TERM][gates][vectors of columns][LANES],
   zero past the last column and the last term. A lane has the TERM weights that one instruction multiplies. */
struct panels {
    size_t H, first_gate, gates;
    size_t vectors; /* of columns in a tile; the last tile may have fewer */
    float *data;
    size_t head, all_gates; /* where W has blocks (heads.h): units of one, and gates of both products; 0 elsewhere */
};

static inline size_t vectors_of(size_t H) { return ceil_div(H, LANES); }
static inline size_t tiles_of(const struct panels *p) { return ceil_div(vectors_of(p->H), p->vectors); }
static inline size_t terms_of(size_t K) { return ceil_div(K, TERM); }
static inline size_t panels_size(size_t H, size_t gates) { return vectors_of(H) * LANES * terms_of(H) * gates; }

static inline size_t vectors_in(const struct panels *p, size_t tile) {
    return min_size(vectors_of(p->H) - tile * p->vectors, p->vectors);
}

static inline float *panel(const struct panels *p, size_t tile) {
    size_t columns = tile * p->vectors * LANES;
    return p->data + columns * terms_of(p->H) * p->gates;
}

/* Rows of K elements each become lanes, LANES of them or fewer and zeros: lane i of to[k * step] is the term that starts
   at rows[i * K + k * TERM]. */
static inline void pack_rows(float *restrict to, size_t step, const element *restrict rows, size_t K, size_t lanes) {
    for (size_t k = 0; k < K; k += LANES * TERM) {
        const size_t count = min_size(K - k, LANES * TERM);
        vec square[LANES];
        if (lanes == LANES && count == LANES * TERM) {
            UNROLL for (size_t i = 0; i < LANES; i++) square[i] = load_terms(rows + i * K + k, LANES * TERM);
        } else {
            for (size_t i = 0; i < LANES; i++) square[i] = i < lanes ? load_terms(rows + i * K + k, count) : splat(0.0f);
        }
        transpose(square);
        for (size_t i = 0; i < terms_of(count); i++) store(to + (k / TERM + i) * step, square[i]);
    }
}

/* W[g][column][k] for out[column] = sum over k of W[column][k] a[k], a gate beside the other. */
static inline void pack_forward(const struct panels *p, const element *restrict w, size_t tile) {
    const size_t H = p->H, count = vectors_in(p, tile), width = p->gates * count;
    float *restrict out = panel(p, tile);
    for (size_t g = 0; g < p->gates; g++) {
        for (size_t v = 0; v < count; v++) {
            const size_t column = (tile * p->vectors + v) * LANES, lanes = lanes_at(H, column);
            const element *rows = w + ((p->first_gate + g) * H + column) * H;
            pack_rows(out + (g * count + v) * LANES, width * LANES, rows, H, lanes);
        }
    }
}

/* W[g][k][column] for out[column] = sum over g and k of a[g][k] W[g][k][column]: the gates lie one after another
   along k. */
static inline void pack_backward(const struct panels *p, const element *restrict w, size_t tile) {
    const size_t H = p->H, K = H * p->gates, count = vectors_in(p, tile);
    const element *restrict from = w + p->first_gate * H * H + tile * p->vectors * LANES;
    float *restrict out = panel(p, tile);
    for (size_t k = 0; k < K; k += TERM) {
        for (size_t v = 0; v < count; v++) {
            const size_t column = (tile * p->vectors + v) * LANES, lanes = lanes_at(H, column);
            store(out + (k / TERM * count + v) * LANES,
                  load_columns(from + k * H + v * LANES, H, min_size(K - k, TERM), lanes));
        }
    }
}

#endif
