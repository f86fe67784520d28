/* Defined cells: an LSTM and a reset-before GRU as programs, beside the kernels written by hand. The LSTM's bias is a parameter of its program, so that there is one. */
#ifndef CPU_SANITIZERS_DEFINED_CASES_H
#define CPU_SANITIZERS_DEFINED_CASES_H

#include "program.h"
#include "recurrence_cases.h"

/* A program in heap memory of exactly its size. */
struct words {
    int32_t *at;
    size_t size;
};

/* code: operation, result, a, b, c for each instruction; one constant, 0, has the last place. */
static struct words program_of(int32_t registers, const int32_t (*code)[INSTRUCTION_WORDS], size_t instructions) {
    const int32_t head[] = {registers, 1, (int32_t)instructions, 0};
    struct words words = {.size = 4 + instructions * INSTRUCTION_WORDS};
    words.at = bytes(words.size * sizeof *words.at);
    memcpy(words.at, head, sizeof head);
    memcpy(words.at + 4, code, instructions * sizeof *code);
    return words;
}
#define PROGRAM(registers, ...)                                                                                        \
    program_of(registers, (const int32_t[][INSTRUCTION_WORDS]){__VA_ARGS__},                                           \
               sizeof((const int32_t[][INSTRUCTION_WORDS]){__VA_ARGS__}) / sizeof(int32_t[INSTRUCTION_WORDS]))
#define DO(operation, ...) {OPERATION_##operation, __VA_ARGS__}

static int run_defined_forward(const void *kernel, const void *task, int threads) {
    return ((const struct backend *)kernel)->defined_forward(task, threads);
}
static int run_defined_backward(const void *kernel, const void *task, int threads) {
    return ((const struct backend *)kernel)->defined_backward(task, threads);
}

static void compare(const char *what, const float *actual, const float *expected, size_t n) {
    for (size_t i = 0; expected && i < n; i++)
        check(what, i, (double)actual[i], (double)expected[i], fabs((double)expected[i]));
}

/* W_hh in blocks, beside which it is zero. */
static const float *blocks_of(const struct forward *f, size_t G, size_t heads) {
    const size_t H = f->H, D = H / heads;
    float *dense = (float *)f->w, *blocks = floats(G * H * D, 1.0);
    for (size_t g = 0; g < G; g++) {
        for (size_t unit = 0; unit < H; unit++) {
            for (size_t k = 0; k < H; k++) {
                float *from = dense + (g * H + unit) * H + k;
                if (unit / D == k / D)
                    blocks[((unit / D * G + g) * D + unit % D) * D + k % D] = *from;
                else
                    *from = 0.0f;
            }
        }
    }
    return blocks;
}

