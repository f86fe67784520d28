/* The products: weight gradients, linear layers, a matrix and a vector, token ids; each beside loops in double
   precision. */
#ifndef CPU_SANITIZERS_PRODUCT_CASES_H
#define CPU_SANITIZERS_PRODUCT_CASES_H

#include "backends.h"
#include "checks.h"
#include "ids.h"

static int run_weight_grad(const void *kernel, const void *task, int threads) {
    return ((const struct backend *)kernel)->weight_grad(task, threads);
}

static void weight_grad_case(const struct backend *backend, size_t tokens, size_t rows, size_t columns) {
    const size_t rest = below(2) ? below(rows + 1) : 0, first = rows - rest, step = first + below(3);
    struct weight_grad w = {.tokens = tokens, .rows = rows, .columns = columns, .d_stride = step, .rest_rows = rest};
    w.split = below(tokens + 1), w.rest_stride = rest + below(3);
    w.d = floats((tokens - 1) * step + first, 1.0);
    if (rest) w.d_rest = floats((tokens - 1) * w.rest_stride + rest, 1.0);
    w.x = floats(w.split * columns, 1.0), w.x_rest = floats((tokens - w.split) * columns, 1.0);
    snprintf(where, sizeof where, "%s, weight_grad, %zu tokens, %zu rows, %zu columns", backend->name, tokens, rows,
             columns);
    const float *d_w = NULL, *d_b = NULL; /* what the sums are added to */
    w.accumulate = (int)below(2);
    if (w.accumulate) d_w = floats(rows * columns, 1.0), d_b = floats(rows, 1.0);
    struct output outputs[] = {{"d_w", &w.d_w, rows * columns, d_w}, {"d_b", &w.d_b, rows, d_b}};
    run_threads(outputs, 2, run_weight_grad, backend, &w);
    const double scale = sqrt((double)tokens);
    for (size_t r = 0; r < rows; r++) {
        const float *d = r < first ? w.d + r : w.d_rest + (r - first);
        const size_t apart = r < first ? step : w.rest_stride;
        double sum = d_b ? (double)d_b[r] : 0.0;
        for (size_t k = 0; k < tokens; k++) sum += (double)d[k * apart];
        check("d_b", r, (double)w.d_b[r], sum, scale);
        for (size_t j = 0; j < columns; j++) {
            sum = d_w ? (double)d_w[r * columns + j] : 0.0;
            for (size_t k = 0; k < tokens; k++) {
                const float *x = k < w.split ? w.x + k * columns : w.x_rest + (k - w.split) * columns;
                sum += (double)d[k * apart] * (double)x[j];
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
    l.accumulate = (int)below(2), l.out_stride = columns + below(3);
    l.b = !l.accumulate && below(2) ? floats(columns, 1.0) : NULL;
    snprintf(where, sizeof where, "%s, linear, %zu rows, %zu terms, %zu columns%s%s", backend->name, rows, K, columns,
             l.transposed ? ", transposed" : "", l.accumulate ? ", accumulated" : "");
    const size_t size = (rows - 1) * l.out_stride + columns;
    const float *before = l.accumulate ? floats(size, 1.0) : NULL;
    struct output outputs[] = {{"out", &l.out, size, before}};
    run_threads(outputs, 1, run_linear, backend, &l);
    for (size_t r = 0; r < rows; r++) {
        for (size_t j = 0; j < columns; j++) {
            double sum = l.b ? (double)l.b[j] : before ? (double)before[r * l.out_stride + j] : 0.0;
            for (size_t k = 0; k < K; k++)
                sum += (double)l.x[r * l.x_stride + k] * (double)l.w[l.transposed ? k * columns + j : j * K + k];
            check("out", r * columns + j, (double)l.out[r * l.out_stride + j], sum, sqrt((double)K));
        }
    }
}

static int run_cross_entropy(const void *kernel, const void *task, int threads) {
    return ((const struct backend *)kernel)->cross_entropy(task, threads);
}

static void cross_entropy_case(const struct backend *backend, size_t rows, size_t columns) {
    int64_t *targets = bytes(rows * sizeof *targets);
    for (size_t r = 0; r < rows; r++) targets[r] = (int64_t)below(columns + 1) - 1; /* some rows do not count */
    const float all = below(2) ? 0.1f / (float)columns : 0.0f, smoothing[] = {1.0f - all * (float)columns, all};
    struct cross_entropy c = {.rows = rows, .columns = columns, .x_stride = columns, .gradient = (int)below(2)};
    c.ignored = -1;
    c.targets = targets, c.smoothing = smoothing, c.d_loss = below(2) ? floats(rows, 1.0) : NULL;
    const float *x = floats(rows * columns, 9.0);
    snprintf(where, sizeof where, "%s, cross-entropy, %zu rows, %zu columns", backend->name, rows, columns);
    struct output outputs[] = {{"x", &c.x, rows * columns, x}, {"loss", &c.loss, rows, NULL}};
    run_threads(outputs, 2, run_cross_entropy, backend, &c);
    for (size_t r = 0; r < rows; r++, x += columns) {
        const double counts = targets[r] < 0 ? 0.0 : 1.0, d = counts * (c.d_loss ? (double)c.d_loss[r] : 1.0);
        double sum = 0.0, loss = 0.0;
        for (size_t j = 0; j < columns; j++) sum += exp((double)x[j]);
        for (size_t j = 0; j < columns; j++) {
            const double q = (double)all + ((int64_t)j == targets[r] ? (double)smoothing[0] : 0.0);
            loss += counts * q * (log(sum) - (double)x[j]);
            const double expected = c.gradient ? d * (exp((double)x[j]) / sum - q) : (double)x[j];
            check("x", r * columns + j, (double)c.x[r * columns + j], expected, 1.0);
        }
        check("loss", r, (double)c.loss[r], loss, 18.0);
    }
}

static int run_linear_cross_entropy(const void *kernel, const void *task, int threads) {
    return ((const struct backend *)kernel)->linear_cross_entropy(task, threads);
}

/* The loss, and d_b, into which all of its gradient goes; the products are those of the cases above. */
static void linear_cross_entropy_case(const struct backend *backend, size_t rows, size_t K, size_t columns) {
    struct linear_cross_entropy c = {.rows = rows, .K = K, .columns = columns, .mean = (int)below(2)};
    int64_t *targets = bytes(rows * sizeof *targets);
    const float smoothing[] = {1.0f, 0.0f};
    size_t counting = 0;
    c.ignored = (int64_t)below(columns + 1) - 1;
    for (size_t r = 0; r < rows; r++) targets[r] = (int64_t)below(columns);
    targets[0] = c.ignored ? 0 : (int64_t)columns - 1;
    for (size_t r = 0; r < rows; r++) counting += targets[r] != c.ignored;
    c.x = floats(rows * K, 1.0), c.w = floats(K * columns, 1.0), c.b = below(2) ? floats(columns, 1.0) : NULL;
    c.targets = targets, c.smoothing = smoothing;
    snprintf(where, sizeof where, "%s, linear cross-entropy, %zu rows, %zu terms, %zu columns", backend->name, rows, K,
             columns);
    struct output outputs[] = {{"loss", &c.loss, rows, NULL},         {"sum", &c.sum, 1, NULL},
                               {"d_x", &c.d_x, rows * K, NULL},       {"d_w", &c.d_w, columns * K, NULL},
                               {"d_b", &c.d_b, columns, NULL}};
    run_threads(outputs, 5, run_linear_cross_entropy, backend, &c);
    double *scores = doubles(columns), *d_b = doubles(columns), all = 0.0;
    memset(d_b, 0, columns * sizeof *d_b);
    const double scale = sqrt((double)K), share = c.mean && counting ? 1.0 / (double)counting : 1.0;
    for (size_t r = 0; r < rows; r++) {
        double sum = 0.0;
        for (size_t j = 0; j < columns; j++) {
            scores[j] = c.b ? (double)c.b[j] : 0.0;
            for (size_t k = 0; k < K; k++) scores[j] += (double)c.x[r * K + k] * (double)c.w[j * K + k];
            sum += exp(scores[j]);
        }
        const double loss = targets[r] == c.ignored ? 0.0 : log(sum) - scores[targets[r]];
        check("loss", r, (double)c.loss[r], loss, scale * 4.0);
        all += loss * share;
        for (size_t j = 0; j < columns && targets[r] != c.ignored; j++)
            d_b[j] += (exp(scores[j]) / sum - ((int64_t)j == targets[r])) * share;
    }
    if (counting) check("sum", 0, (double)*c.sum, all, scale * 4.0 * (c.mean ? 1.0 : (double)rows));
    for (size_t j = 0; j < columns; j++) check("d_b", j, (double)c.d_b[j], d_b[j], scale * sqrt((double)rows));
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
    return ((const struct backend *)kernel)->gather(task, threads);
}
static int run_scatter(const void *kernel, const void *task, int threads) {
    return ((const struct backend *)kernel)->scatter(task, threads);
}

static void ids_case(const struct backend *backend, size_t tokens, size_t rows, size_t vocabulary) {
    int64_t *ids = bytes(tokens * sizeof *ids);
    for (size_t i = 0; i < tokens; i++) ids[i] = (int64_t)below(vocabulary);
    struct gather task = {.tokens = tokens, .rows = rows, .vocabulary = vocabulary, .ids = ids};
    task.w = floats(rows * vocabulary, 1.0), task.b = below(2) ? floats(rows, 1.0) : NULL;
    snprintf(where, sizeof where, "%s, ids, %zu tokens, %zu rows, %zu words", backend->name, tokens, rows, vocabulary);
    if (ids_outside(ids, tokens, vocabulary, NULL) != tokens) FAIL("an id is said to be outside");
    struct output gathered[] = {{"out", &task.out, tokens * rows}};
    run_threads(gathered, 1, run_gather, backend, &task);
    for (size_t i = 0; i < tokens * rows; i++) {
        const size_t row = i % rows;
        double expected = (double)task.w[row * vocabulary + (size_t)ids[i / rows]];
        expected += task.b ? (double)task.b[row] : 0.0;
        check("gathered", i, (double)task.out[i], expected, 1.0);
    }

    struct scatter adjoint = {.tokens = tokens, .rows = rows, .vocabulary = vocabulary, .ids = ids};
    adjoint.d = floats(tokens * rows, 1.0);
    struct output scattered[] = {{"d_w", &adjoint.d_w, rows * vocabulary}, {"d_b", &adjoint.d_b, rows}};
    run_threads(scattered, 2, run_scatter, backend, &adjoint);
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
    if (ids_outside(ids, tokens, vocabulary, NULL) != at) FAIL("id %lld is not found outside", (long long)ids[at]);
}

#endif
