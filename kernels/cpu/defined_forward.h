/* The forward pass of a defined cell. */
#ifndef FASTCELLS_DEFINED_FORWARD_H
#define FASTCELLS_DEFINED_FORWARD_H

#include "defined.h"

struct defined_forward_job {
    const struct defined_forward *task;
    struct programs programs;
    struct division division;
    float *operand, *carried; /* [B, H] and [B, C, H], from the first phase to the second; or NULL */
    float *others[2];         /* [N-1, B, H] each, after one step and after the next, where `others` is not given */
    float *blocks;            /* of all members */
};

/* A step: h before it, and how far the walk has come. */
struct defined_step {
    size_t t, number, before; /* before: the step taken ahead of this one */
    const float *h_prev;
};

/* State i, not h, after the step that was `number`-th and is at t: [B, H]. */
INLINE float *other_after(const struct defined_forward_job *job, size_t i, size_t number, size_t t) {
    const struct defined_forward *f = job->task;
    const size_t plane = f->B * f->H;
    if (f->others) return f->others + ((i - 1) * f->T + t) * plane;
    return job->others[number % 2] + (i - 1) * plane;
}

INLINE const float *state_before(const struct defined_forward_job *job, const struct defined_step *step, size_t i) {
    if (i == 0) return step->h_prev;
    if (step->number == 0) return job->task->state + i * job->task->B * job->task->H;
    return other_after(job, i, step->number - 1, step->before);
}

/* The places of a tile. */
static void bind_forward(const struct defined_forward_job *job, const struct defined_step *step, const struct tile *at,
                         size_t phase, tile_t *products, struct place *table) {
    const struct defined_forward *f = job->task;
    const size_t H = f->H, G = f->gates, S = f->num_saved, C = f->carried, *first = job->programs.layout.first;
    const size_t token = at->t * f->B + at->row, own = at->row * H + at->column;
    const struct panels *p = &job->division.panels[phase];
    for (size_t g = 0; g < G; g++) {
        table[first[X] + g] = place_at(f->x, (token * G + g) * H + at->column, G * H);
        if (f->b) table[first[BIAS] + g] = place_at(f->b, g * H + at->column, 0);
    }
    for (size_t g = 0; g < p->gates; g++)
        table[first[PRODUCT] + p->first_gate + g] =
            (struct place){products[g / MAX_WIDTH][0][g % MAX_WIDTH * at->vectors], MAX_WIDTH * LANES};
    for (size_t i = 0; i < f->states; i++) {
        float *after = i ? other_after(job, i, step->number, at->t) : f->hidden + at->t * f->B * H;
        table[first[STATE] + i] = place_at(state_before(job, step, i), own, H);
        table[first[NEW] + i] = place_at(after, own, H);
    }
    for (size_t i = 0; i < f->parameters; i++) table[first[EXTRA] + i] = place_at(f->extra, i * H + at->column, 0);
    for (size_t i = 0; i < C; i++)
        table[first[CARRIED] + i] = place_at(job->carried, (at->row * C + i) * H + at->column, C * H);
    for (size_t i = 0; f->saved && i < S; i++)
        table[first[SAVED] + i] = place_at(f->saved, token * S * H + i * H + at->column, S * H);
    if (job->operand) table[first[OPERAND]] = place_at(job->operand, own, H);
}

/* What the programs do not know of: rows whose sequence has ended, and the caller's output. */
static void finish_rows(const struct defined_forward_job *job, const struct defined_step *step, const struct tile *at,
                        size_t columns) {
    const struct defined_forward *f = job->task;
    const size_t H = f->H, bytes = columns * sizeof(float);
    for (size_t r = 0; r < at->rows; r++) {
        const size_t row = at->row + r, own = row * H + at->column, now = (at->t * f->B) * H + own;
        const int active = is_active(f->lengths, at->t, row);
        for (size_t i = 0; !active && i < f->states; i++) {
            float *after = i ? other_after(job, i, step->number, at->t) : f->hidden + at->t * f->B * H;
            memcpy(after + own, state_before(job, step, i) + own, bytes);
        }
        if (!f->out) continue;
        if (active)
            memcpy(f->out + now, f->hidden + now, bytes);
        else
            memset(f->out + now, 0, bytes);
    }
}