/* Both passes by hand of what `f` says, and by program with its numbers and programs in `d` and `g`. */
static void beside(const struct backend *backend, struct forward *f, struct defined_forward *d,
                   struct defined_backward *g) {
    const size_t T = f->T, B = f->B, H = f->H, plane = B * H, all = T * plane, N = d->states, S = d->num_saved;
    const size_t G = d->gates, E = d->parameters;
    const float *w = d->heads > 1 ? blocks_of(f, G, d->heads) : f->w;
    float *state = floats(N * plane, 1.0), *d_last = floats(N * plane, 1.0);
    f->h0 = state, f->c0 = N > 1 ? state + plane : NULL;
    struct output by_hand[] = {{"out", &f->out, all},         {"hidden", &f->hidden, all},
                               {"cells", &f->cells, N > 1 ? all : 0}, {"saved", &f->saved, S * all},
                               {"h_n", &f->h_n, plane},       {"c_n", &f->c_n, N > 1 ? plane : 0}};
    run_threads(by_hand, 6, run_forward, backend, f);
    d->T = T, d->B = B, d->H = H, d->reverse = f->reverse, d->x = f->x, d->state = state, d->w = w;
    d->lengths = f->lengths, d->resets = f->resets;
    struct output by_program[] = {{"out", &d->out, all},
                                  {"hidden", &d->hidden, all},
                                  {"others", &d->others, (N - 1) * all},
                                  {"saved", &d->saved, S * all},
                                  {"last", &d->last, N * plane}};
    run_threads(by_program, 5, run_defined_forward, backend, d);
    compare("out", d->out, f->out, all), compare("hidden", d->hidden, f->hidden, all);
    compare("others", d->others, f->cells, all), compare("last", d->last, f->h_n, plane);
    compare("last", d->last + plane, f->c_n, plane);

    struct backward b = {.cell = f->cell, .T = T, .B = B, .H = H, .reverse = f->reverse, .w = f->w, .h0 = f->h0,
                         .c0 = f->c0, .lengths = f->lengths, .resets = f->resets, .hidden = d->hidden};
    b.cells = d->others, b.saved = d->saved, b.d_hidden = floats(all, 1.0);
    b.d_h_n = d_last, b.d_c_n = N > 1 ? d_last + plane : NULL;
    struct output backward_by_hand[] = {
        {"d_x", &b.d_x, G * all}, {"d_h0", &b.d_h0, plane}, {"d_c0", &b.d_c0, N > 1 ? plane : 0}};
    run_threads(backward_by_hand, 3, run_backward, backend, &b);
    g->T = T, g->B = B, g->H = H, g->reverse = f->reverse, g->d_hidden = b.d_hidden, g->d_last = d_last;
    g->heads = d->heads, g->state = state, g->w = w, g->extra = d->extra, g->lengths = f->lengths, g->resets = f->resets;
    g->hidden = d->hidden, g->others = d->others, g->saved = d->saved;
    struct output backward_by_program[] = {{"d_x", &g->d_x, G * all},
                                           {"d_state", &g->d_state, N * plane},
                                           {"d_extra", &g->d_extra, E * H},
                                           {"operand", &g->operand, g->second_gates ? all : 0}};
    run_threads(backward_by_program, 4, run_defined_backward, backend, g);
    compare("d_x", g->d_x, b.d_x, G * all), compare("d_state", g->d_state, b.d_h0, plane);
    compare("d_state", g->d_state + plane, b.d_c0, plane);
    for (size_t k = 0; k < E * H; k++) { /* of a bias */
        double sum = 0.0, size = 0.0;
        for (size_t token = 0; token < T * B; token++) {
            const double each = (double)b.d_x[token * G * H + k];
            sum += each, size += fabs(each);
        }
        check("d_extra", k, (double)g->d_extra[k], sum, size);
    }
}

static struct forward defined_task(const struct backend *backend, enum cell cell, size_t T, size_t B, size_t H) {
    const size_t G = CELL_FACTS[cell].gates;
    struct forward f = {.cell = cell, .T = T, .B = B, .H = H, .reverse = (int)below(2)};
    f.x = floats(T * B * G * H, 1.0), f.w = floats(G * H * H, 1.0 / sqrt((double)H)), f.b = floats(G * H, 1.0);
    if (below(2)) {
        int64_t *lengths = bytes(B * sizeof *lengths);
        for (size_t i = 0; i < B; i++) lengths[i] = (int64_t)below(T + 3) - 1;
        f.lengths = lengths;
    }
    if (below(2)) {
        uint8_t *resets = bytes(T * B);
        for (size_t i = 0; i < T * B; i++) resets[i] = below(3) == 0;
        f.resets = resets;
    }
    snprintf(where, sizeof where, "%s, defined, cell %d, T %zu, B %zu, H %zu%s%s%s", backend->name, cell, T, B, H,
             f.reverse ? ", reverse" : "", f.lengths ? ", lengths" : "", f.resets ? ", resets" : "");
    return f;
}

