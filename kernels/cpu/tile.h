/* Sizes of a product's tile, and the sums of one in memory. */
#ifndef FASTCELLS_TILE_H
#define FASTCELLS_TILE_H

#include "element.h"

enum { MAX_WIDTH = 4 }; /* vectors of a tile: the gates of one vector of columns, or columns of one gate */
#ifdef TILES /* the processor has instructions for the products of matrices */
enum { MAX_ROWS = 16, WIDEST = MAX_WIDTH, WIDE_FOR_TWO = MAX_WIDTH };
#else
enum { MAX_ROWS = 8 };
/* And where there are but one or two rows, so that enough multiplications are on their way at a time: */
enum { WIDEST = 12, WIDE_FOR_TWO = 6 };
#endif

/* Rows of a tile by its width: accumulators, weights and a broadcast in registers. */
static const size_t ROWS[WIDEST + 1] = {
    0,
#ifdef TILES
    MAX_ROWS, MAX_ROWS, MAX_ROWS, MAX_ROWS,
#else
    8,
    REGISTERS >= 32 ? 8 : 6,
    REGISTERS >= 32 ? 8 : 4,
    REGISTERS >= 32 ? 6 : 3,
    2, 2, 1, 1, 1, 1, 1, 1,
#endif
};

typedef float tile_t[MAX_ROWS][MAX_WIDTH][LANES] __attribute__((aligned(64)));

/* From a row of a tile so wide to the next: of a wide one, a row takes the place of several. */
INLINE size_t tile_step(size_t width) { return (width + MAX_WIDTH - 1) / MAX_WIDTH * MAX_WIDTH * LANES; }

/* Vector v of row r. */
INLINE float *in_tile(tile_t tile, size_t width, size_t r, size_t v) {
    return (float *)tile + r * tile_step(width) + v * LANES;
}

#endif
