/* The C kernels without Python, for a sanitizer to watch: every cell, set of instructions and number of threads, on
   shapes that fill nothing evenly, in heap buffers of exactly their size. What they compute is checked against loops
   in double precision, and has to be the same bits for every number of threads.

   cpu_sanitizers [instructions]: all sets that the machine has, or one.

   -DOVERRUN, -DRACY and -DWRONG plant a fault each: test_cpu_sanitizers.py sees that they are found. */
#define _GNU_SOURCE
#include <float.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends.h"
#include "ids.h"
#include "team.h"

#ifndef OVERRUN
#define OVERRUN 0 /* floats that each output is too small */
#endif
#ifndef WRONG
#define WRONG 0.0 /* what the expected numbers are off by */
#endif

enum { MOST_THREADS = 4, RANDOM_SHAPES = 6 };

/* Two computations of one small formula differ by a few roundings, a wrong term by its size: 256 lie between. */
static const double TOLERANCE = 256 * FLT_EPSILON;

static char where[200]; /* what is running, for messages */

#define FAIL(...) (fprintf(stderr, "%s: ", where), fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), exit(1))

static void check(const char *what, size_t at, double actual, double expected, double scale) {
    expected += WRONG;
    if (!(fabs(actual - expected) <= TOLERANCE * fmax(1.0, scale)))
        FAIL("%s[%zu] is %.9g instead of %.9g", what, at, actual, expected);
}

/* ---- random numbers and memory ---- */

static uint64_t state = 20261122;

static uint64_t random_bits(void) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
}
static size_t below(size_t n) { return (size_t)(random_bits() >> 16) % n; }
static double uniform(void) { return (double)(random_bits() >> 11) / (double)(1ull << 52) - 1.0; } /* in [-1, 1) */

static void *held[200]; /* what the case at hand has allocated */
static int holding;

static void *bytes(size_t n) {
    void *memory = malloc(n ? n : 1);
    if (!memory || holding == sizeof held / sizeof *held) FAIL("out of memory");
    return held[holding++] = memory;
}

static void release(int keep) {
    while (holding > keep) free(held[--holding]);
}

/* Floats that end where their memory ends, and that are aligned as a float and no more. */
static float *floats(size_t n, double scale) {
    float *p = bytes((n + 1) * sizeof(float));
    for (size_t i = 0; i <= n; i++) p[i] = (float)(uniform() * scale);
    return p + 1;
}

/* NaN, so that what is not written shows. */
static float *unwritten(size_t n) {
    float *p = bytes((n - OVERRUN) * sizeof(float));
    for (size_t i = 0; i < n - OVERRUN; i++) p[i] = NAN;
    return p;
}

static double *doubles(size_t n) {
    double *p = bytes(n * sizeof(double));
    for (size_t i = 0; i < n; i++) p[i] = uniform();
    return p;
}

/* ---- the expected numbers ---- */

/* Directions in which the inputs of a layer are moved, by `step`. */
struct nudge {
    double step;
    const double *x, *product, *h0, *c0; /* product: [T, B, G, H], of h W^T + b */
};

static double sigmoid_of(double x) { return 1.0 / (1.0 + exp(-x)); }

/* h W^T + b of one gate and column. */
static double recurrent(const struct forward *f, const double *h, size_t gate, size_t column) {
    double sum = f->b ? (double)f->b[gate * f->H + column] : 0.0;
    for (size_t k = 0; k < f->H; k++) sum += (double)f->w[(gate * f->H + column) * f->H + k] * h[k];
    return sum;
}

static double moved(double value, const double *direction, size_t at, double step) {
    return direction ? value + step * direction[at] : value;
}

