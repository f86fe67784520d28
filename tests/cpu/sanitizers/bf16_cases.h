/* bfloat16: the recurrences' forward and the products beside double precision, and the backward's bits for each number
   of threads; what its gradients are worth is for Python's tests to say. */
#ifndef CPU_SANITIZERS_BF16_CASES_H
#define CPU_SANITIZERS_BF16_CASES_H

#include "expected.h"

/* Random numbers that bfloat16 has, aligned to their 2 bytes and no more; in `wide` the same ones as floats. */
static const bfloat16 *halves_of(size_t n, double scale, const float **wide) {
    bfloat16 *p = bytes((n + 1) * sizeof *p);
    float *same = bytes(n * sizeof *same);
    for (size_t i = 0; i < n; i++) {
        const float value = (float)(uniform() * scale);
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        p[i + 1] = (bfloat16)(bits >> 16);
        bits &= 0xffff0000u;
        memcpy(&same[i], &bits, sizeof bits);
    }
    *wide = same;
    return p + 1;
}

/* NaN, in memory of exactly its size. */
static bfloat16 *unwritten_halves(size_t n) {
    bfloat16 *p = bytes((n - OVERRUN) * sizeof *p);
    for (size_t i = 0; i < n - OVERRUN; i++) p[i] = 0x7fff;
    return p;
}

struct bf16_output {
    bfloat16 **place;
    size_t size;
};

/* New memory for each output, and what one thread wrote to compare with. */
static void same_bits(struct bf16_output *outputs, size_t count, bfloat16 **first, int threads) {
    for (size_t i = 0; i < count; i++) {
        if (threads == 1)
            first[i] = *outputs[i].place;
        else if (outputs[i].size && memcmp(first[i], *outputs[i].place, outputs[i].size * sizeof(bfloat16)))
            FAIL("output %zu differs between 1 and %d threads", i, threads);
    }
}

/* 8 bits a number, and in a recurrence what their rounding does to later steps: a wrong term is off by more. */
static void check_half(const char *what, size_t at, bfloat16 actual, double expected, double scale) {
    const uint32_t bits = (uint32_t)actual << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    if (!(fabs((double)value - expected - WRONG * 100) <= 0.05 * fmax(scale, fabs(expected))))
        FAIL("%s[%zu] is %g instead of %g", what, at, (double)value, expected);
}

static void bf16_case(const struct bf16_backend *backend, enum cell cell, size_t T, size_t B, size_t H) {
    const size_t G = CELL_FACTS[cell].gates, S = CELL_FACTS[cell].num_saved, plane = B * H, all = T * plane;
    const int lstm = cell == LSTM, keep = holding;
    const double scale = 1.0 / sqrt((double)H);
    struct forward wide = {.cell = cell, .T = T, .B = B, .H = H, .reverse = (int)below(2)};
    struct forward_bf16 f = {.cell = cell, .T = T, .B = B, .H = H, .reverse = wide.reverse};
    f.x = halves_of(all * G, 1.0, &wide.x), f.w = halves_of(G * H * H, scale, &wide.w);
    f.b = halves_of(G * H, 1.0, &wide.b), f.h0 = halves_of(plane, 1.0, &wide.h0);
    if (lstm) f.c0 = halves_of(plane, 1.0, &wide.c0);
    if (below(2)) {
        int64_t *lengths = bytes(B * sizeof *lengths);
        for (size_t i = 0; i < B; i++) lengths[i] = (int64_t)below(T + 3) - 1;
        f.lengths = wide.lengths = lengths;
    }
    if (below(2)) {
        uint8_t *resets = bytes(T * B);
        for (size_t i = 0; i < T * B; i++) resets[i] = below(3) == 0;
        f.resets = wide.resets = resets;
    }
    snprintf(where, sizeof where, "%s, cell %d, T %zu, B %zu, H %zu", backend->name, cell, T, B, H);

    struct bf16_output forward_outputs[] = {
        {&f.out, all},  {&f.hidden, all}, {&f.cells, lstm ? all : 0}, {&f.saved, all * S},
        {&f.h_n, plane}, {&f.c_n, lstm ? plane : 0},
    };
    bfloat16 *first[6];
    for (int threads = 1; threads <= MOST_THREADS; threads++) {
        for (size_t i = 0; i < 6; i++)
            *forward_outputs[i].place = forward_outputs[i].size ? unwritten_halves(forward_outputs[i].size) : NULL;
        if (backend->forward(&f, threads)) FAIL("out of memory");
        same_bits(forward_outputs, 6, first, threads);
    }
    struct nudge by = {0};
    double *hidden = doubles(all), *h = doubles(plane), *c = doubles(plane);
    naive_forward(&wide, NULL, &by, hidden, h, c);
    for (size_t i = 0; i < all; i++) check_half("hidden", i, f.hidden[i], hidden[i], 1.0);

    struct backward_bf16 b = {.cell = cell, .T = T, .B = B, .H = H, .reverse = f.reverse, .w = f.w};
    const float *unused;
    b.lengths = f.lengths, b.resets = f.resets, b.h0 = f.h0, b.c0 = f.c0;
    b.hidden = f.hidden, b.cells = f.cells, b.saved = f.saved;
    b.d_hidden = halves_of(all, 1.0, &unused), b.d_h_n = halves_of(plane, 1.0, &unused);
    b.d_c_n = lstm ? halves_of(plane, 1.0, &unused) : NULL;
    struct bf16_output backward_outputs[] = {
        {&b.d_x, all * G}, {&b.d_gates, all * CELL_FACTS[cell].apart_gates}, {&b.d_h0, plane},
        {&b.d_c0, lstm ? plane : 0},
    };
    for (int threads = 1; threads <= MOST_THREADS; threads++) {
        for (size_t i = 0; i < 4; i++)
            *backward_outputs[i].place = backward_outputs[i].size ? unwritten_halves(backward_outputs[i].size) : NULL;
        if (backend->backward(&b, threads)) FAIL("out of memory");
        same_bits(backward_outputs, 4, first, threads);
    }
    for (size_t i = 0; i < all * G; i++)
        if ((b.d_x[i] & 0x7f80) == 0x7f80) FAIL("d_x[%zu] is not finite", i);
    release(keep);
}