static void defined_lstm_case(const struct backend *backend, size_t T, size_t B, size_t H, size_t heads) {
    struct forward f = defined_task(backend, LSTM, T, B, H);
    struct defined_forward d = {.gates = 4, .first_gates = 4, .states = 2, .num_saved = 4, .parameters = 4};
    struct defined_backward g = {.gates = 4, .first_gates = 4, .states = 2, .num_saved = 4, .parameters = 4};
    d.heads = heads, d.extra = f.b;
    /* x 0, product 4, state 8, extra 10, new 14, saved 16, operand 20, register 21, constant 22 */
    const struct words there = PROGRAM(
        1, DO(sigmoid_sum, 16, 0, 4, 10), DO(sigmoid_sum, 17, 1, 5, 11), DO(tanh_sum, 18, 2, 6, 12),
        DO(sigmoid_sum, 19, 3, 7, 13), DO(mul, 21, 16, 18, 22), DO(mul_add, 15, 17, 9, 21), DO(tanh, 21, 15, 0, 0),
        DO(mul, 14, 19, 21, 0));
    /* d_new 0, before 2, after 4, kept 6, extra 10, d_operand 14, d_gate 15, d_state 19, d_extra 21, made 25,
       registers 26 and 27, constant 28 */
    const struct words back = PROGRAM(
        2, DO(tanh, 26, 5, 0, 0), DO(mul, 27, 0, 26, 0), DO(mul_less, 18, 27, 9, 9), DO(mul, 27, 0, 9, 0),
        DO(mul_rest, 27, 27, 26, 26), DO(add, 27, 1, 27, 0), DO(mul, 26, 27, 8, 0), DO(mul_less, 15, 26, 6, 6),
        DO(mul, 26, 27, 3, 0), DO(mul_less, 16, 26, 7, 7), DO(mul, 26, 27, 6, 0), DO(mul_rest, 17, 26, 8, 8),
        DO(copy, 19, 28, 0, 0), DO(mul, 20, 27, 7, 0), DO(copy, 21, 15, 0, 0), DO(copy, 22, 16, 0, 0),
        DO(copy, 23, 17, 0, 0), DO(copy, 24, 18, 0, 0));
    d.program = there.at, d.program_size = there.size, g.program = back.at, g.program_size = back.size;
    beside(backend, &f, &d, &g);
}

static void defined_gru_case(const struct backend *backend, size_t T, size_t B, size_t H, size_t heads) {
    struct forward f = defined_task(backend, GRU_RESET_BEFORE, T, B, H);
    struct defined_forward d = {.gates = 3, .first_gates = 2, .second_gates = 1, .states = 1, .num_saved = 3};
    struct defined_backward g = {.gates = 3, .first_gates = 2, .second_gates = 1, .states = 1, .num_saved = 3};
    d.heads = heads, d.b = f.b, d.carried = 2;
    /* x 0, product 3, bias 6, state 9, carried 10, new 12, saved 13, operand 16, register 17, constant 18 */
    const struct words there = PROGRAM(1, DO(sigmoid_sum, 10, 0, 3, 6), DO(sigmoid_sum, 11, 1, 4, 7),
                                       DO(mul, 16, 10, 9, 0));
    const struct words later = PROGRAM(1, DO(copy, 13, 10, 0, 0), DO(copy, 14, 11, 0, 0), DO(tanh_sum, 15, 2, 5, 8),
                                       DO(sub, 17, 9, 15, 0), DO(mul_add, 12, 11, 17, 15));
    /* d_new 0, before 1, after 2, kept 3, d_operand 6, d_gate 7, d_state 10, made 11, registers 12 and 13 */
    const struct words back = PROGRAM(2, DO(mul_rest, 12, 0, 5, 5), DO(mul, 13, 12, 4, 0), DO(sub, 9, 12, 13, 0));
    const struct words again = PROGRAM(2, DO(sub, 12, 1, 5, 0), DO(mul, 12, 12, 0, 0), DO(mul_less, 8, 12, 4, 4),
                                       DO(mul, 12, 6, 1, 0), DO(mul_less, 7, 12, 3, 3), DO(mul, 12, 6, 3, 0),
                                       DO(mul_add, 10, 0, 4, 12), DO(mul, 11, 3, 1, 0));
    d.program = there.at, d.program_size = there.size, d.second_program = later.at, d.second_size = later.size;
    g.program = back.at, g.program_size = back.size, g.second_program = again.at, g.second_size = again.size;
    beside(backend, &f, &d, &g);
}

#endif
