/* The backward pass of a defined cell. */
#ifndef FASTCELLS_DEFINED_BACKWARD_H
#define FASTCELLS_DEFINED_BACKWARD_H

#include "defined.h"
#include "weight_grad.h"

struct defined_backward_job {
    const struct defined_backward *task;
    struct programs programs;
    struct division division;
    float *d_state[2]; /* [N, B, H] each: between one pair of steps, and between the next */
    float *d_new_h;    /* [B, H], from the first phase to the second; or NULL */
    float *d_extra;    /* [B, E, H]: each row's own, so that sums have one order; or NULL */
    float *blocks;
};

/* A step, the one taken after it (T for none), and h before it; number: of steps that the walk back has taken. */
struct defined_back_step {
    size_t t, later, before, number;
    const float *h_prev;
    int first; /* whether it is the first of the forward */
};

enum defined_phase { FIRST, SECOND, LAST_PRODUCT };

INLINE const float *other_before(const struct defined_backward *b, const struct defined_back_step *step, size_t i) {
    const size_t plane = b->B * b->H;
    if (step->first) return b->state + i * plane;
    return b->others + ((i - 1) * b->T + step->before) * plane;
}

static void bind_backward(const struct defined_backward_job *job, const struct blocks *blocks,
                          const struct defined_back_step *step, const struct tile *at, tile_t through,
                          struct place *table) {
    const struct defined_backward *b = job->task;
    const size_t H = b->H, G = b->gates, S = b->num_saved, plane = b->B * H, *first = job->programs.layout.first;
    const size_t token = at->t * b->B + at->row, own = at->row * H + at->column, width = at->vectors * LANES;
    for (size_t i = 0; i < b->states; i++) {
        const float *after = i ? b->others + ((i - 1) * b->T + at->t) * plane : b->hidden + at->t * plane;
        table[first[D_NEW] + i] = i ? place_at(job->d_state[step->number % 2], i * plane + own, H)
                                    : (struct place){block_of(blocks, first[D_NEW]), width};
        table[first[BEFORE] + i] = place_at(i ? other_before(b, step, i) : step->h_prev, own, H);
        table[first[AFTER] + i] = place_at(after, own, H);
        table[first[D_STATE] + i] = place_at(job->d_state[(step->number + 1) % 2], i * plane + own, H);
    }
    for (size_t i = 0; i < S; i++)
        table[first[KEPT] + i] = place_at(b->saved, (token * S + i) * H + at->column, S * H);
    for (size_t i = 0; i < b->parameters; i++) {
        table[first[PARAMETER] + i] = place_at(b->extra, i * H + at->column, 0);
        table[first[D_EXTRA] + i] = (struct place){block_of(blocks, first[D_EXTRA] + i), width};
    }
    for (size_t g = 0; g < G; g++) {
        const size_t offset = (token * G + g) * H + at->column;
        table[first[D_GATE] + g] = place_at(b->d_gates ? b->d_gates : b->d_x, offset, G * H);
        if (b->d_gates) table[first[D_X] + g] = place_at(b->d_x, offset, G * H);
    }
    table[first[D_OPERAND]] = (struct place){through[0][0], MAX_WIDTH * LANES};
    if (b->operand) table[first[MADE]] = place_at(b->operand, token * H + at->column, H);
}

/* The gradient of h after the step, in its block. through: the product, or NULL at the last step. */
static void sum_d_new(const struct defined_backward_job *job, float *d_new, const struct defined_back_step *step,
                      const struct tile *at, tile_t through) {
    const struct defined_backward *b = job->task;
    const size_t B = b->B, H = b->H;
    for (size_t r = 0; r < at->rows; r++) {
        const size_t row = at->row + r;
        const int active = is_active(b->lengths, step->t, row);
        const int cut = step->later < b->T && starts_episode_at(b->lengths, b->resets, step->later, B, row);
        for (size_t v = 0; v < at->vectors; v++) {
            const size_t column = at->column + v * LANES, lanes = lanes_at(H, column), own = row * H + column;
            vec d = load_n(job->d_state[step->number % 2] + own, lanes);
            if (through && !cut) d += load(through[r][v]);
            if (active) d += load_n(b->d_hidden + step->t * B * H + own, lanes);
            store(d_new + (r * at->vectors + v) * LANES, d);
            if (job->d_new_h) store_n(job->d_new_h + own, d, lanes);
        }
    }
}

