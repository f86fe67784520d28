/* One layer and direction in one call: its weights where they lie, packed, and kept packed from one call to the next,
   beside what is expected; x and out with gaps between their rows, and in either order of time and batch. */
#ifndef CPU_SANITIZERS_LAYER_CASES_H
#define CPU_SANITIZERS_LAYER_CASES_H

#include "expected.h"

static int run_layer(const void *kernel, const void *task, int threads) {
    return ((const struct backend *)kernel)->layer(task, threads);
}

/* From a step to the next and from a row to the next, for rows of so many columns; returns the floats that this takes. */
static size_t strides(size_t T, size_t B, size_t columns, size_t *time, size_t *row) {
    const size_t step = columns + (below(2) ? below(4) : 0);
    if (below(2))
        *row = step, *time = B * step;
    else
        *time = step, *row = T * step;
    return (T - 1) * *time + (B - 1) * *row + columns;
}

/* How a call gets at its weights. */
enum weights { WHERE_THEY_LIE, PACKED, PACKED_TO_KEEP, KEPT, NUM_WAYS };
static const char *const WAYS[NUM_WAYS] = {"", ", packed", ", packed to keep", ", kept"};

static void layer_case(const struct backend *backend, enum cell cell, size_t T, size_t B, size_t H, size_t I) {
    const size_t G = CELL_FACTS[cell].gates, plane = B * H;
    const int lstm = cell == LSTM, starts = (int)below(3);
    struct layer l = {.cell = cell, .T = T, .B = B, .H = H, .I = I, .reverse = (int)below(2)};
    l.x = floats(strides(T, B, I, &l.x_time, &l.x_row), 1.0);
    const size_t size = strides(T, B, H, &l.out_time, &l.out_row);
    l.w_ih = floats(G * H * I, 1.0 / sqrt((double)I)), l.w = floats(G * H * H, 1.0 / sqrt((double)H));
    l.b_ih = below(2) ? floats(G * H, 1.0) : NULL, l.b = below(2) ? floats(G * H, 1.0) : NULL;
    l.h0 = starts ? floats(plane, 1.0) : NULL, l.c0 = starts == 2 && lstm ? floats(plane, 1.0) : NULL;
    const int last = (int)below(4) > 0;

    const struct forward f = {.cell = cell, .T = T, .B = B, .H = H, .w = l.w, .b = l.b};
    double *x = doubles(G * H), *zero = doubles(G * H), *h = doubles(plane), *c = doubles(plane);
    double *new_h = doubles(H), *reset_hidden = doubles(H), *out = doubles(T * plane);
    memset(zero, 0, G * H * sizeof *zero);
    for (size_t i = 0; i < plane; i++) h[i] = l.h0 ? (double)l.h0[i] : 0.0, c[i] = l.c0 ? (double)l.c0[i] : 0.0;
    for (size_t i = 0; i < T; i++) {
        const size_t t = l.reverse ? T - 1 - i : i;
        for (size_t row = 0; row < B; row++) {
            const float *from = l.x + t * l.x_time + row * l.x_row;
            for (size_t k = 0; k < G * H; k++) {
                x[k] = l.b_ih ? (double)l.b_ih[k] : 0.0;
                for (size_t j = 0; j < I; j++) x[k] += (double)l.w_ih[k * I + j] * (double)from[j];
            }
            naive_step(&f, x, zero, h + row * H, c + row * H, new_h, reset_hidden);
            memcpy(h + row * H, new_h, H * sizeof *h);
            memcpy(out + (t * B + row) * H, new_h, H * sizeof *out);
        }
    }
    /* The weights may have been packed for another number of rows. */
    const size_t panels = backend->layer_panels(cell, 1 + below(9), H, I, 1 + (int)below(3), &l.vectors);
    const float *from_packed = NULL;
    l.chunk = 1 + below(T);
    for (enum weights way = 0; way < NUM_WAYS; way++) {
        l.packed = way > WHERE_THEY_LIE, l.kept = way == KEPT;
        if (l.kept) l.w_ih = l.w = NULL;
        snprintf(where, sizeof where, "%s, layer, cell %d, T %zu, B %zu, H %zu, I %zu%s%s%s", backend->name, cell, T, B,
                 H, I, l.reverse ? ", reverse" : "", WAYS[way], l.h0 ? ", state" : "");
        struct output outputs[] = {{"out", &l.out, size},
                                   {"h_n", &l.h_n, last ? plane : 0},
                                   {"c_n", &l.c_n, lstm ? plane : 0},
                                   {"x_proj", &l.x_proj, below(2) ? (l.packed ? l.chunk : T) * plane * G : 0},
                                   {"panels", &l.panels, panels}};
        run_threads(outputs, way == PACKED_TO_KEEP ? 5 : 4, run_layer, backend, &l);
        if (way == PACKED) from_packed = l.out;
        if (way > PACKED && memcmp(l.out, from_packed, size * sizeof *l.out)) FAIL("other bits than packed in the call");
        char *seen = bytes(size);
        memset(seen, 0, size);
        for (size_t t = 0; t < T; t++) {
            for (size_t row = 0; row < B; row++) {
                for (size_t k = 0; k < H; k++) {
                    const size_t at = t * l.out_time + row * l.out_row + k;
                    seen[at] = 1;
                    check("out", at, (double)l.out[at], out[(t * B + row) * H + k], 1.0);
                }
            }
        }
        for (size_t i = 0; i < size; i++)
            if (!seen[i] && !isnan(l.out[i])) FAIL("out[%zu], between two rows, has been written", i);
        for (size_t i = 0; l.h_n && i < plane; i++) check("h_n", i, (double)l.h_n[i], h[i], 1.0);
        for (size_t i = 0; l.c_n && i < plane; i++) check("c_n", i, (double)l.c_n[i], c[i], fmax(1.0, fabs(c[i])));
    }
}

#endif
