/* The input projection of token ids: the product of a one-hot vector with W^T is a column of W, and its gradient is
   added to that column. Both work on a few rows of W at a time, which stay in a core's cache. */
#ifndef FASTCELLS_IDS_H
#define FASTCELLS_IDS_H

#include "arguments.h"

/* The position of the first id outside the vocabulary, or `tokens`. The two below need all ids inside. */
size_t ids_outside(const int64_t *ids, size_t tokens, size_t vocabulary);
void ids_gather(const struct gather *task, int threads);
void ids_scatter(const struct scatter *task, int threads); /* the adjoint; sums in the order of the tokens */

#endif
