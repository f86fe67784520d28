/* The recurrences in bfloat16: the forward beside double precision, and the backward's bits for each number of threads;
   what the gradients are worth is for Python's tests to say. */
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
    for (size_t i = 0; i < all; i++) {
        const uint32_t bits = (uint32_t)f.hidden[i] << 16;
        float value;
        memcpy(&value, &bits, sizeof value);
        /* 8 bits a number, and what their rounding does to later steps: a wrong term is off by more. */
        if (!(fabs((double)value - hidden[i] - WRONG * 100) <= 0.05 * fmax(1.0, fabs(hidden[i]))))
            FAIL("hidden[%zu] is %g instead of %g", i, (double)value, hidden[i]);
    }

    struct backward_bf16 b = {.cell = cell, .T = T, .B = B, .H = H, .reverse = f.reverse, .w = f.w};
    const float *unused;
    b.lengths = f.lengths, b.resets = f.resets, b.h0 = f.h0, b.c0 = f.c0;
    b.hidden = f.hidden, b.cells = f.cells, b.saved = f.saved;
    b.d_hidden = halves_of(all, 1.0, &unused), b.d_h_n = halves_of(plane, 1.0, &unused);
    b.d_c_n = lstm ? halves_of(plane, 1.0, &unused) : NULL;
    struct bf16_output backward_outputs[] = {
        {&b.d_x, all * G}, {&b.d_gates, cell == GRU_RESET_AFTER ? all * G : 0}, {&b.d_h0, plane},
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

#endif