/* The gates of one phase: those of the other are read meanwhile. */
INLINE struct range gates_of(const struct defined_backward *b, enum defined_phase phase) {
    if (!b->second_gates) return (struct range){0, b->gates};
    return phase == FIRST ? (struct range){b->first_gates, b->gates} : (struct range){0, b->first_gates};
}

/* No gradient of a phase's gates in rows past their length. */
static void zero_finished(const struct defined_backward *b, const struct tile *at, enum defined_phase phase,
                          size_t columns) {
    const struct range gates = gates_of(b, phase);
    for (size_t r = 0; r < at->rows; r++) {
        if (is_active(b->lengths, at->t, at->row + r)) continue;
        for (size_t g = gates.first; g < gates.end; g++) {
            const size_t offset = ((at->t * b->B + at->row + r) * b->gates + g) * b->H + at->column;
            memset(b->d_x + offset, 0, columns * sizeof(float));
            if (b->d_gates) memset(b->d_gates + offset, 0, columns * sizeof(float));
        }
    }
}

/* What the program does not know of: states of rows past their length, rows that start from zeros, and sums over time. */
static void finish_gradients(const struct defined_backward_job *job, const struct blocks *blocks,
                             const struct defined_back_step *step, const struct tile *at, struct place *table,
                             size_t columns) {
    const struct defined_backward *b = job->task;
    const size_t B = b->B, H = b->H, E = b->parameters, width = at->vectors * LANES;
    const size_t *first = job->programs.layout.first, bytes = columns * sizeof(float);
    for (size_t r = 0; r < at->rows; r++) {
        const size_t row = at->row + r, own = row * H + at->column, token = at->t * B + row;
        float *after = job->d_state[(step->number + 1) % 2];
        const float *d_new = table[first[D_NEW]].at + r * width;
        if (!is_active(b->lengths, at->t, row)) {
            memcpy(after + own, d_new, bytes);
            for (size_t i = 1; i < b->states; i++)
                memcpy(after + i * B * H + own, job->d_state[step->number % 2] + i * B * H + own, bytes);
            if (b->operand) memset(b->operand + token * H + at->column, 0, bytes);
            continue;
        }
        if (starts_episode_at(b->lengths, b->resets, at->t, B, row))
            for (size_t i = 0; i < b->states; i++) memset(after + i * B * H + own, 0, bytes);
        for (size_t i = 0; i < E; i++) {
            float *sum = job->d_extra + (row * E + i) * H + at->column;
            const float *d = block_of(blocks, first[D_EXTRA] + i) + r * width;
            for (size_t k = 0; k < columns; k += LANES) {
                const size_t lanes = lanes_at(columns, k);
                store_n(sum + k, load_n(sum + k, lanes) + load(d + k), lanes);
            }
        }
    }
}

static void defined_gradient_tile(const struct defined_backward_job *job, const struct blocks *blocks,
                                  const struct defined_back_step *step, const struct tile *at,
                                  enum defined_phase phase, int last, tile_t through) {
    const struct defined_backward *b = job->task;
    const struct programs *p = &job->programs;
    const size_t *first = p->layout.first;
    const struct extent extent = extent_of(at, b->H);
    struct place table[MAX_PLACES];
    bind_backward(job, blocks, step, at, through, table);
    if (phase == FIRST) {
        sum_d_new(job, block_of(blocks, first[D_NEW]), step, at, last ? NULL : through);
    } else {
        table[first[D_NEW]] = place_at(job->d_new_h, at->row * b->H + at->column, b->H);
        into_block(blocks, &table[first[D_NEW]], first[D_NEW], &extent, 1);
    }
    if (b->resets) zero_starting(blocks, table, first[BEFORE], b->states, at, &extent, b->lengths, b->resets, b->B);
    run_program(blocks, &p->of[phase], table, p->access[phase], &extent);
    if (b->lengths) zero_finished(b, at, phase, extent.columns);
    if (phase + 1u == p->phases) finish_gradients(job, blocks, step, at, table, extent.columns);
}

/* d_state of h, when the first step's gradients have gone through the weights. */
static void defined_initial_tile(const struct defined_backward_job *job, const struct defined_back_step *step,
                                 const struct tile *at, tile_t through) {
    const struct defined_backward *b = job->task;
    for (size_t r = 0; r < at->rows; r++) {
        const size_t row = at->row + r;
        if (starts_episode_at(b->lengths, b->resets, step->later, b->B, row)) continue;
        for (size_t v = 0; v < at->vectors; v++) {
            const size_t column = at->column + v * LANES, lanes = lanes_at(b->H, column);
            float *d = job->d_state[step->number % 2] + row * b->H + column;
            store_n(d, load_n(d, lanes) + load(through[r][v]), lanes);
        }
    }
}

