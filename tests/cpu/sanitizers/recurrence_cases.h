/* The recurrence, forward and backward, one step in place, and the activations: each beside what is expected. */
#ifndef CPU_SANITIZERS_RECURRENCE_CASES_H
#define CPU_SANITIZERS_RECURRENCE_CASES_H

#include "expected.h"

/* Is the gradient, in one direction, what the difference quotient of the loss says? */
static void check_gradient(const char *what, const struct forward *f, const struct backward *b, const float *gradient,
                           size_t n, const double **direction, struct nudge *by) {
    const size_t plane = f->B * f->H;
    const int keep = holding;
    double *hidden = doubles(f->T * plane), *h = doubles(plane), *c = doubles(plane), *along = doubles(n);
    double dot = 0.0, square = 0.0, quotient = 0.0;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(gradient[i])) FAIL("%s[%zu] is %g", what, i, (double)gradient[i]);
        dot += (double)gradient[i] * along[i];
        square += (double)gradient[i] * (double)gradient[i];
    }
    *direction = along;
    for (int sign = -1; sign <= 1; sign += 2) {
        by->step = sign * 1e-6; /* small: relu's kinks are seldom in between */
        quotient += naive_forward(f, b, by, hidden, h, c) / (2 * by->step);
    }
    *direction = NULL;
    check(what, n, dot, quotient, sqrt(square));
    release(keep);
}

static int run_forward(const void *kernel, const void *task, int threads) {
    return ((const struct backend *)kernel)->forward(task, threads);
}
static int run_backward(const void *kernel, const void *task, int threads) {
    return ((const struct backend *)kernel)->backward(task, threads);
}

static void recurrence_case(const struct backend *backend, enum cell cell, size_t T, size_t B, size_t H) {
    const size_t G = CELL_FACTS[cell].gates, A = CELL_FACTS[cell].apart_gates, S = CELL_FACTS[cell].num_saved;
    const size_t plane = B * H, all = T * plane;
    const int lstm = cell == LSTM, save = below(4) > 0;
    const double scale = 1.0 / sqrt((double)H); /* so that states stay near 1 */
    struct forward f = {.cell = cell, .T = T, .B = B, .H = H, .reverse = (int)below(2)};
    f.x = floats(all * G, 1.0), f.w = floats(G * H * H, scale), f.b = below(3) ? floats(G * H, 1.0) : NULL;
    f.h0 = floats(plane, 1.0), f.c0 = lstm ? floats(plane, 1.0) : NULL;
    if (below(2)) {
        int64_t *lengths = bytes(B * sizeof *lengths);
        for (size_t i = 0; i < B; i++) lengths[i] = (int64_t)below(T + 3) - 1; /* below 0 and above T, too */
        f.lengths = lengths;
    }
    if (below(2)) {
        uint8_t *resets = bytes(T * B);
        for (size_t i = 0; i < T * B; i++) resets[i] = below(3) == 0;
        f.resets = resets;
    }
    snprintf(where, sizeof where, "%s, cell %d, T %zu, B %zu, H %zu%s%s%s%s%s", backend->name, cell, T, B, H,
             f.reverse ? ", reverse" : "", f.b ? ", bias" : "", f.lengths ? ", lengths" : "", f.resets ? ", resets" : "",
             save ? ", save" : "");
    const int apart = f.lengths || save || below(2); /* otherwise `out` serves as `hidden` */
    struct output forward_outputs[] = {
        {"out", &f.out, !apart || below(2) ? all : 0},
        {"hidden", &f.hidden, apart ? all : 0},
        {"cells", &f.cells, lstm && save ? all : 0},
        {"saved", &f.saved, save ? all * S : 0},
        {"h_n", &f.h_n, plane},
        {"c_n", &f.c_n, lstm ? plane : 0},
    };
    run_threads(forward_outputs, 6, run_forward, backend, &f);

    struct nudge by = {0};
    double *hidden = doubles(all), *h = doubles(plane), *c = doubles(plane);
    naive_forward(&f, NULL, &by, hidden, h, c);
    for (size_t i = 0; f.hidden && i < all; i++) check("hidden", i, (double)f.hidden[i], hidden[i], fabs(hidden[i]));
    for (size_t i = 0; f.out && i < all; i++) {
        const double expected = !f.lengths || (int64_t)(i / plane) < f.lengths[i / H % B] ? hidden[i] : 0.0;
        check("out", i, (double)f.out[i], expected, fabs(expected));
    }
    for (size_t i = 0; i < plane; i++) check("h_n", i, (double)f.h_n[i], h[i], fabs(h[i]));
    for (size_t i = 0; lstm && i < plane; i++) check("c_n", i, (double)f.c_n[i], c[i], fabs(c[i]));
    if (!save) return;

    struct backward b = {.cell = cell, .T = T, .B = B, .H = H, .reverse = f.reverse, .w = f.w, .lengths = f.lengths};
    b.resets = f.resets, b.h0 = f.h0, b.c0 = f.c0, b.hidden = f.hidden, b.cells = f.cells, b.saved = f.saved;
    b.d_hidden = floats(all, 1.0), b.d_h_n = floats(plane, 1.0), b.d_c_n = lstm ? floats(plane, 1.0) : NULL;
    struct output backward_outputs[] = {
        {"d_x", &b.d_x, all * G},
        {"d_gates", &b.d_gates, all * A},
        {"d_h0", &b.d_h0, plane},
        {"d_c0", &b.d_c0, lstm ? plane : 0},
    };
    run_threads(backward_outputs, 4, run_backward, backend, &b);
    check_gradient("d_x", &f, &b, b.d_x, all * G, &by.x, &by);
    float *d_product = bytes(all * G * sizeof *d_product); /* of every gate: the last ones are in `d_gates` */
    memcpy(d_product, b.d_x, all * G * sizeof *d_product);
    for (size_t token = 0; A && token < T * B; token++)
        memcpy(d_product + (token * G + G - A) * H, b.d_gates + token * A * H, A * H * sizeof *d_product);
    check_gradient("d_gates", &f, &b, d_product, all * G, &by.product, &by);
    check_gradient("d_h0", &f, &b, b.d_h0, plane, &by.h0, &by);
    if (lstm) check_gradient("d_c0", &f, &b, b.d_c0, plane, &by.c0, &by);
}

