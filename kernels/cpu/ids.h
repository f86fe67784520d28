/* Token ids, before a kernel reads what they name. */
#ifndef FASTCELLS_IDS_H
#define FASTCELLS_IDS_H

#include <stddef.h>
#include <stdint.h>

/* The position of the first id outside the vocabulary, or `count`. besides: the one that may be there, or NULL. */
static inline size_t ids_outside(const int64_t *ids, size_t count, size_t vocabulary, const int64_t *besides) {
    size_t i = 0;
    while (i < count && ((ids[i] >= 0 && (uint64_t)ids[i] < vocabulary) || (besides && ids[i] == *besides))) i++;
    return i;
}

#endif