/* The new h (and c, in place) of one row; x: [G, H]; product: added to h W^T + b. */
static void naive_step(const struct forward *f, const double *x, const double *product, const double *h, double *c,
                       double *new_h, double *reset_hidden) {
    const size_t H = f->H;
    if (f->cell == GRU_RESET_BEFORE) {
        for (size_t j = 0; j < H; j++) reset_hidden[j] = h[j] * sigmoid_of(x[j] + recurrent(f, h, 0, j) + product[j]);
    }
    for (size_t j = 0; j < H; j++) {
        double p[4] = {0};
        for (size_t g = 0; g < CELL_FACTS[f->cell].gates; g++) {
            const double *from = f->cell == GRU_RESET_BEFORE && g == 2 ? reset_hidden : h;
            p[g] = recurrent(f, from, g, j) + product[g * H + j];
        }
        switch (f->cell) {
        case RNN_TANH: new_h[j] = tanh(x[j] + p[0]); break;
        case RNN_RELU: new_h[j] = fmax(0.0, x[j] + p[0]); break;
        case GRU_RESET_AFTER:
        case GRU_RESET_BEFORE: {
            double r = f->cell == GRU_RESET_AFTER ? sigmoid_of(x[j] + p[0]) : 1.0;
            double z = sigmoid_of(x[H + j] + p[1]), n = tanh(x[2 * H + j] + r * p[2]);
            new_h[j] = (1.0 - z) * n + z * h[j];
            break;
        }
        default: /* LSTM */
            c[j] = sigmoid_of(x[H + j] + p[1]) * c[j] + sigmoid_of(x[j] + p[0]) * tanh(x[2 * H + j] + p[2]);
            new_h[j] = sigmoid_of(x[3 * H + j] + p[3]) * tanh(c[j]);
        }
    }
}

/* The sum of all outputs times their gradients. hidden: [T, B, H]; last_h, last_c: [B, H]; all out. */
static double naive_forward(const struct forward *f, const struct backward *b, const struct nudge *by, double *hidden,
                            double *last_h, double *last_c) {
    const size_t T = f->T, B = f->B, H = f->H, GH = CELL_FACTS[f->cell].gates * H;
    const int keep = holding;
    double loss = 0.0, *x = doubles(GH), *product = doubles(GH), *new_h = doubles(H), *reset_hidden = doubles(H);
    for (size_t i = 0; i < B * H; i++) {
        last_h[i] = moved((double)f->h0[i], by->h0, i, by->step);
        last_c[i] = f->c0 ? moved((double)f->c0[i], by->c0, i, by->step) : 0.0;
    }
    for (size_t i = 0; i < T; i++) {
        const size_t t = f->reverse ? T - 1 - i : i;
        for (size_t row = 0; row < B; row++) {
            const size_t token = t * B + row;
            double *h = last_h + row * H;
            for (size_t k = 0; k < GH; k++) {
                x[k] = moved((double)f->x[token * GH + k], by->x, token * GH + k, by->step);
                product[k] = moved(0.0, by->product, token * GH + k, by->step);
            }
            const int active = !f->lengths || (int64_t)t < f->lengths[row];
            if (active) {
                if (f->resets && f->resets[token]) {
                    memset(h, 0, H * sizeof *h);
                    memset(last_c + row * H, 0, H * sizeof *last_c);
                }
                naive_step(f, x, product, h, last_c + row * H, new_h, reset_hidden);
                memcpy(h, new_h, H * sizeof *h);
            }
            memcpy(hidden + token * H, h, H * sizeof *h);
            /* The gradient of an output behind the end of a sequence does not count. */
            for (size_t k = 0; b && active && k < H; k++)
                loss += h[k] * (double)b->d_hidden[token * H + k];
        }
    }
    for (size_t i = 0; b && i < B * H; i++)
        loss += last_h[i] * (double)b->d_h_n[i] + (f->c0 ? last_c[i] * (double)b->d_c_n[i] : 0.0);
    release(keep);
    return loss;
}

/* ---- forward and backward ---- */

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

/* The outputs of a call with `threads` threads, to be compared with those of one thread. */
struct output {
    const char *name;
    float **place;
    size_t size;
};

