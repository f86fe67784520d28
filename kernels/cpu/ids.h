/* The input projection of token ids: the product of a one-hot vector with W^T is a column of W, and its gradient is
   added to that column. Both work on a few rows of W at a time, which stay in a core's cache. */
#ifndef FASTCELLS_IDS_H
#define FASTCELLS_IDS_H

#include <stddef.h>
#include <stdint.h>

struct ids {
    size_t tokens, rows, vocabulary;
    const int64_t *ids; /* [tokens], each below the vocabulary */
    const float *w;     /* gather: [rows, vocabulary] */
    const float *b;     /* gather: [rows], or NULL */
    const float *d;     /* scatter: [tokens, rows] */
    float *out;         /* gather: [tokens, rows] out; scatter: [rows, vocabulary] out */
    float *sums;        /* scatter: [rows] out, the sum of d over the tokens */
};

/* The position of the first id outside the vocabulary, or `tokens`. */
size_t ids_outside(const struct ids *task);
void ids_gather(const struct ids *task, int threads);
void ids_scatter(const struct ids *task, int threads);

#endif
