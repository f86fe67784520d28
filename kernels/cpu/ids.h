/* Token ids, before gather.h reads what they name. */
#ifndef FASTCELLS_IDS_H
#define FASTCELLS_IDS_H

#include <stddef.h>
#include <stdint.h>

/* The position of the first id outside the vocabulary, or `tokens`. */
static inline size_t ids_outside(const int64_t *ids, size_t tokens, size_t vocabulary) {
    size_t i = 0;
    while (i < tokens && ids[i] >= 0 && (uint64_t)ids[i] < vocabulary) i++;
    return i;
}

#endif