static void prefetch_defined_gradient(struct prefetch *list, const struct defined_backward *b,
                                      const struct defined_back_step *step, const struct tile *at) {
    const size_t H = b->H, G = b->gates, S = b->num_saved, column = at->column, vectors = at->vectors;
    const size_t row = at->row, token = step->t * b->B + row;
    prefetch(list, b->d_hidden + token * H + column, H, 1, H, vectors);
    prefetch(list, step->h_prev + row * H + column, H, 1, H, vectors);
    if (b->saved) prefetch(list, b->saved + token * S * H + column, S * H, S, H, vectors);
    for (size_t i = 1; i < b->states; i++)
        prefetch(list, other_before(b, step, i) + row * H + column, H, 1, H, vectors);
    prefetch(list, b->d_x + token * G * H + column, G * H, G, H, vectors);
    if (b->d_gates) prefetch(list, b->d_gates + token * G * H + column, G * H, G, H, vectors);
}

/* As backward_phase: the product is with the gates' gradients of the later step, in the second phase of this one. */
static void defined_backward_phase(const struct defined_backward_job *job, const struct share *share,
                                   const struct blocks *blocks, const struct defined_back_step *step,
                                   enum defined_phase phase) {
    const struct defined_backward *b = job->task;
    const struct panels *p = &job->division.panels[phase == SECOND];
    const size_t stride = b->gates * b->H, from = phase == SECOND ? step->t : step->later;
    const float *a = (b->d_gates ? b->d_gates : b->d_x) + from * b->B * stride + p->first_gate * b->H;
    const int last = from == b->T || p->gates == 0;
    tile_t products;
    struct prefetch list;
    for (size_t tile = share->first_tile; tile < share->first_tile + share->tiles; tile++) {
        struct tile at = {
            .t = step->t, .row = share->first_row, .column = tile * p->vectors * LANES, .vectors = vectors_in(p, tile)};
        const struct range units = units_of(p, tile);
        list.lines = 0;
        if (phase == FIRST) prefetch_defined_gradient(&list, b, step, &at);
        for (size_t done = 0; done < share->rows; done += at.rows) {
            at.row = share->first_row + done;
            at.rows = height(share->rows, done, rows_of(p->gates ? at.vectors : 0));
            prefetch_rows(&list, at.rows);
            if (!last && p->head)
                gemm_heads(at.rows, at.vectors, products, a + at.row * stride + units.first, stride, p->gates, b->H,
                           panel(p, tile), units.end - units.first, p->head, &list);
            else if (!last)
                gemm_tile(at.rows, at.vectors, products, a + at.row * stride, stride, panel(p, tile), b->H * p->gates,
                          0, &list);
            if (phase == LAST_PRODUCT)
                defined_initial_tile(job, step, &at, products);
            else
                defined_gradient_tile(job, blocks, step, &at, phase, last, products);
        }
    }
}

static void divide_defined_backward(struct division *d, const struct defined_backward *b, size_t members) {
    divide_defined(d, b->first_gates, b->second_gates, b->B, b->H, b->heads, tile_width(b->H, members), members);
}

static void defined_backward_member(void *argument, int member, int members) {
    struct defined_backward_job job = *(struct defined_backward_job *)argument;
    const struct defined_backward *b = job.task;
    const size_t B = b->B, H = b->H, T = b->T, phases = job.programs.phases;
    struct part part;
    struct blocks blocks[MAX_PHASES];
    divide_defined_backward(&job.division, b, (size_t)members);
    if (!take_part(&part, &job.division, B, b->w, pack_backward_heads, member, members)) return;
    take_blocks(blocks, job.blocks, &job.programs, job.division.panels[0].vectors, member);
    for (size_t i = 0; i < b->states; i++)
        write_share(&part, H, job.d_state[0] + i * B * H, b->d_last + i * B * H);
    struct defined_back_step step = {.later = T};
    for (size_t i = T; i-- > 0; step.number++) {
        const size_t t = b->reverse ? T - 1 - i : i;
        step.t = t;
        step.first = i == 0;
        step.before = b->reverse ? t + 1 : t - 1;
        step.h_prev = i > 0 ? b->hidden + step.before * B * H : b->state;
        for (size_t phase = 0; phase < phases; phase++) {
            defined_backward_phase(&job, &part.share, &blocks[phase], &step, phase ? SECOND : FIRST);
            if (b->first_gates) barrier_wait(part.group, part.group_members);
        }
        step.later = t;
    }
    if (b->first_gates) defined_backward_phase(&job, &part.share, NULL, &step, LAST_PRODUCT);
    for (size_t i = 0; i < b->states; i++)
        write_share(&part, H, b->d_state + i * B * H,
                   job.d_state[step.number % 2] + i * B * H);
}

