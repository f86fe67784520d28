/* Weights in the order in which the products read them. */
#ifndef FASTCELLS_PANELS_H
#define FASTCELLS_PANELS_H

#include "grid.h"

/* A product of some gates: their weights for tile j stand at panel(j), [H][gates][vectors of columns][LANES], zero
   past the last column. */
struct panels {
    size_t H, first_gate, gates;
    size_t vectors; /* of columns in a tile; the last tile may have fewer */
    float *data;
};

static inline size_t vectors_of(size_t H) { return ceil_div(H, LANES); }
static inline size_t tiles_of(const struct panels *p) { return ceil_div(vectors_of(p->H), p->vectors); }
static inline size_t panels_size(size_t H, size_t gates) { return vectors_of(H) * LANES * H * gates; }

static inline size_t vectors_in(const struct panels *p, size_t tile) {
    return min_size(vectors_of(p->H) - tile * p->vectors, p->vectors);
}

static inline float *panel(const struct panels *p, size_t tile) {
    size_t columns = tile * p->vectors * LANES;
    return p->data + columns * p->H * p->gates;
}

/* Rows of K terms each become lanes, LANES of them or fewer and zeros: lane i of to[k * step] is rows[i * K + k]. */
static inline void pack_rows(float *restrict to, size_t step, const float *restrict rows, size_t K, size_t lanes) {
    for (size_t k = 0; k < K; k += LANES) {
        const size_t terms = lanes_at(K, k);
        vec square[LANES];
        if (lanes == LANES && terms == LANES) {
            UNROLL for (size_t i = 0; i < LANES; i++) square[i] = load(rows + i * K + k);
        } else {
            for (size_t i = 0; i < LANES; i++) square[i] = i < lanes ? load_n(rows + i * K + k, terms) : splat(0.0f);
        }
        transpose(square);
        for (size_t i = 0; i < terms; i++) store(to + (k + i) * step, square[i]);
    }
}

/* W[g][column][k] for out[column] = sum over k of W[column][k] a[k], a gate beside the other. */
static inline void pack_forward(const struct panels *p, const float *restrict w, size_t tile) {
    const size_t H = p->H, count = vectors_in(p, tile), width = p->gates * count;
    float *restrict out = panel(p, tile);
    for (size_t g = 0; g < p->gates; g++) {
        for (size_t v = 0; v < count; v++) {
            const size_t column = (tile * p->vectors + v) * LANES, lanes = lanes_at(H, column);
            const float *rows = w + ((p->first_gate + g) * H + column) * H;
            pack_rows(out + (g * count + v) * LANES, width * LANES, rows, H, lanes);
        }
    }
}

/* W[g][k][column] for out[column] = sum over g and k of a[g][k] W[g][k][column]: the gates lie one after another
   along k. */
static inline void pack_backward(const struct panels *p, const float *restrict w, size_t tile) {
    const size_t H = p->H, count = vectors_in(p, tile);
    const float *restrict from = w + p->first_gate * H * H + tile * p->vectors * LANES;
    float *restrict out = panel(p, tile);
    for (size_t k = 0; k < H * p->gates; k++) {
        for (size_t v = 0; v < count; v++) {
            const size_t column = (tile * p->vectors + v) * LANES, lanes = lanes_at(H, column);
            store(out + (k * count + v) * LANES, load_n(from + k * H + v * LANES, lanes));
        }
    }
}

#endif
