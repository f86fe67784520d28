/* The recurrences in double precision, loop by loop. */
#ifndef CPU_SANITIZERS_EXPECTED_H
#define CPU_SANITIZERS_EXPECTED_H

#include "backends.h"
#include "checks.h"

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

#endif
