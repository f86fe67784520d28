/* The backward pass: the adjoint of forward.h, from the last step that was taken to the first.

   What a step hands to the one before it is `through`, the gates' gradients times the weights, and what goes around
   the product (d_h0 and d_c0 carry it from step to step). */

struct backward_job {
    const struct backward *task;
    struct panels first, second; /* second: the last gate of a reset-before GRU */
    struct barrier *barriers;
};

struct backward_tile {
    const struct backward *task;
    size_t t, later; /* the step before which t lies, T for none */
    size_t row, rows, column, vectors;
    const float *h_prev, *c_prev; /* [B, H] */
};

/* The gates' gradients of one vector, from that of its h. Returns what d_h hands on around the product. */
INLINE vec gradient_vector(const struct backward *b, vec d_h, const float *saved, const float *h, const float *h_prev,
                           const float *c, const float *c_prev, float *d_c, float *d_x, float *d_gates, size_t lanes,
                           int reset) {
    const size_t H = b->H;
    switch (b->cell) {
    case RNN_TANH: {
        vec new = load_n(h, lanes);
        store_n(d_x, d_h * (1.0f - new * new), lanes);
        return splat(0.0f);
    }
    case RNN_RELU: store_n(d_x, where(load_n(h, lanes) <= 0.0f, splat(0.0f), d_h), lanes); return splat(0.0f);
    case GRU_RESET_AFTER: {
        vec r = load_n(saved, lanes), z = load_n(saved + H, lanes), n = load_n(saved + 2 * H, lanes);
        vec d_n = d_h * (1.0f - z) * (1.0f - n * n);
        vec d_r = d_n * load_n(saved + 3 * H, lanes) * r * (1.0f - r);
        vec d_z = d_h * ((reset ? splat(0.0f) : load_n(h_prev, lanes)) - n) * z * (1.0f - z);
        store_n(d_x, d_r, lanes);
        store_n(d_x + H, d_z, lanes);
        store_n(d_x + 2 * H, d_n, lanes);
        store_n(d_gates, d_r, lanes);
        store_n(d_gates + H, d_z, lanes);
        store_n(d_gates + 2 * H, d_n * r, lanes);
        return d_h * z;
    }
    case GRU_RESET_BEFORE: { /* d_r follows when d_n has gone through its weights */
        vec z = load_n(saved + H, lanes), n = load_n(saved + 2 * H, lanes);
        store_n(d_x + H, d_h * ((reset ? splat(0.0f) : load_n(h_prev, lanes)) - n) * z * (1.0f - z), lanes);
        store_n(d_x + 2 * H, d_h * (1.0f - z) * (1.0f - n * n), lanes);
        return d_h * z;
    }
    default: { /* LSTM */
        vec i = load_n(saved, lanes), forget = load_n(saved + H, lanes);
        vec g = load_n(saved + 2 * H, lanes), o = load_n(saved + 3 * H, lanes);
        vec s = tanh_of(load_n(c, lanes));
        vec d = load_n(d_c, lanes) + d_h * o * (1.0f - s * s);
        store_n(d_x, d * g * i * (1.0f - i), lanes);
        vec c_old = reset ? splat(0.0f) : load_n(c_prev, lanes);
        store_n(d_x + H, d * c_old * forget * (1.0f - forget), lanes);
        store_n(d_x + 2 * H, d * i * (1.0f - g * g), lanes);
        store_n(d_x + 3 * H, d_h * s * o * (1.0f - o), lanes);
        store_n(d_c, reset ? splat(0.0f) : d * forget, lanes);
        return splat(0.0f);
    }
    }
}