static void step_in_place_case(const struct backend *backend, enum cell cell, size_t H, size_t I) {
    const size_t G = CELL_FACTS[cell].gates;
    struct step_in_place s = {.cell = cell, .H = H, .I = I, .id = below(2) ? below(I) : I};
    s.x = s.id == I ? floats(I, 1.0) : NULL;
    s.w_ih = floats(G * H * I, 1.0 / sqrt((double)I)), s.w_hh = floats(G * H * H, 1.0 / sqrt((double)H));
    s.b_ih = below(2) ? floats(G * H, 1.0) : NULL, s.b_hh = below(2) ? floats(G * H, 1.0) : NULL;
    snprintf(where, sizeof where, "%s, step_in_place, cell %d, H %zu, I %zu, id %zu", backend->name, cell, H, I,
             s.id);
    const float *h0 = floats(H, 1.0), *c0 = floats(H, 1.0);
    const struct forward f = {.cell = cell, .T = 1, .B = 1, .H = H, .w = s.w_hh, .b = s.b_hh};
    double *x = doubles(G * H), *zero = doubles(G * H), *h = doubles(H), *c = doubles(H);
    double *new_h = doubles(H), *reset_hidden = doubles(H);
    for (size_t k = 0; k < G * H; k++) {
        zero[k] = 0.0;
        x[k] = s.b_ih ? (double)s.b_ih[k] : 0.0;
        for (size_t i = 0; i < I; i++)
            x[k] += (double)s.w_ih[k * I + i] * (s.x ? (double)s.x[i] : (double)(i == s.id));
    }
    for (size_t k = 0; k < H; k++) h[k] = (double)h0[k], c[k] = (double)c0[k];
    naive_step(&f, x, zero, h, c, new_h, reset_hidden);
    for (int threads = 1; threads <= MOST_THREADS; threads++) {
        s.h = unwritten(H), s.c = cell == LSTM ? unwritten(H) : NULL;
        memcpy(s.h, h0, H * sizeof *s.h);
        if (s.c) memcpy(s.c, c0, H * sizeof *s.c);
        if (backend->step_in_place(&s, threads)) FAIL("out of memory");
        for (size_t k = 0; k < H; k++) check("h", k, (double)s.h[k], new_h[k], 1.0);
        for (size_t k = 0; s.c && k < H; k++) check("c", k, (double)s.c[k], c[k], fmax(1.0, fabs(c[k])));
    }
}

static void activations_case(const struct backend *backend, size_t n) {
    float *x = floats(n, 20.0), *s = unwritten(n), *t = unwritten(n);
    const float special[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f, FLT_MAX, -FLT_MAX, FLT_MIN / 2, -90.0f};
    for (size_t i = 0; i < n && i < sizeof special / sizeof *special; i++) x[i] = special[i];
    snprintf(where, sizeof where, "%s, activations of %zu", backend->name, n);
    backend->activations(x, s, t, n);
    for (size_t i = 0; i < n; i++) {
        if (isnan(x[i]) ? isnan(s[i]) && isnan(t[i]) : 0) continue;
        check("sigmoid", i, (double)s[i], sigmoid_of((double)x[i]), 1.0);
        check("tanh", i, (double)t[i], tanh((double)x[i]), 1.0);
    }
}

#endif
