/* What the forward and the backward of a recurrence share: their weights, their team, and where sequences start and
   end. Members that share rows tell each other what the next product needs by writing the output tensors themselves,
   with a barrier after each phase. Every sum has one order, whatever the number of threads. */
#ifndef FASTCELLS_RECURRENCE_H
#define FASTCELLS_RECURRENCE_H

#include "cells.h"
#include "panels.h"

enum { MAX_PHASES = 2 };

static inline size_t phases_of(enum cell cell) {
    return CELL_FACTS[cell].first_gates < CELL_FACTS[cell].gates ? 2 : 1;
}

/* Whether the sequence of a row goes on at step t, and whether it starts from zeros there. */
INLINE int is_active(const int64_t *lengths, size_t t, size_t row) { return !lengths || (int64_t)t < lengths[row]; }
INLINE int starts_episode_at(const int64_t *lengths, const uint8_t *resets, size_t t, size_t B, size_t row) {
    return resets && resets[t * B + row] && is_active(lengths, t, row);
}

/* How a team shares a recurrence. */
struct division {
    struct panels panels[MAX_PHASES]; /* the weights of each phase */
    struct grid grid;
    struct barrier *barriers; /* one for each group of rows; the last one for all */
};

/* first_gates, second_gates: of each phase's product. vectors: of columns in a tile. */
static inline void divide(struct division *d, size_t first_gates, size_t second_gates, size_t B, size_t H,
                          size_t vectors, size_t members) {
    const size_t gates[MAX_PHASES] = {first_gates, second_gates};
    for (size_t phase = 0; phase < MAX_PHASES; phase++)
        d->panels[phase] = (struct panels){.H = H,
                                           .first_gate = phase ? first_gates : 0,
                                           .gates = gates[phase],
                                           .vectors = vectors,
                                           .data = d->panels[phase].data};
    d->grid = choose_grid(members, B, H, tiles_of(&d->panels[0]), (first_gates + second_gates) * H * terms_of(H));
}

static inline void divide_cell(struct division *d, enum cell cell, size_t B, size_t H, size_t vectors, size_t members) {
    const size_t first_gates = CELL_FACTS[cell].first_gates;
    divide(d, first_gates, CELL_FACTS[cell].gates - first_gates, B, H, vectors, members);
}

/* Whether a call's tensors stay in a core's caches, so that prefetching takes more time than it saves. It did with AMX's
   products (T=35, B=32, H=256: 12 to 20 %); with vectors there is time for it. */
static inline int stays_in_caches(enum cell cell, size_t T, size_t B, size_t H) {
#ifdef TILES
    enum { FITTING = 3 << 20 }; /* bytes of the input projections and the weights */
    return (T * B + H) * CELL_FACTS[cell].gates * H * sizeof(element) <= FITTING;
#else
    (void)cell, (void)T, (void)B, (void)H;
    return 0;
#endif
}

static inline size_t busy_members(const struct division *d) { return d->grid.row_groups * d->grid.members; }

/* Memory for a division among `threads`, and `floats` more, which it returns; NULL where memory does not suffice.
   free(d->barriers) ends it. panels: memory for the weights that outlives the call, or NULL. */
static inline float *division_scratch(struct division *d, size_t first_gates, size_t second_gates, size_t H,
                                      int threads, size_t floats, float *panels) {
    const size_t weights = panels ? 0 : panels_size(H, first_gates + second_gates);
    float *memory = scratch(&d->barriers, (size_t)threads + 1, weights + floats);
    if (!memory) return NULL;
    d->panels[0].data = panels ? panels : memory;
    d->panels[1].data = d->panels[0].data + panels_size(H, first_gates);
    return memory + weights;
}

static inline float *cell_scratch(struct division *d, enum cell cell, size_t H, int threads, size_t floats,
                                  float *panels) {
    const size_t first_gates = CELL_FACTS[cell].first_gates;
    return division_scratch(d, first_gates, CELL_FACTS[cell].gates - first_gates, H, threads, floats, panels);
}

/* A member's part. */
struct part {
    struct share share;
    size_t tile_columns;
    struct barrier *group; /* of those with the same rows */
    unsigned group_members;
};

/* Pack this member's part of the weights and wait for the others; pack is NULL where they are packed already. Returns 0
   for a member that has nothing to do. */
static inline int take_part(struct part *part, const struct division *d, size_t B, const element *w,
                            void (*pack)(const struct panels *, const element *restrict, size_t), int member,
                            int members) {
    const size_t tiles = tiles_of(&d->panels[0]), busy = busy_members(d), me = (size_t)member;
    if (me >= busy) return 0;
    const struct range packed = part_of(tiles, me, busy);
    for (size_t tile = packed.first; pack && tile < packed.end; tile++) {
        for (size_t phase = 0; phase < MAX_PHASES && d->panels[phase].gates; phase++) pack(&d->panels[phase], w, tile);
    }
    part->share = share_of(d->grid, me, B, tiles);
    part->tile_columns = d->panels[0].vectors * LANES;
    part->group = &d->barriers[me / d->grid.members];
    part->group_members = (unsigned)d->grid.members;
    if (pack) barrier_wait(&d->barriers[members], (unsigned)busy);
    return 1;
}

/* The columns of a share: `tile_columns` in each tile but the last. */
static inline struct range columns_of(const struct part *part, size_t H) {
    const size_t first = part->share.first_tile * part->tile_columns;
    return (struct range){min_size(first, H), min_size(first + part->share.tiles * part->tile_columns, H)};
}

/* A member's share of a plane [B, H], from elements to floats and back. */
static inline void read_share(const struct part *part, size_t H, float *to, const element *from) {
    const struct range columns = columns_of(part, H);
    for (size_t row = part->share.first_row; row < part->share.first_row + part->share.rows; row++) {
        for (size_t column = columns.first; column < columns.end; column += LANES) {
            const size_t at = row * H + column, lanes = lanes_at(columns.end, column);
            store_n(to + at, read_n(from + at, lanes), lanes);
        }
    }
}
static inline void write_share(const struct part *part, size_t H, element *to, const float *from) {
    const struct range columns = columns_of(part, H);
    for (size_t row = part->share.first_row; row < part->share.first_row + part->share.rows; row++) {
        for (size_t column = columns.first; column < columns.end; column += LANES) {
            const size_t at = row * H + column, lanes = lanes_at(columns.end, column);
            write_n(to + at, load_n(from + at, lanes), lanes);
        }
    }
}

/* A tile of rows and columns in one step. */
struct tile {
    size_t t, row, rows, column, vectors;
};

/* b: [G, H], or NULL. */
INLINE vec bias(const element *b, size_t H, size_t gate, size_t column, size_t lanes) {
    return b ? read_n(b + gate * H + column, lanes) : splat(0.0f);
}

#define AT_OR_NULL(p, offset) ((p) ? (p) + (offset) : NULL)

#endif