static void run_threads(struct output *outputs, size_t count, int (*run)(const void *, const void *, int),
                        const void *kernel, const void *task) {
    float *first[12] = {0};
    for (int threads = 1; threads <= MOST_THREADS; threads++) {
        for (size_t i = 0; i < count; i++) *outputs[i].place = outputs[i].size ? unwritten(outputs[i].size) : NULL;
        if (run(kernel, task, threads)) FAIL("out of memory");
        for (size_t i = 0; i < count; i++) {
            if (threads == 1)
                first[i] = *outputs[i].place;
            else if (outputs[i].size && memcmp(first[i], *outputs[i].place, outputs[i].size * sizeof(float)))
                FAIL("%s differs between 1 and %d threads", outputs[i].name, threads);
        }
    }
}

static int run_forward(const void *kernel, const void *task, int threads) {
    return ((const struct backend *)kernel)->forward(task, threads);
}
static int run_backward(const void *kernel, const void *task, int threads) {
    return ((const struct backend *)kernel)->backward(task, threads);
}
static int run_weight_grad(const void *kernel, const void *task, int threads) {
    return ((const struct backend *)kernel)->weight_grad(task, threads);
}

static void recurrence_case(const struct backend *backend, enum cell cell, size_t T, size_t B, size_t H) {
    const size_t G = CELL_FACTS[cell].gates, S = CELL_FACTS[cell].num_saved, plane = B * H, all = T * plane;
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
        {"d_gates", &b.d_gates, cell == GRU_RESET_AFTER ? all * G : 0},
        {"d_h0", &b.d_h0, plane},
        {"d_c0", &b.d_c0, lstm ? plane : 0},
    };
    run_threads(backward_outputs, 4, run_backward, backend, &b);
    check_gradient("d_x", &f, &b, b.d_x, all * G, &by.x, &by);
    if (b.d_gates) check_gradient("d_gates", &f, &b, b.d_gates, all * G, &by.product, &by);
    check_gradient("d_h0", &f, &b, b.d_h0, plane, &by.h0, &by);
    if (lstm) check_gradient("d_c0", &f, &b, b.d_c0, plane, &by.c0, &by);
}

/* ---- the other kernels ---- */

static void weight_grad_case(const struct backend *backend, size_t tokens, size_t rows, size_t columns) {
    const size_t step = rows + below(3);
    struct weight_grad w = {.tokens = tokens, .rows = rows, .columns = columns, .d_stride = step};
    w.split = below(tokens + 1);
    w.d = floats((tokens - 1) * step + rows, 1.0);
    w.x = floats(w.split * columns, 1.0), w.x_rest = floats((tokens - w.split) * columns, 1.0);
    snprintf(where, sizeof where, "%s, weight_grad, %zu tokens, %zu rows, %zu columns", backend->name, tokens, rows,
             columns);
    struct output outputs[] = {{"d_w", &w.d_w, rows * columns}, {"d_b", &w.d_b, rows}};
    run_threads(outputs, 2, run_weight_grad, backend, &w);
    const double scale = sqrt((double)tokens);
    for (size_t r = 0; r < rows; r++) {
        double sum = 0.0;
        for (size_t k = 0; k < tokens; k++) sum += (double)w.d[k * step + r];
        check("d_b", r, (double)w.d_b[r], sum, scale);
        for (size_t j = 0; j < columns; j++) {
            sum = 0.0;
            for (size_t k = 0; k < tokens; k++) {
                const float *x = k < w.split ? w.x + k * columns : w.x_rest + (k - w.split) * columns;
                sum += (double)w.d[k * step + r] * (double)x[j];
            }
            check("d_w", r * columns + j, (double)w.d_w[r * columns + j], sum, scale);
        }
    }
}

static int run_linear(const void *kernel, const void *task, int threads) {
    return ((const struct backend *)kernel)->linear(task, threads);
}