static size_t read_backward_programs(struct programs *p, const struct defined_backward *b) {
    const size_t G = b->gates, N = b->states, S = b->num_saved, E = b->parameters, second = b->second_gates;
    const size_t counts[] = {N, N, N, S, E, 1, G, b->d_gates ? G : 0, N, E, 1};
    p->layout = lay_out(counts, BACKWARD_SECTIONS);
    p->phases = second ? 2 : 1;
    if (places_of(&p->layout) > MAX_PLACES) return 1;
    memset(p->access, NO_ACCESS, sizeof p->access);
    for (size_t phase = 0; phase < p->phases; phase++) {
        unsigned char *access = p->access[phase];
        const int final = phase + 1 == p->phases;
        allow(access, &p->layout, D_NEW, 0, N, READABLE);
        allow(access, &p->layout, BEFORE, 0, N, READABLE);
        allow(access, &p->layout, AFTER, 0, N, READABLE);
        allow(access, &p->layout, KEPT, 0, S, READABLE);
        allow(access, &p->layout, PARAMETER, 0, E, READABLE);
        if (phase) allow(access, &p->layout, D_OPERAND, 0, 1, READABLE);
        const struct range own = gates_of(b, phase ? SECOND : FIRST);
        allow(access, &p->layout, D_GATE, own.first, own.end - own.first, WRITABLE);
        if (b->d_gates) allow(access, &p->layout, D_X, own.first, own.end - own.first, WRITABLE);
        if (!final) continue;
        allow(access, &p->layout, D_STATE, 0, N, WRITABLE);
        allow(access, &p->layout, D_EXTRA, 0, E, WRITABLE);
        if (second) allow(access, &p->layout, MADE, 0, 1, WRITABLE);
    }
    return read_programs(p, b->program, b->program_size, b->second_program, b->second_size);
}

/* Sums over the rows, a few addends at a time, so that rounding errors stay small. */
static void sum_rows(float *to, const float *rows, size_t B, size_t floats) {
    for (size_t k = 0; k < floats; k += LANES) {
        const size_t lanes = lanes_at(floats, k);
        vec sum = splat(0.0f);
        for (size_t part = 0; part < B; part += ADDENDS) {
            vec few = splat(0.0f);
            for (size_t row = part; row < B && row < part + ADDENDS; row++) few += load_n(rows + row * floats + k, lanes);
            sum += few;
        }
        store_n(to + k, sum, lanes);
    }
}

static int defined_backward(const struct defined_backward *b, int threads) {
    struct defined_backward_job job = {.task = b};
    if (!numbers_fit(b->gates, b->first_gates, b->second_gates, b->states, b->num_saved, b->parameters, b->carried,
                     b->H, b->heads))
        return 1;
    const size_t fault = read_backward_programs(&job.programs, b);
    if (fault) return (int)fault;
    const size_t plane = b->B * b->H, states = b->states * plane, E = b->parameters;
    const size_t two = job.programs.phases > 1 ? plane : 0;
    const size_t blocks = (size_t)threads * member_floats(&job.programs);
    float *memory = division_scratch(&job.division, b->first_gates, b->second_gates, b->H, threads,
                                     blocks + 2 * states + two + E * plane, NULL);
    if (!memory) return -1;
    job.blocks = memory;
    memory += blocks;
    job.d_state[0] = memory, job.d_state[1] = memory + states;
    memory += 2 * states;
    if (two) job.d_new_h = memory, memory += plane;
    if (E) job.d_extra = memset(memory, 0, E * plane * sizeof(float));
    divide_defined_backward(&job.division, b, (size_t)threads);
    team_run((int)busy_members(&job.division), defined_backward_member, &job);
    if (E) sum_rows(b->d_extra, job.d_extra, b->B, E * b->H);
    free(job.division.barriers);
    return 0;
}

#endif