static void defined_forward_tile(const struct defined_forward_job *job, const struct blocks *blocks,
                                 const struct defined_step *step, const struct tile *at, size_t phase,
                                 tile_t *products) {
    const struct defined_forward *f = job->task;
    const struct extent extent = extent_of(at, f->H);
    struct place table[MAX_PLACES];
    bind_forward(job, step, at, phase, products, table);
    if (f->resets && zero_starting(blocks, table, job->programs.layout.first[STATE], f->states, at, &extent, f->lengths,
                                   f->resets, f->B)) {
        for (size_t r = 0; phase == 0 && r < at->rows; r++)
            if (starts_episode_at(f->lengths, f->resets, at->t, f->B, at->row + r))
                for (size_t i = 0; i < groups_of(&job->division.panels[phase]); i++)
                    memset(products[i][r], 0, sizeof products[i][r]);
    }
    run_program(blocks, &job->programs.of[phase], table, job->programs.access[phase], &extent);
    if (phase + 1 == job->programs.phases && (f->lengths || f->out)) finish_rows(job, step, at, extent.columns);
}

static void prefetch_defined(struct prefetch *list, const struct defined_forward *f, const struct tile *at,
                             const struct panels *p) {
    const size_t G = f->gates, S = f->num_saved, H = f->H, token = at->t * f->B + at->row;
    prefetch(list, f->x + (token * G + p->first_gate) * H + at->column, G * H, p->gates, H, at->vectors);
    prefetch(list, f->hidden + token * H + at->column, H, 1, H, at->vectors);
    if (f->out) prefetch(list, f->out + token * H + at->column, H, 1, H, at->vectors);
    if (f->saved) prefetch(list, f->saved + token * S * H + at->column, S * H, S, H, at->vectors);
    for (size_t i = 1; f->others && i < f->states; i++) {
        const float *other = f->others + (((i - 1) * f->T + at->t) * f->B + at->row) * H;
        prefetch(list, other + at->column, H, 1, H, at->vectors);
    }
}

static void defined_forward_phase(const struct defined_forward_job *job, const struct share *share,
                                  const struct blocks *blocks, const struct defined_step *step, size_t phase) {
    const struct defined_forward *f = job->task;
    const struct panels *p = &job->division.panels[phase];
    const float *a = phase ? job->operand : step->h_prev;
    tile_t products[MAX_GROUPS];
    struct prefetch list;
    for (size_t tile = share->first_tile; tile < share->first_tile + share->tiles; tile++) {
        struct tile at = {
            .t = step->t, .row = share->first_row, .column = tile * p->vectors * LANES, .vectors = vectors_in(p, tile)};
        const size_t widest = min_size(p->gates, MAX_WIDTH) * at.vectors;
        const struct range units = units_of(p, tile);
        list.lines = 0;
        prefetch_defined(&list, f, &at, p);
        for (size_t done = 0; done < share->rows; done += at.rows) {
            at.row = share->first_row + done;
            at.rows = height(share->rows, done, rows_of(widest));
            prefetch_rows(&list, at.rows);
            for (size_t i = 0; i < groups_of(p); i++, list.count = 0) {
                const struct panels group = group_of(p, i);
                const size_t width = group.gates * at.vectors;
                if (p->head)
                    gemm_heads(at.rows, width, products[i], a + at.row * f->H + units.first, f->H, 1, 0,
                               panel(&group, tile), units.end - units.first, p->head, &list);
                else
                    gemm_tile(at.rows, width, products[i], a + at.row * f->H, f->H, panel(&group, tile), f->H, 0,
                              &list);
            }
            defined_forward_tile(job, blocks, step, &at, phase, products);
        }
    }
}

/* Vectors of columns in a tile: all gates of a phase are in one, or in groups of as many as fit. */
static size_t defined_vectors(const struct defined_forward *f, size_t members) {
    const size_t gates = f->first_gates > f->second_gates ? f->first_gates : f->second_gates;
    return gates > MAX_WIDTH ? 1 : min_size(tile_width(f->H, members), gates ? MAX_WIDTH / gates : MAX_WIDTH);
}

static void divide_defined_forward(struct division *d, const struct defined_forward *f, size_t members) {
    divide_defined(d, f->first_gates, f->second_gates, f->B, f->H, f->heads, defined_vectors(f, members), members);
}