/* `through` is [rows][vectors][LANES], or NULL at the last step. */
static void gradient_tile(const struct backward_tile *at, tile_t through) {
    const struct backward *b = at->task;
    const size_t B = b->B, H = b->H, G = gates_of(b->cell), S = saved_of(b->cell);
    for (size_t r = 0; r < at->rows; r++) {
        const size_t row = at->row + r, token = at->t * B + row;
        const int active = is_active(b->mask, token), reset = is_reset(b->mask, b->resets, token);
        const int cut = at->later < b->T && is_reset(b->mask, b->resets, at->later * B + row);
        for (size_t v = 0; v < at->vectors; v++) {
            const size_t column = at->column + v * LANES, lanes = lanes_at(H, column), own = row * H + column;
            float *carry = b->d_h0 + own, *d_x = b->d_x + token * G * H + column;
            float *d_gates = b->d_gates ? b->d_gates + token * G * H + column : NULL;
            vec d_h = load_n(carry, lanes);
            if (through && !cut) d_h += load(through[r][v]);
            if (active) {
                d_h += load_n(b->d_out + token * H + column, lanes);
                d_h = gradient_vector(b, d_h, b->saved ? b->saved + token * S * H + column : NULL,
                                      b->h + token * H + column, at->h_prev + own,
                                      b->c ? b->c + token * H + column : NULL, at->c_prev ? at->c_prev + own : NULL,
                                      b->d_c0 ? b->d_c0 + own : NULL, d_x, d_gates, lanes, reset);
                if (reset) d_h = splat(0.0f); /* nothing went around the product either */
            } else {
                for (size_t g = 0; g < G; g++) {
                    store_n(d_x + g * H, splat(0.0f), lanes);
                    if (d_gates) store_n(d_gates + g * H, splat(0.0f), lanes);
                }
            }
            store_n(carry, d_h, lanes);
        }
    }
}

/* The second phase of a reset-before GRU: d_n has gone back through its weights to r * h. */
static void reset_gradient_tile(const struct backward_tile *at, tile_t d_reset) {
    const struct backward *b = at->task;
    const size_t H = b->H;
    for (size_t i = 0; i < at->rows; i++) {
        const size_t row = at->row + i, token = at->t * b->B + row;
        if (!is_active(b->mask, token)) continue;
        const int reset = is_reset(b->mask, b->resets, token);
        for (size_t v = 0; v < at->vectors; v++) {
            const size_t column = at->column + v * LANES, lanes = lanes_at(H, column), own = row * H + column;
            vec r = load_n(b->saved + token * 3 * H + column, lanes), d = load(d_reset[i][v]);
            if (reset) { /* r * h was 0 */
                store_n(b->d_x + token * 3 * H + column, splat(0.0f), lanes);
                continue;
            }
            store_n(b->d_x + token * 3 * H + column, d * load_n(at->h_prev + own, lanes) * r * (1.0f - r), lanes);
            store_n(b->d_h0 + own, load_n(b->d_h0 + own, lanes) + d * r, lanes);
        }
    }
}

/* d_h0, when the first step's gradients have gone through the weights. */
static void initial_tile(const struct backward_tile *at, tile_t through) {
    const struct backward *b = at->task;
    for (size_t r = 0; r < at->rows; r++) {
        if (is_reset(b->mask, b->resets, at->later * b->B + at->row + r)) continue;
        for (size_t v = 0; v < at->vectors; v++) {
            const size_t column = at->column + v * LANES, lanes = lanes_at(b->H, column);
            float *carry = b->d_h0 + (at->row + r) * b->H + column;
            store_n(carry, load_n(carry, lanes) + load(through[r][v]), lanes);
        }
    }
}

/* What the gradients of a tile read and write. */
static void want_gradient_tile(struct wanted *wanted, const struct backward_tile *at) {
    const struct backward *b = at->task;
    const size_t H = b->H, G = gates_of(b->cell), S = saved_of(b->cell), column = at->column, vectors = at->vectors;
    for (size_t r = 0; r < at->rows; r++) {
        const size_t row = at->row + r, token = at->t * b->B + row;
        want(wanted, b->d_out + token * H + column, 1, H, vectors);
        want(wanted, at->h_prev + row * H + column, 1, H, vectors);
        if (b->saved) want(wanted, b->saved + token * S * H + column, S, H, vectors);
        if (b->c) want(wanted, at->c_prev + row * H + column, 1, H, vectors);
        want(wanted, b->d_x + token * G * H + column, G, H, vectors);
        if (b->d_gates) want(wanted, b->d_gates + token * G * H + column, G, H, vectors);
    }
}

enum backward_phase { GRADIENT, RESET_GRADIENT, INITIAL };