static void linear_case(const struct backend *backend, size_t rows, size_t K, size_t columns) {
    struct linear l = {.rows = rows, .K = K, .columns = columns, .x_stride = K + below(3), .transposed = (int)below(2)};
    l.x = floats((rows - 1) * l.x_stride + K, 1.0), l.w = floats(K * columns, 1.0);
    l.b = below(2) ? floats(columns, 1.0) : NULL;
    snprintf(where, sizeof where, "%s, linear, %zu rows, %zu terms, %zu columns%s", backend->name, rows, K, columns,
             l.transposed ? ", transposed" : "");
    struct output outputs[] = {{"out", &l.out, rows * columns}};
    run_threads(outputs, 1, run_linear, backend, &l);
    for (size_t r = 0; r < rows; r++) {
        for (size_t j = 0; j < columns; j++) {
            double sum = l.b ? (double)l.b[j] : 0.0;
            for (size_t k = 0; k < K; k++)
                sum += (double)l.x[r * l.x_stride + k] * (double)l.w[l.transposed ? k * columns + j : j * K + k];
            check("out", r * columns + j, (double)l.out[r * columns + j], sum, sqrt((double)K));
        }
    }
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

static void matvec_case(const struct backend *backend, size_t rows, size_t columns) {
    struct matvec m = {.rows = rows, .columns = columns, .w = floats(rows * columns, 1.0), .x = floats(columns, 1.0)};
    m.b = below(2) ? floats(rows, 1.0) : NULL;
    snprintf(where, sizeof where, "%s, matvec, %zu rows, %zu columns", backend->name, rows, columns);
    for (int threads = 1; threads <= MOST_THREADS; threads++) {
        m.out = unwritten(rows);
        if (backend->matvec(&m, threads)) FAIL("out of memory");
        for (size_t r = 0; r < rows; r++) {
            double sum = m.b ? (double)m.b[r] : 0.0;
            for (size_t k = 0; k < columns; k++) sum += (double)m.w[r * columns + k] * (double)m.x[k];
            check("out", r, (double)m.out[r], sum, sqrt((double)columns));
        }
    }
}

static int run_gather(const void *kernel, const void *task, int threads) {
    (void)kernel;
    ids_gather(task, threads);
    return 0;
}
static int run_scatter(const void *kernel, const void *task, int threads) {
    (void)kernel;
    ids_scatter(task, threads);
    return 0;
}

static void ids_case(size_t tokens, size_t rows, size_t vocabulary) {
    int64_t *ids = bytes(tokens * sizeof *ids);
    for (size_t i = 0; i < tokens; i++) ids[i] = (int64_t)below(vocabulary);
    struct gather task = {.tokens = tokens, .rows = rows, .vocabulary = vocabulary, .ids = ids};
    task.w = floats(rows * vocabulary, 1.0), task.b = below(2) ? floats(rows, 1.0) : NULL;
    snprintf(where, sizeof where, "ids, %zu tokens, %zu rows, %zu words", tokens, rows, vocabulary);
    if (ids_outside(ids, tokens, vocabulary) != tokens) FAIL("an id is said to be outside");
    struct output gathered[] = {{"out", &task.out, tokens * rows}};
    run_threads(gathered, 1, run_gather, NULL, &task);
    for (size_t i = 0; i < tokens * rows; i++) {
        const size_t row = i % rows;
        double expected = (double)task.w[row * vocabulary + (size_t)ids[i / rows]];
        expected += task.b ? (double)task.b[row] : 0.0;
        check("gathered", i, (double)task.out[i], expected, 1.0);
    }

    struct scatter adjoint = {.tokens = tokens, .rows = rows, .vocabulary = vocabulary, .ids = ids};
    adjoint.d = floats(tokens * rows, 1.0);
    struct output scattered[] = {{"d_w", &adjoint.d_w, rows * vocabulary}, {"d_b", &adjoint.d_b, rows}};
    run_threads(scattered, 2, run_scatter, NULL, &adjoint);
    double *out = doubles(rows * vocabulary), *sums = doubles(rows);
    memset(out, 0, rows * vocabulary * sizeof *out), memset(sums, 0, rows * sizeof *sums);
    for (size_t i = 0; i < tokens * rows; i++) {
        const size_t row = i % rows;
        out[row * vocabulary + (size_t)ids[i / rows]] += (double)adjoint.d[i], sums[row] += (double)adjoint.d[i];
    }
    for (size_t i = 0; i < rows * vocabulary; i++)
        check("d_w", i, (double)adjoint.d_w[i], out[i], sqrt((double)tokens));
    for (size_t i = 0; i < rows; i++) check("d_b", i, (double)adjoint.d_b[i], sums[i], sqrt((double)tokens));

    const size_t at = below(tokens);
    const int64_t outside[] = {-1, (int64_t)vocabulary, INT64_MIN, INT64_MAX};
    ids[at] = outside[below(4)];
    if (ids_outside(ids, tokens, vocabulary) != at) FAIL("id %lld is not found outside", (long long)ids[at]);
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

/* ---- a team whose barriers do not wait, in place of team.c ---- */

#ifdef RACY
struct racer {
    void (*work)(void *, int, int);
    void *argument;
    int member, members;
    pthread_t thread;
};

static void *race(void *argument) {
    struct racer *racer = argument;
    racer->work(racer->argument, racer->member, racer->members);
    return NULL;
}

void team_run(int threads, void (*work)(void *argument, int member, int members), void *argument) {
    struct racer racers[MOST_THREADS];
    for (int i = 0; i < threads; i++) {
        racers[i] = (struct racer){work, argument, i, threads, 0};
        if (pthread_create(&racers[i].thread, NULL, race, &racers[i])) FAIL("no thread");
    }
    for (int i = 0; i < threads; i++) pthread_join(racers[i].thread, NULL);
}

void barrier_init(struct barrier *barrier) { (void)barrier; }
void barrier_wait(struct barrier *barrier, unsigned members) { (void)barrier, (void)members; }
void team_init(void) {}
const char *team_kind(void) { return "threads"; }
#endif

static const size_t SHAPES[][3] = {
    /* T, B, H: each size 1; a vector and its neighbours; rows of tiles; sums in several parts */
    {1, 1, 1},  {1, 1, 3},  {3, 1, 17}, {1, 7, 16}, {2, 9, 15},   {5, 2, 33},
    {4, 3, 64}, {3, 8, 65}, {2, 17, 5}, {2, 5, 48}, {2, 1, 515},  {2, 3, 132},
};

static void run_all(const struct backend *backend) {
    for (enum cell cell = 0; cell < NUM_CELLS; cell++) {
        for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++, release(0))
            recurrence_case(backend, cell, SHAPES[i][0], SHAPES[i][1], SHAPES[i][2]);
        for (size_t i = 0; i < RANDOM_SHAPES; i++, release(0))
            recurrence_case(backend, cell, 1 + below(6), 1 + below(20), 1 + below(80));
        for (size_t i = 0; i < RANDOM_SHAPES; i++, release(0)) step_in_place_case(backend, cell, 1 + below(80), 1 + below(40));
    }
    for (size_t i = 0; i < 6 * RANDOM_SHAPES; i++, release(0))
        weight_grad_case(backend, 1 + below(300), 1 + below(70), 1 + below(120));
    for (size_t i = 0; i < 6 * RANDOM_SHAPES; i++, release(0))
        linear_case(backend, 1 + below(100), 1 + below(80), 1 + below(90));
    linear_case(backend, 5, 2070, 3), release(0); /* a sum in several parts, two of them through memory */
    for (size_t i = 0; i < RANDOM_SHAPES; i++, release(0)) matvec_case(backend, 1 + below(50), 1 + below(90));
    for (size_t n = 1; n < 70; n++, release(0)) activations_case(backend, n);
}

int main(int count, char **arguments) {
    int runs = 0;
    team_init();
    if (strcmp(team_kind(), "threads")) FAIL("an OpenMP runtime that a sanitizer cannot see into");
    for (int i = 0; i < backend_count; i++) {
        if (!backends[i]->supported() || (count > 1 && strcmp(arguments[1], backends[i]->name))) continue;
        run_all(backends[i]);
        printf("%s\n", backends[i]->name);
        runs++;
    }
    for (size_t i = 0; i < 6 * RANDOM_SHAPES; i++, release(0)) ids_case(1 + below(60), 1 + below(50), 1 + below(40));
    if (!runs) FAIL("no such instructions here");
    return 0;
}
