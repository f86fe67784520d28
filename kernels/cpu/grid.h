/* The division of work: who in a team does what. A member owns some rows of the batch and some tiles of columns. */
#ifndef FASTCELLS_GRID_H
#define FASTCELLS_GRID_H

#include <stdlib.h>

#include "gemm.h"

/* Barriers, and floats on cache lines of their own, for the duration of a call; NULL where memory does not suffice.
   free(*barriers) ends it. */
static inline float *scratch(struct barrier **barriers, size_t count, size_t floats) {
    void *memory;
    if (posix_memalign(&memory, CACHE_LINE, count * sizeof(struct barrier) + floats * sizeof(float))) return NULL;
    *barriers = memory;
    for (size_t i = 0; i < count; i++) barrier_init(*barriers + i);
    return (float *)(*barriers + count);
}

static inline size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }
static inline size_t min_size(size_t a, size_t b) { return a < b ? a : b; }

/* Things from `first` up to `end`. */
struct range {
    size_t first, end;
};

/* A member's part of `count` things, in parts that differ by one at most. */
static inline struct range part_of(size_t count, size_t member, size_t members) {
    return (struct range){count * member / members, count * (member + 1) / members};
}

/* The team as a grid: `row_groups` groups of `members` each. */
struct grid {
    size_t row_groups, members;
};

/* What a cache line of weights takes until it has arrived, in half cycles: a multiplication of a vector takes one. It
   depends on how much a member reads in a step: what its first cache holds, its second one, or more. (Measured: 110
   and 28 GB/s a core from the second and the third cache of an Emerald Rapids.) */
static inline size_t reading(size_t bytes) { return bytes <= (size_t)32 << 10 ? 1 : bytes <= (size_t)1 << 20 ? 4 : 12; }

/* The split that takes the busiest member the least time: a few rows wait for their weights, and are better off with
   fewer of them each; many rows are better off without a barrier, and without what others write in a step: it comes
   from their caches. */
static inline struct grid choose_grid(size_t team, size_t B, size_t H, size_t tiles, size_t weights) {
    enum { BARRIER = 2500, EXCHANGE = 120 }; /* half cycles: of a barrier, and of a line from another core */
    struct grid best = {1, 1};
    size_t least = (size_t)-1;
    for (size_t groups = 1; groups <= team && groups <= B; groups++) {
        const size_t members = min_size(team / groups, tiles), rows = ceil_div(B, groups);
        const size_t own = ceil_div(tiles, members) * weights / tiles * sizeof(float), waits = reading(own);
        const size_t multiplies = own / sizeof(float) / LANES * rows, reads = own / CACHE_LINE * waits;
        size_t time = multiplies > reads ? multiplies : reads;
        if (members > 1) time += BARRIER + rows * (H - H / members) * sizeof(element) / CACHE_LINE * EXCHANGE;
        if (time < least) {
            least = time;
            best = (struct grid){groups, members};
        }
    }
    return best;
}

/* What one member owns. */
struct share {
    size_t first_row, rows;   /* of the batch */
    size_t first_tile, tiles; /* of the columns */
};

static inline struct share share_of(struct grid grid, size_t member, size_t B, size_t tiles) {
    const struct range rows = part_of(B, member / grid.members, grid.row_groups);
    const struct range columns = part_of(tiles, member % grid.members, grid.members);
    return (struct share){rows.first, rows.end - rows.first, columns.first, columns.end - columns.first};
}

/* Rows in tiles of nearly the same height, none above `most`. */
static inline size_t height(size_t rows, size_t done, size_t most) {
    const size_t left = rows - done;
    return ceil_div(left, ceil_div(left, most));
}

/* Vectors of columns in a tile where a tile has one gate: as wide as keeps all members of a team busy. */
static inline size_t tile_width(size_t H, size_t team) {
    const size_t vectors = ceil_div(H, LANES);
    size_t best = 1, least = (size_t)-1;
    for (size_t width = MAX_WIDTH; width > 0; width--) {
        size_t work = ceil_div(ceil_div(vectors, width), team) * width * 16;
        work += work * (MAX_WIDTH - width) / 32; /* a narrow tile loads more for the same work */
        if (work < least) {
            least = work;
            best = width;
        }
    }
    return best;
}

/* The same for tiles of `most` vectors at most that are read once for a row or two, where the width makes no difference
   to speed: as wide as leaves no member with more than its part. */
static inline size_t even_width(size_t vectors, size_t team, size_t most) {
    size_t best = 1, least = (size_t)-1;
    for (size_t width = most; width > 0; width--) {
        size_t busiest = 0;
        for (size_t member = 0; member < team; member++) {
            const struct range tiles = part_of(ceil_div(vectors, width), member, team);
            const size_t own = min_size(tiles.end * width, vectors) - min_size(tiles.first * width, vectors);
            if (own > busiest) busiest = own;
        }
        if (busiest < least) {
            least = busiest;
            best = width;
        }
    }
    return best;
}

#endif
