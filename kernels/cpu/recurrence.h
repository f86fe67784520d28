/* The recurrence of one layer and one direction on the CPU, float32.

   Letters: T time, B batch, H hidden, G gates (in torch's order). All tensors are contiguous and need no alignment
   beyond that of a float. The equations stand in ../rnn.py, ../gru.py and ../lstm.py. */
#ifndef FASTCELLS_RECURRENCE_H
#define FASTCELLS_RECURRENCE_H

#include <stddef.h>
#include <stdint.h>

enum cell { RNN_TANH, RNN_RELU, GRU_RESET_AFTER, GRU_RESET_BEFORE, LSTM, CELLS };

/* What is saved per element of the hidden state for the backward, besides h and c themselves:
   GRU reset-after r z n h_n, where h_n is the recurrent product; reset-before r z n; LSTM i f g o. */
static inline size_t gates_of(enum cell cell) { return cell <= RNN_RELU ? 1 : cell == LSTM ? 4 : 3; }
static inline size_t saved_of(enum cell cell) {
    return cell <= RNN_RELU ? 0 : cell == GRU_RESET_BEFORE ? 3 : 4;
}

struct forward {
    enum cell cell;
    size_t T, B, H;
    int reverse;          /* whether time is walked from T-1 to 0 */
    const float *x;       /* [T, B, G, H] input projection with b_ih */
    const float *w;       /* [G, H, H] recurrent weight */
    const float *b;       /* [G, H] recurrent bias, or NULL */
    const uint8_t *mask;  /* [T, B] 0 where the state stands still, or NULL */
    const uint8_t *resets; /* [T, B] not 0 where a step starts from a state of zeros, or NULL; the mask goes first */
    const float *h0, *c0; /* [B, H] initial state; c, here and below, of an LSTM only */
    float *h, *c;         /* [T, B, H] out: state after each step; c only where saved is given */
    float *out;           /* [T, B, H] out: h once more, 0 where the mask is 0; or NULL */
    float *saved;         /* [T, B, saved, H] out, or NULL */
    float *h_n, *c_n;     /* [B, H] out: final state */
};

struct backward {
    enum cell cell;
    size_t T, B, H;
    int reverse;
    const float *w;
    const uint8_t *mask, *resets;
    const float *h0, *c0, *h, *c, *saved; /* as in the forward */
    const float *d_out;                   /* [T, B, H] gradient of every h */
    const float *d_h_n, *d_c_n;           /* [B, H] gradient of the final state */
    float *d_x;                           /* [T, B, G, H] out: gradient of the input projection */
    float *d_gates; /* [T, B, G, H] out: gradient of h W^T + b; of a reset-after GRU only, d_x itself otherwise */
    float *d_h0, *d_c0; /* [B, H] out: gradient of the initial state */
};

/* The gradients of a weight matrix [rows, columns] and of the bias beside it: sums over tokens of d^T x and of d. */
struct weights {
    size_t tokens, rows, columns;
    size_t d_step;     /* from a row of d to the next */
    const float *d;    /* [tokens, rows] gradient of the product's result */
    size_t split;      /* the rows of x lie in two pieces, this many in the first */
    const float *x[2]; /* [split, columns] and [tokens - split, columns] */
    float *out;        /* [rows, columns] out */
    float *sums;       /* [rows] out */
};

/* A matrix product along the second dimension of x: a linear layer, or the gradient of its input. */
struct linear {
    size_t rows, K, columns;
    size_t x_step;    /* from a row of x to the next */
    const float *x;   /* [rows, K] */
    int transposed;   /* how W lies */
    const float *w;   /* [columns, K], or [K, columns] where transposed */
    const float *b;   /* [columns] or NULL */
    float *out;       /* [rows, columns] out */
};

/* One step of one sequence, in place. */
struct single {
    enum cell cell;
    size_t H, I;
    int64_t id;     /* token id below I, or -1 for a dense x */
    const float *x; /* [I], or NULL for an id */
    const float *w_ih, *w_hh, *b_ih, *b_hh; /* [G, H, I], [G, H, H], and [G, H] each or NULL */
    float *h, *c;                           /* [H] in and out */
};

/* The recurrences on one set of vector instructions. */
struct backend {
    const char *name;
    int (*supported)(void);
    int (*forward)(const struct forward *, int threads); /* 0, or -1 where memory does not suffice */
    int (*backward)(const struct backward *, int threads);
    int (*weights)(const struct weights *, int threads);
    int (*linear)(const struct linear *, int threads);
    int (*single)(const struct single *, int threads);
    /* out [rows] = w [rows, columns] x [columns] + b [rows] or NULL */
    void (*matvec)(float *out, const float *w, const float *x, const float *b, size_t rows, size_t columns, int threads);
    void (*activations)(const float *x, float *sigmoid, float *tanh, size_t n); /* for tests of their accuracy */
};

/* The best first; the last one runs everywhere. */
extern const struct backend *const backends[];
extern const int backend_count;

#endif
