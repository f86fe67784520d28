/* A program's instructions on the blocks of one tile: rows of the batch times vectors of columns, in a core's first
   cache. */
#ifndef FASTCELLS_BLOCK_H
#define FASTCELLS_BLOCK_H

#include "functions.h"
#include "grid.h"
#include "program.h"

/* Where a value of a tile is: its rows lie `step` floats apart, 0 for what is the same in all of them. */
struct place {
    float *at;
    size_t step;
};

/* A member's memory: a block of `floats` for each place. */
struct blocks {
    float *memory;
    size_t floats;
};

/* A tile as programs see it; of the last vector of a row some columns may be missing. */
struct extent {
    size_t rows, vectors, columns;
};

INLINE float *block_of(const struct blocks *b, size_t place) { return b->memory + place * b->floats; }

/* The constants, which stay. */
static void fill_constants(const struct blocks *b, const struct program *p, size_t vectors) {
    for (size_t i = 0; i < p->constants; i++) {
        float *to = block_of(b, p->places + p->registers + i);
        for (size_t k = 0; k < vectors * LANES; k++) memcpy(to + k, p->constant + i, sizeof *to);
    }
}

/* Move a place into the block that belongs to it, with what it holds if `read`; zeros stand past the last column. */
static void into_block(const struct blocks *b, struct place *place, size_t number, const struct extent *tile, int read) {
    const size_t width = tile->vectors * LANES;
    float *to = block_of(b, number);
    if (place->at == to) return;
    for (size_t r = 0; read && r < tile->rows; r++) {
        memcpy(to + r * width, place->at + r * place->step, tile->columns * sizeof *to);
        for (size_t k = tile->columns; k < width; k++) to[r * width + k] = 0.0f;
    }
    *place = (struct place){to, width};
}

static void run_instructions(const struct program *p, const struct place *table, size_t rows, size_t vectors) {
    const int32_t *code = p->code;
    const size_t width = vectors * LANES;
    for (size_t i = 0; i < p->instructions; i++, code += INSTRUCTION_WORDS) {
        const struct place to = table[code[1]], first = table[code[2]], second = table[code[3]], third = table[code[4]];
        switch (code[0]) {
#define CASE(name, operands, value)                                                                                    \
    case OPERATION_##name:                                                                                             \
        for (size_t r = 0; r < rows; r++) {                                                                            \
            for (size_t k = 0; k < width; k += LANES) {                                                                \
                const vec a = load(first.at + r * first.step + k);                                                     \
                const vec b = operands > 1 ? load(second.at + r * second.step + k) : a;                                \
                const vec c = operands > 2 ? load(third.at + r * third.step + k) : a;                                  \
                (void)b, (void)c;                                                                                      \
                store(to.at + r * to.step + k, value);                                                                 \
            }                                                                                                          \
        }                                                                                                              \
        break;
            OPERATIONS(CASE)
        }
    }
}

/* Run a program on a tile. table: the places that the kernel offers, with room for the others; access: as the program
   was read. */
static void run_program(const struct blocks *b, const struct program *p, struct place *table,
                        const unsigned char *access, const struct extent *tile) {
    struct place outside[MAX_PLACES];
    const size_t width = tile->vectors * LANES;
    const int cut_off = tile->columns < width;
    if (cut_off) {
        memcpy(outside, table, p->places * sizeof *table);
        for (size_t i = 0; i < p->places; i++)
            if (access[i]) into_block(b, &table[i], i, tile, access[i] == READABLE);
    }
    for (size_t i = 0; i < p->registers; i++) table[p->places + i] = (struct place){block_of(b, p->places + i), width};
    for (size_t i = p->places + p->registers, end = i + p->constants; i < end; i++)
        table[i] = (struct place){block_of(b, i), 0};
    run_instructions(p, table, tile->rows, tile->vectors);
    if (!cut_off) return;
    for (size_t i = 0; i < p->places; i++) {
        if (access[i] != WRITABLE || outside[i].at == table[i].at) continue;
        for (size_t r = 0; r < tile->rows; r++)
            memcpy(outside[i].at + r * outside[i].step, table[i].at + r * width, tile->columns * sizeof(float));
    }
}

#endif
