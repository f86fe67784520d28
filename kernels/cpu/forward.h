/* The forward pass. */
#ifndef FASTCELLS_FORWARD_H
#define FASTCELLS_FORWARD_H

#include "arguments.h"
#include "recurrence.h"

/* Packed weights that outlive a call, for tiles of so many vectors of columns; `filled` where a call before has packed
   them. All zeros: there are none. */
struct kept_panels {
    float *data;
    size_t vectors;
    int filled;
};

struct forward_job {
    const forward_task *task;
    struct kept_panels kept;
    struct division division;
    element *reset_hidden; /* this and z: [B, H] each, from the first phase to the second; or NULL */
    float *z;
    float *h, *c; /* [B, H] each, where the states are carried apart */
};

INLINE void update_rows(enum cell cell, size_t phase, const struct forward_job *job, const struct tile *at,
                        const element *h_prev, tile_t products) {
    const forward_task *f = job->task;
    const size_t B = f->B, H = f->H, G = CELL_FACTS[cell].gates, S = CELL_FACTS[cell].num_saved;
    const size_t first_gate = phase ? CELL_FACTS[cell].first_gates : 0;
    const size_t gates = phase ? G - first_gate : CELL_FACTS[cell].first_gates;
    for (size_t r = 0; r < at->rows; r++) {
        const size_t row = at->row + r, token = at->t * B + row;
        struct update u = {.H = H, .active = is_active(f->lengths, at->t, row)};
        u.starts_episode = !h_prev || starts_episode_at(f->lengths, f->resets, at->t, B, row);
        for (size_t v = 0; v < at->vectors; v++) {
            const size_t column = at->column + v * LANES, own = row * H + column, now = token * H + column;
            vec product[MAX_GATES];
            u.lanes = lanes_at(H, column);
            UNROLL for (size_t g = 0; g < gates; g++) {
                product[g] = bias(f->b, H, first_gate + g, column, u.lanes);
                if (!u.starts_episode || phase > 0) product[g] += load(in_tile(products, gates * at->vectors, r, g * at->vectors + v));
            }
            u.x = f->x + token * G * H + column;
            u.h_prev = AT_OR_NULL(CARRIED(job->h, h_prev), own);
            u.h = CARRIED(job->h + own, f->hidden + now);
            u.hidden = f->hidden + now;
            u.out = AT_OR_NULL(f->out, now);
            u.c = AT_OR_NULL(CARRIED(job->c, f->c_n), own);
            u.cells = AT_OR_NULL(f->cells, now);
            u.saved = AT_OR_NULL(f->saved, token * S * H + column);
            u.reset_hidden = AT_OR_NULL(job->reset_hidden, own);
            u.z = AT_OR_NULL(job->z, own);
            update_vector(cell, phase, &u, product);
        }
    }
}

/* The compiler sees each cell and phase by itself: told at run time, a reset-before GRU took 2 to 5 % more of the whole
   forward (measured with AVX2 and AVX-512, H 256 and 512). */
static void update_tile(const struct forward_job *job, const struct tile *at, size_t phase, const element *h_prev,
                        tile_t products) {
    switch (job->task->cell) {
    case RNN_TANH: update_rows(RNN_TANH, 0, job, at, h_prev, products); break;
    case RNN_RELU: update_rows(RNN_RELU, 0, job, at, h_prev, products); break;
    case GRU_RESET_AFTER: update_rows(GRU_RESET_AFTER, 0, job, at, h_prev, products); break;
    case GRU_RESET_BEFORE:
        if (phase == 0)
            update_rows(GRU_RESET_BEFORE, 0, job, at, h_prev, products);
        else
            update_rows(GRU_RESET_BEFORE, 1, job, at, h_prev, products);
        break;
    default: update_rows(LSTM, 0, job, at, h_prev, products);
    }
}

/* What the update of a tile reads and writes. */
static void prefetch_update(struct prefetch *list, const forward_task *f, const struct tile *at,
                            const struct panels *p) {
    const size_t G = CELL_FACTS[f->cell].gates, S = CELL_FACTS[f->cell].num_saved, H = f->H;
    list->count = 0;
    for (size_t r = 0; r < at->rows; r++) {
        const size_t token = at->t * f->B + at->row + r;
        prefetch(list, f->x + (token * G + p->first_gate) * H + at->column, p->gates, H, at->vectors);
        prefetch(list, f->hidden + token * H + at->column, 1, H, at->vectors);
        if (f->out) prefetch(list, f->out + token * H + at->column, 1, H, at->vectors);
        if (f->saved) prefetch(list, f->saved + token * S * H + at->column, S, H, at->vectors);
        if (f->cells) prefetch(list, f->cells + token * H + at->column, 1, H, at->vectors);
    }
}

static void forward_phase(const struct forward_job *job, const struct share *share, size_t t, const element *h_prev,
                          size_t phase) {
    const forward_task *f = job->task;
    const struct panels *p = &job->division.panels[phase];
    const element *a = phase ? job->reset_hidden : h_prev;
    tile_t products;
    struct prefetch list;
    for (size_t i = 0; i < share->tiles; i++) {
        /* Every other step goes backwards: it begins with the weights that the one before has left in the cache. */
        const size_t tile = share->first_tile + (t % 2 ? share->tiles - 1 - i : i);
        struct tile at = {.t = t, .column = tile * p->vectors * LANES, .vectors = vectors_in(p, tile)};
        const size_t width = p->gates * at.vectors;
        /* A line of memory has TERM vectors of elements: what is in one with the tile before has been prefetched. */
        const int own_lines = i == 0 || at.vectors > 1 || (t % 2 ? tile + 1 : tile) % TERM == 0;
        for (size_t done = 0; done < share->rows; done += at.rows) {
            at.row = share->first_row + done;
            at.rows = height(share->rows, done, ROWS[width]);
            if (own_lines)
                prefetch_update(&list, f, &at, p);
            else
                list.count = 0;
            if (a) gemm_tile(at.rows, width, products, a + at.row * f->H, f->H, panel(p, tile), f->H, &list);
            update_tile(job, &at, phase, h_prev, products);
        }
    }
}

/* Vectors of columns in a tile; all gates of a vector are in one. */
static size_t forward_vectors(enum cell cell, size_t B, size_t H, size_t members) {
    const size_t gates = CELL_FACTS[cell].first_gates;
    /* A row by itself: as wide as it goes where weights come from the second cache, narrower where the first one keeps
       some of them (measured: 15 % of the forward at H 256, 12 % at H 64). */
    const size_t one = H > 64 ? WIDEST : 2 * MAX_WIDTH, wide = B == 1 ? one : B == 2 ? WIDE_FOR_TWO : 0;
    return wide > MAX_WIDTH ? min_size(wide / gates, ceil_div(vectors_of(H), members))
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
}

/* h0 may be NULL for zeros where the state is not carried apart. */
static int forward_with(const forward_task *given, struct kept_panels kept, int threads) {
    forward_task task = *given, *f = &task;
    if (!f->hidden) f->hidden = f->out, f->out = NULL;
    const size_t plane = phases_of(f->cell) > 1 ? f->B * f->H : 0, state = STATES_CARRIED ? f->B * f->H : 0;
    struct forward_job job = {.task = f, .kept = kept};
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
