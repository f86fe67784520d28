/* What the forward and the backward of a defined cell share: the places that they offer to its programs, and how they
   divide a step into tiles. The rest of a step is as in forward.h and backward.h. */
#ifndef FASTCELLS_DEFINED_H
#define FASTCELLS_DEFINED_H

#include "arguments.h"
#include "block.h"
#include "heads.h"
#include "recurrence.h"

/* The sections of a program's places, in their order; fastcells/backends/cpu/layout.py counts them in the same way. */
enum forward_section { X, PRODUCT, BIAS, STATE, EXTRA, CARRIED, NEW, SAVED, OPERAND, FORWARD_SECTIONS };
enum backward_section {
    D_NEW, BEFORE, AFTER, KEPT, PARAMETER, D_OPERAND, D_GATE, D_X, D_STATE, D_EXTRA, MADE, BACKWARD_SECTIONS
};
enum { MAX_SECTIONS = BACKWARD_SECTIONS };

/* Where each section begins. */
struct layout {
    size_t first[MAX_SECTIONS + 1], sections;
};

static inline struct layout lay_out(const size_t *counts, size_t sections) {
    struct layout layout = {.sections = sections};
    for (size_t i = 0; i < sections; i++) layout.first[i + 1] = layout.first[i] + counts[i];
    return layout;
}

static inline size_t places_of(const struct layout *layout) { return layout->first[layout->sections]; }

/* Give `count` places of a section an access, from one of them on. */
static inline void allow(unsigned char *access, const struct layout *layout, size_t section, size_t from, size_t count,
                         enum access what) {
    for (size_t i = 0; i < count; i++) access[layout->first[section] + from + i] = (unsigned char)what;
}

/* Programs of one or two phases, and what they may do. */
struct programs {
    struct layout layout;
    size_t phases;
    struct program of[MAX_PHASES];
    unsigned char access[MAX_PHASES][MAX_PLACES];
};

/* Are a cell's numbers such that places, tiles and products have room for them? */
static inline int numbers_fit(size_t gates, size_t first, size_t second, size_t states, size_t saved, size_t extra,
                              size_t carried, size_t H, size_t heads) {
    enum { MOST = MAX_PLACES / 8 };
    if (gates < 1 || states < 1 || gates > MOST || states > MOST || saved > MOST || extra > MOST || carried > MOST)
        return 0;
    if (heads < 1 || H % heads) return 0;
    return first <= MAX_WIDTH && second <= MAX_WIDTH && (first ? first + second == gates : second == 0);
}

/* Divide a defined cell's step; W_hh may have blocks. */
static inline void divide_defined(struct division *d, size_t first_gates, size_t second_gates, size_t B, size_t H,
                                  size_t heads, size_t vectors, size_t members) {
    divide(d, first_gates, second_gates, B, H, vectors, members);
    for (size_t phase = 0; phase < MAX_PHASES && heads > 1; phase++) {
        d->panels[phase].head = H / heads;
        d->panels[phase].all_gates = first_gates + second_gates;
    }
}

static inline size_t most_of_all(const struct programs *p) {
    size_t most = 0;
    for (size_t i = 0; i < p->phases; i++) {
        const size_t all = p->of[i].places + p->of[i].registers + p->of[i].constants;
        if (all > most) most = all;
    }
    return most;
}

/* Rows of a tile whose product is `width` vectors wide. */
INLINE size_t rows_of(size_t width) { return width ? ROWS[width] : MAX_ROWS; }

/* The floats of a member's blocks. Each phase has its own, since constants stay. */
static inline size_t member_floats(const struct programs *p) {
    return p->phases * most_of_all(p) * MAX_ROWS * MAX_WIDTH * LANES;
}

/* A member's blocks in the memory of all, with the constants in them. vectors: of columns in a tile. */
static void take_blocks(struct blocks blocks[MAX_PHASES], float *memory, const struct programs *p, size_t vectors,
                        int member) {
    const size_t floats = MAX_ROWS * vectors * LANES;
    for (size_t phase = 0; phase < p->phases; phase++) {
        float *own = memory + (size_t)member * member_floats(p) + phase * most_of_all(p) * floats;
        blocks[phase] = (struct blocks){own, floats};
        fill_constants(&blocks[phase], &p->of[phase], vectors);
    }
}

/* Read the programs of both phases, whose access is known. Returns 0, or 1 + the position of a word that is not valid,
   the second program's words following the first one's. */
static inline size_t read_programs(struct programs *p, const int32_t *words, size_t size, const int32_t *second,
                                   size_t second_size) {
    const size_t places = places_of(&p->layout), fault = read_program(&p->of[0], words, size, p->access[0], places);
    if (fault || p->phases == 1) return fault;
    const size_t later = read_program(&p->of[1], second, second_size, p->access[1], places);
    return later ? size + later : 0;
}

/* The columns of a tile that there are. */
INLINE struct extent extent_of(const struct tile *at, size_t H) {
    return (struct extent){at->rows, at->vectors, min_size(H - at->column, at->vectors * LANES)};
}

INLINE struct place place_at(const float *memory, size_t offset, size_t step) {
    return (struct place){(float *)memory + offset, step}; /* what is const is not WRITABLE */
}

/* The states of rows that start from zeros, without touching the tensor. Returns whether there is such a row. */
static int zero_starting(const struct blocks *blocks, struct place *table, size_t first, size_t states,
                         const struct tile *at, const struct extent *extent, const int64_t *lengths,
                         const uint8_t *resets, size_t B) {
    const size_t width = at->vectors * LANES;
    int any = 0;
    for (size_t r = 0; r < at->rows; r++) {
        if (!starts_episode_at(lengths, resets, at->t, B, at->row + r)) continue;
        any = 1;
        for (size_t i = first; i < first + states; i++) {
            into_block(blocks, &table[i], i, extent, 1);
            memset(table[i].at + r * width, 0, width * sizeof(float));
        }
    }
    return any;
}

#endif
