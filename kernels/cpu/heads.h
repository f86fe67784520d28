/* Recurrent weights in blocks: W [heads][G][D][D], of which a head's D units multiply their own head's alone. A tile of
   columns reads the units of the heads that it touches; where it touches several, weights between them are zeros. */
#ifndef FASTCELLS_HEADS_H
#define FASTCELLS_HEADS_H

#include "panels.h"

/* The units that a tile's columns multiply. */
static inline struct range units_of(const struct panels *p, size_t tile) {
    const size_t D = p->head, first = tile * p->vectors * LANES, end = min_size(first + p->vectors * LANES, p->H);
    if (!D) return (struct range){0, p->H};
    return (struct range){first / D * D, ceil_div(end, D) * D};
}

/* The row of W that gives unit `unit` of a gate. */
INLINE const float *unit_row(const struct panels *p, const float *w, size_t gate, size_t unit) {
    const size_t D = p->head;
    return w + ((unit / D * p->all_gates + p->first_gate + gate) * D + unit % D) * D;
}

/* A tile multiplies as many gates at once as registers allow: the panels of group `i` of these. */
static inline size_t groups_of(const struct panels *p) { return ceil_div(p->gates, MAX_WIDTH); }
static inline struct panels group_of(const struct panels *p, size_t i) {
    struct panels group = *p;
    group.first_gate += i * MAX_WIDTH;
    group.gates = min_size(p->gates - i * MAX_WIDTH, MAX_WIDTH);
    group.data += panels_size(p->H, i * MAX_WIDTH);
    return group;
}

/* As pack_forward, with the terms of units_of. */
static inline void pack_group(const struct panels *p, const float *restrict w, size_t tile) {
    if (!p->head) {
        pack_forward(p, w, tile);
        return;
    }
    const size_t D = p->head, count = vectors_in(p, tile), width = p->gates * count;
    const struct range units = units_of(p, tile);
    float *restrict out = panel(p, tile);
    memset(out, 0, (units.end - units.first) * width * LANES * sizeof(float));
    for (size_t i = 0; i < width; i++) {
        const size_t gate = i / count, column = (tile * p->vectors + i % count) * LANES;
        const size_t lanes = lanes_at(p->H, column), head = column / D * D;
        if (column + lanes <= head + D) {
            pack_rows(out + ((head - units.first) * width + i) * LANES, width * LANES, unit_row(p, w, gate, column), D,
                      lanes);
            continue;
        }
        for (size_t lane = 0; lane < lanes; lane++) {
            const float *row = unit_row(p, w, gate, column + lane);
            const size_t from = (column + lane) / D * D - units.first;
            for (size_t k = 0; k < D; k++) out[((from + k) * width + i) * LANES + lane] = row[k];
        }
    }
}
static inline void pack_forward_heads(const struct panels *p, const float *restrict w, size_t tile) {
    for (size_t i = 0; i < groups_of(p); i++) {
        const struct panels group = group_of(p, i);
        pack_group(&group, w, tile);
    }
}

/* As pack_backward: of each gate the units of units_of. */
static inline void pack_backward_heads(const struct panels *p, const float *restrict w, size_t tile) {
    if (!p->head) {
        pack_backward(p, w, tile);
        return;
    }
    const size_t D = p->head, count = vectors_in(p, tile), start = tile * p->vectors * LANES;
    const size_t end = min_size(start + count * LANES, p->H);
    const struct range units = units_of(p, tile);
    float *restrict out = panel(p, tile);
    memset(out, 0, p->gates * (units.end - units.first) * count * LANES * sizeof(float));
    for (size_t gate = 0; gate < p->gates; gate++) {
        for (size_t unit = units.first; unit < units.end; unit++, out += count * LANES) {
            const size_t head = unit / D * D, first = head > start ? head : start;
            memcpy(out + first - start, unit_row(p, w, gate, unit) + first - head,
                   (min_size(head + D, end) - first) * sizeof(float));
        }
    }
}

/* out = sum over some gates of a row, `step` apart, and over a tile's units from a's first on. Each head's part is a sum
   by itself, in the same order whatever else the tile reads. list: prefetched in the first part. */
static inline void gemm_heads(size_t rows, size_t width, tile_t out, const float *a, size_t a_stride, size_t gates,
                              size_t step, const float *panel, size_t units, size_t D, const struct prefetch *list) {
    const gemm_part_fn part = GEMM_PART_OF[width - 1][rows - 1];
    const size_t to = tile_step(width);
    size_t lines = list->count;
    for (size_t gate = 0; gate < gates; gate++) {
        for (size_t k = 0, terms; k < units; k += terms) {
            const size_t left = D - k % D, done = gate * units + k;
            terms = left < PART ? left : PART;
            part((float *)out, to, done ? (float *)out : NULL, to, a + gate * step + k, a_stride, 1,
                 panel + done * width * LANES, terms, list->line, lines);
            lines = 0;
        }
    }
}

#endif
