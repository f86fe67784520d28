/* The cells and their facts. fastcells/spec states them too; a test compares the two. */
#ifndef FASTCELLS_CELL_FACTS_H
#define FASTCELLS_CELL_FACTS_H

#include <stddef.h>

enum cell { RNN_TANH, RNN_RELU, GRU_RESET_AFTER, GRU_RESET_BEFORE, LSTM, NUM_CELLS };

struct cell_facts {
    const char *name; /* as in fastcells/spec */
    size_t gates;
    size_t first_gates; /* those whose product with h comes first; the others multiply what these have made of h */
    size_t states;      /* h, or h and c */
    size_t num_saved;   /* values that the backward needs of a step, besides the states: struct forward's `saved` */
    size_t apart_gates; /* the last ones, where the gradient of the input projection is not that of h W^T + b */
};

static const struct cell_facts CELL_FACTS[NUM_CELLS] = {
    [RNN_TANH] = {"rnn_tanh", .gates = 1, .first_gates = 1, .states = 1, .num_saved = 0, .apart_gates = 0},
    [RNN_RELU] = {"rnn_relu", .gates = 1, .first_gates = 1, .states = 1, .num_saved = 0, .apart_gates = 0},
    [GRU_RESET_AFTER] = {"gru", .gates = 3, .first_gates = 3, .states = 1, .num_saved = 4, .apart_gates = 1},
    [GRU_RESET_BEFORE] =
        {"gru_reset_before", .gates = 3, .first_gates = 2, .states = 1, .num_saved = 3, .apart_gates = 0},
    [LSTM] = {"lstm", .gates = 4, .first_gates = 4, .states = 2, .num_saved = 4, .apart_gates = 0},
};

#endif
