/* The forward pass. */
#ifndef FASTCELLS_FORWARD_H
#define FASTCELLS_FORWARD_H

#include "update_tile.h"

/* What the update of a tile's columns reads and writes of each row from at's on. */
static void prefetch_update(struct prefetch *list, const forward_task *f, const struct tile *at,
                            const struct panels *p) {
    const size_t G = CELL_FACTS[f->cell].gates, S = CELL_FACTS[f->cell].num_saved, H = f->H;
    const size_t token = at->t * f->B + at->row;
    prefetch(list, f->x + (token * G + p->first_gate) * H + at->column, G * H, p->gates, H, at->vectors);
    prefetch(list, f->hidden + token * H + at->column, H, 1, H, at->vectors);
    if (f->out) prefetch(list, f->out + token * H + at->column, H, 1, H, at->vectors);
    if (f->saved) prefetch(list, f->saved + token * S * H + at->column, S * H, S, H, at->vectors);
    if (f->cells) prefetch(list, f->cells + token * H + at->column, H, 1, H, at->vectors);
}

/* What others have just written of the rows to multiply, all at once: the product would wait for two or three lines at a
   time. Where weights come from the third cache, it waits for them meanwhile. */
static void fetch_states(const struct division *d, const struct share *share, const element *a) {
    const struct panels *p = &d->panels[0];
    if (d->grid.members < 2 || panels_size(p->H, p->gates) / d->grid.members > (size_t)1 << 18) return;
    for (size_t row = share->first_row; row < share->first_row + min_size(share->rows, MAX_ROWS); row++) {
        for (size_t k = 0; k < p->H; k += CACHE_LINE / sizeof(element)) __builtin_prefetch(a + row * p->H + k);
    }
}

static void forward_phase(const struct forward_job *job, const struct share *share, size_t t, const element *h_prev,
                          size_t phase) {
    const forward_task *f = job->task;
    const struct panels *p = &job->division.panels[phase];
    const element *a = phase ? job->reset_hidden : h_prev;
    tile_t products;
    struct prefetch list;
    if (a) fetch_states(&job->division, share, a);
    for (size_t i = 0; i < share->tiles; i++) {
        /* Every other step goes backwards: it begins with the weights that the one before has left in the cache. */
        const size_t tile = share->first_tile + (t % 2 ? share->tiles - 1 - i : i);
        struct tile at = {
            .t = t, .row = share->first_row, .column = tile * p->vectors * LANES, .vectors = vectors_in(p, tile)};
        const size_t width = p->gates * at.vectors;
        /* A line of memory has TERM vectors of elements: what is in one with the tile before has been prefetched. */
        const int first_of_line = i == 0 || at.vectors > 1 || (t % 2 ? tile + 1 : tile) % TERM == 0;
        list.lines = 0;
        if (first_of_line && !job->kept.in_caches) prefetch_update(&list, f, &at, p);
        for (size_t done = 0; done < share->rows; done += at.rows) {
            at.row = share->first_row + done;
            at.rows = height(share->rows, done, ROWS[width]);
            prefetch_rows(&list, at.rows);
            if (a) gemm_tile(at.rows, width, products, a + at.row * f->H, f->H, panel(p, tile), f->H, 0, &list);
            update_tile(job, &at, phase, h_prev, products);
        }
    }
}

/* Vectors of columns in a tile; all gates of a vector are in one. */
static size_t forward_vectors(enum cell cell, size_t B, size_t H, size_t members) {
    const size_t gates = CELL_FACTS[cell].first_gates;
    /* A row by itself: as wide as it goes where weights come from the second cache, narrower where the first one keeps
       some of them (measured: 15 % of the forward at H 256, 12 % at H 64). */
    const size_t one = H > 64 ? WIDEST : min_size(WIDEST, 2 * MAX_WIDTH), wide = B == 1 ? one : B == 2 ? WIDE_FOR_TWO : 0;
    return wide > MAX_WIDTH ? even_width(vectors_of(H), members, wide / gates)
                            : min_size(tile_width(H, members), MAX_WIDTH / gates);
}

static void divide_forward(struct forward_job *job, size_t members) {
    const forward_task *f = job->task;
    const size_t vectors = job->kept.data ? job->kept.vectors : forward_vectors(f->cell, f->B, f->H, members);
    divide_cell(&job->division, f->cell, f->B, f->H, vectors, members);
}

static void forward_member(void *argument, int member, int members) {
    struct forward_job job = *(struct forward_job *)argument;
    const forward_task *f = job.task;
    const size_t B = f->B, H = f->H, T = f->T, phases = phases_of(f->cell);
    struct part part;
    divide_forward(&job, (size_t)members);
    if (!take_part(&part, &job.division, B, f->w, job.kept.filled ? NULL : pack_forward, member, members)) return;
    if (f->c_n) read_share(&part, H, CARRIED(job.c, f->c_n), f->c0);
    if (STATES_CARRIED) read_share(&part, H, job.h, f->h0);
    const element *h_prev = f->h0;
    for (size_t i = 0; i < T; i++) {
        const size_t t = f->reverse ? T - 1 - i : i;
        for (size_t phase = 0; phase < phases; phase++) {
            if (i + phase > 0) barrier_wait(part.group, part.group_members);
            forward_phase(&job, &part.share, t, h_prev, phase);
        }
        h_prev = f->hidden + t * B * H;
    }
    write_share(&part, H, f->h_n, CARRIED(job.h, h_prev));
    if (STATES_CARRIED && f->c_n) write_share(&part, H, f->c_n, job.c);
    release_tiles();
}

/* h0 may be NULL for zeros where the state is not carried apart. */
static int forward_with(const forward_task *given, struct kept_panels kept, int threads) {
    forward_task task = *given, *f = &task;
    if (!f->hidden) f->hidden = f->out, f->out = NULL;
    const size_t plane = phases_of(f->cell) > 1 ? f->B * f->H : 0, state = STATES_CARRIED ? f->B * f->H : 0;
    struct forward_job job = {.task = f, .kept = kept};
    if (stays_in_caches(f->cell, f->T, f->B, f->H)) job.kept.in_caches = 1;
    float *memory = cell_scratch(&job.division, f->cell, f->H, threads, 2 * plane + 2 * state, kept.data);
    if (!memory) return -1;
    if (plane) job.z = memory, job.reset_hidden = (element *)(memory + plane);
    job.h = memory + 2 * plane;
    if (f->c_n) job.c = job.h + state;
    divide_forward(&job, (size_t)threads);
    team_run((int)busy_members(&job.division), forward_member, &job);
    free(job.division.barriers);
    return 0;
}

static int forward(const forward_task *task, int threads) { return forward_with(task, (struct kept_panels){0}, threads); }

#endif