static void defined_forward_member(void *argument, int member, int members) {
    struct defined_forward_job job = *(struct defined_forward_job *)argument;
    const struct defined_forward *f = job.task;
    const size_t B = f->B, H = f->H, T = f->T, phases = job.programs.phases;
    struct part part;
    struct blocks blocks[MAX_PHASES];
    divide_defined_forward(&job.division, f, (size_t)members);
    if (!take_part(&part, &job.division, B, f->w, pack_forward_heads, member, members)) return;
    take_blocks(blocks, job.blocks, &job.programs, job.division.panels[0].vectors, member);
    struct defined_step step = {.h_prev = f->state};
    for (; step.number < T; step.number++) {
        step.t = f->reverse ? T - 1 - step.number : step.number;
        for (size_t phase = 0; phase < phases; phase++) {
            if (f->first_gates && step.number + phase > 0) barrier_wait(part.group, part.group_members);
            defined_forward_phase(&job, &part.share, &blocks[phase], &step, phase);
        }
        step.h_prev = f->hidden + step.t * B * H;
        step.before = step.t;
    }
    for (size_t i = 0; i < f->states; i++)
        write_share(&part, H, f->last + i * B * H, state_before(&job, &step, i));
}

/* What each phase may read and has to write. Returns 0, or what read_program says. */
static size_t read_forward_programs(struct programs *p, const struct defined_forward *f) {
    const size_t G = f->gates, first = f->first_gates, second = f->second_gates;
    const size_t counts[] = {G, G, f->b ? G : 0, f->states, f->parameters, f->carried, f->states, f->num_saved, 1};
    p->layout = lay_out(counts, FORWARD_SECTIONS);
    p->phases = second ? 2 : 1;
    if (places_of(&p->layout) > MAX_PLACES) return 1;
    memset(p->access, NO_ACCESS, sizeof p->access);
    for (size_t phase = 0; phase < p->phases; phase++) {
        unsigned char *access = p->access[phase];
        allow(access, &p->layout, X, 0, G, READABLE);
        allow(access, &p->layout, BIAS, 0, f->b ? G : 0, READABLE);
        allow(access, &p->layout, PRODUCT, phase ? first : 0, phase ? second : first, READABLE);
        allow(access, &p->layout, STATE, 0, f->states, READABLE);
        allow(access, &p->layout, EXTRA, 0, f->parameters, READABLE);
        if (second) allow(access, &p->layout, CARRIED, 0, f->carried, phase ? READABLE : WRITABLE);
        if (phase + 1 == p->phases) {
            allow(access, &p->layout, NEW, 0, f->states, WRITABLE);
            if (f->saved) allow(access, &p->layout, SAVED, 0, f->num_saved, WRITABLE);
        } else {
            allow(access, &p->layout, OPERAND, 0, 1, WRITABLE);
        }
    }
    return read_programs(p, f->program, f->program_size, f->second_program, f->second_size);
}

static int defined_forward(const struct defined_forward *given, int threads) {
    struct defined_forward task = *given, *f = &task;
    struct defined_forward_job job = {.task = f};
    if (!numbers_fit(f->gates, f->first_gates, f->second_gates, f->states, f->num_saved, f->parameters, f->carried,
                     f->H, f->heads))
        return 1;
    const size_t fault = read_forward_programs(&job.programs, f);
    if (fault) return (int)fault;
    if (!f->hidden) f->hidden = f->out, f->out = NULL;
    const size_t plane = f->B * f->H, others = f->others ? 0 : (f->states - 1) * plane;
    const size_t two = job.programs.phases > 1 ? plane : 0;
    const size_t blocks = (size_t)threads * member_floats(&job.programs);
    float *memory = division_scratch(&job.division, f->first_gates, f->second_gates, f->H, threads,
                                     blocks + 2 * others + two * (1 + f->carried), NULL);
    if (!memory) return -1;
    job.blocks = memory;
    memory += blocks;
    job.others[0] = memory, job.others[1] = memory + others;
    memory += 2 * others;
    if (two) job.operand = memory, job.carried = memory + plane;
    divide_defined_forward(&job.division, f, (size_t)threads);
    team_run((int)busy_members(&job.division), defined_forward_member, &job);
    free(job.division.barriers);
    return 0;
}

#endif