static void bf16_linear_case(const struct bf16_backend *backend, size_t rows, size_t K, size_t columns) {
    struct linear_bf16 l = {.rows = rows, .K = K, .columns = columns, .x_stride = K + below(3), .transposed = (int)below(2)};
    const int keep = holding;
    const float *x, *w, *b = NULL;
    l.x = halves_of((rows - 1) * l.x_stride + K, 1.0, &x), l.w = halves_of(K * columns, 1.0, &w);
    if (below(2)) l.b = halves_of(columns, 1.0, &b);
    l.out_stride = columns;
    snprintf(where, sizeof where, "%s, linear, %zu rows, %zu terms, %zu columns", backend->name, rows, K, columns);
    struct bf16_output outputs[] = {{&l.out, rows * columns}};
    bfloat16 *first[1];
    for (int threads = 1; threads <= MOST_THREADS; threads++) {
        l.out = unwritten_halves(rows * columns);
        if (backend->linear(&l, threads)) FAIL("out of memory");
        same_bits(outputs, 1, first, threads);
    }
    for (size_t r = 0; r < rows; r++) {
        for (size_t j = 0; j < columns; j++) {
            double sum = b ? (double)b[j] : 0.0;
            for (size_t k = 0; k < K; k++)
                sum += (double)x[r * l.x_stride + k] * (double)w[l.transposed ? k * columns + j : j * K + k];
            check_half("out", r * columns + j, l.out[r * columns + j], sum, 1.0);
        }
    }
    release(keep);
}

static void bf16_weight_grad_case(const struct bf16_backend *backend, size_t tokens, size_t rows, size_t columns) {
    const size_t rest = below(2) ? below(rows + 1) : 0, first_rows = rows - rest;
    struct weight_grad_bf16 g = {.tokens = tokens, .rows = rows, .columns = columns, .rest_rows = rest};
    const int keep = holding;
    const float *d, *d_rest = NULL, *x, *x_rest;
    g.split = below(tokens + 1), g.d_stride = first_rows + below(3), g.rest_stride = rest + below(3);
    g.d = halves_of((tokens - 1) * g.d_stride + first_rows, 1.0, &d);
    if (rest) g.d_rest = halves_of((tokens - 1) * g.rest_stride + rest, 1.0, &d_rest);
    g.x = halves_of(g.split * columns, 1.0, &x);
    g.x_rest = halves_of((tokens - g.split) * columns, 1.0, &x_rest);
    snprintf(where, sizeof where, "%s, weight_grad, %zu tokens, %zu rows, %zu columns", backend->name, tokens, rows,
             columns);
    struct bf16_output outputs[] = {{&g.d_w, rows * columns}, {&g.d_b, rows}};
    bfloat16 *first[2];
    for (int threads = 1; threads <= MOST_THREADS; threads++) {
        g.d_w = unwritten_halves(rows * columns), g.d_b = unwritten_halves(rows);
        if (backend->weight_grad(&g, threads)) FAIL("out of memory");
        same_bits(outputs, 2, first, threads);
    }
    for (size_t r = 0; r < rows; r++) {
        const float *own = r < first_rows ? d + r : d_rest + (r - first_rows);
        const size_t apart = r < first_rows ? g.d_stride : g.rest_stride;
        double bias = 0.0;
        for (size_t k = 0; k < tokens; k++) bias += (double)own[k * apart];
        check_half("d_b", r, g.d_b[r], bias, 1.0);
        for (size_t j = 0; j < columns; j++) {
            double sum = 0.0;
            for (size_t k = 0; k < tokens; k++)
                sum += (double)own[k * apart] *
                       (double)(k < g.split ? x[k * columns + j] : x_rest[(k - g.split) * columns + j]);
            check_half("d_w", r * columns + j, g.d_w[r * columns + j], sum, 1.0);
        }
    }
    release(keep);
}

#endif