/* `later` is the step whose gates' gradients are multiplied; T for none. */
static void backward_phase(const struct backward_job *job, const struct share *share, struct backward_tile at,
                           size_t later, enum backward_phase phase) {
    at.later = later;
    const struct backward *b = job->task;
    const struct panels *p = phase == RESET_GRADIENT ? &job->second : &job->first;
    const size_t stride = gates_of(b->cell) * b->H;
    const float *a = (b->d_gates ? b->d_gates : b->d_x) + later * b->B * stride + p->first_gate * b->H;
    tile_t products;
    struct wanted wanted;
    for (size_t tile = share->first_tile; tile < share->first_tile + share->tiles; tile++) {
        at.column = tile * p->vectors * LANES;
        at.vectors = vectors_in(p, tile);
        for (size_t done = 0; done < share->rows; done += at.rows) {
            at.row = share->first_row + done;
            at.rows = height(share->rows, done, ROWS[at.vectors]);
            const int last = later == b->T;
            wanted.count = 0;
            if (phase == GRADIENT) want_gradient_tile(&wanted, &at);
            if (!last)
                multiply(at.rows, at.vectors, products, a + at.row * stride, stride, panel(p, tile), p->K * p->gates,
                         &wanted);
            if (phase == GRADIENT)
                gradient_tile(&at, last ? NULL : products);
            else if (phase == RESET_GRADIENT)
                reset_gradient_tile(&at, products);
            else
                initial_tile(&at, products);
        }
    }
}

/* How a team tiles the gates, and who does what. */
static struct grid plan_backward(const struct backward *b, size_t members, struct panels *first,
                                 struct panels *second) {
    const size_t H = b->H, G = gates_of(b->cell), vectors = tile_width(H, members);
    *first = (struct panels){H, 0, b->cell == GRU_RESET_BEFORE ? 2 : G, vectors, H, first->data};
    *second = (struct panels){H, 2, 1, vectors, H, second->data};
    return choose_grid(members, b->B, tiles_of(first), G * H * H);
}

static void backward_member(void *argument, int member, int members) {
    struct backward_job job = *(struct backward_job *)argument;
    const struct backward *b = job.task;
    const size_t B = b->B, H = b->H, T = b->T;
    const int two_phases = b->cell == GRU_RESET_BEFORE;
    const struct grid grid = plan_backward(b, (size_t)members, &job.first, &job.second);
    const size_t tiles = tiles_of(&job.first), active = grid.row_groups * grid.members;
    if ((size_t)member >= active) return;
    const struct share share = share_of(grid, (size_t)member, B, tiles);
    struct barrier *group = &job.barriers[(size_t)member / grid.members], *all = &job.barriers[members];
    for (size_t tile = tiles * (size_t)member / active; tile < tiles * ((size_t)member + 1) / active; tile++) {
        pack_backward(&job.first, b->w, tile);
        if (two_phases) pack_backward(&job.second, b->w, tile);
    }
    const size_t tile_columns = job.first.vectors * LANES;
    copy_share(&share, H, tile_columns, b->d_h0, b->d_h_n);
    if (b->d_c0) copy_share(&share, H, tile_columns, b->d_c0, b->d_c_n);
    barrier_wait(all, (unsigned)active);

    size_t later = T;
    for (size_t i = T; i-- > 0;) {
        const size_t t = b->reverse ? T - 1 - i : i, before = b->reverse ? t + 1 : t - 1;
        struct backward_tile at = {.task = b, .t = t};
        at.h_prev = i > 0 ? b->h + before * B * H : b->h0;
        at.c_prev = i > 0 && b->c ? b->c + before * B * H : b->c0;
        backward_phase(&job, &share, at, later, GRADIENT);
        barrier_wait(group, (unsigned)grid.members);
        if (two_phases) {
            backward_phase(&job, &share, at, t, RESET_GRADIENT);
            barrier_wait(group, (unsigned)grid.members);
        }
        later = t;
    }
    backward_phase(&job, &share, (struct backward_tile){.task = b}, later, INITIAL);
}

static int backward(const struct backward *b, int threads) {
    const size_t weights = panels_size(b->H, gates_of(b->cell));
    const size_t barriers = ((size_t)threads + 1) * sizeof(struct barrier);
    char *memory = scratch(barriers + weights * sizeof(float));
    if (!memory) return -1;
    struct backward_job job = {.task = b, .barriers = (struct barrier *)memory};
    for (int i = 0; i <= threads; i++) barrier_init(&job.barriers[i]);
    job.first.data = (float *)(memory + barriers);
    job.second.data = job.first.data + panels_size(b->H, 2);
    const struct grid grid = plan_backward(b, (size_t)threads, &job.first, &job.second);
    team_run((int)(grid.row_groups * grid.members), backward_member, &job);
    free(memory);
    return 0;
}
