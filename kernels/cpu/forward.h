/* The forward pass. */

struct forward_job {
    const struct forward *task;
    struct panels first, second; /* second: the last gate of a reset-before GRU, which multiplies r * h */
    float *reset, *z;            /* [B, H] each: r * h, and z from one phase to the next, of a reset-before GRU */
    struct barrier *barriers;    /* one for each group of rows, and one for all */
};

/* What a tile of rows and columns looks at in one step. */
struct forward_tile {
    const struct forward *task;
    size_t t, row, rows, column, vectors;
    const float *h_prev; /* [B, H] */
};

INLINE vec bias(const struct forward *f, size_t gate, size_t column, size_t lanes) {
    return f->b ? load_n(f->b + gate * f->H + column, lanes) : splat(0.0f);
}

/* Whether a token's sequence goes on, and whether it starts anew there. */
INLINE int is_active(const uint8_t *mask, size_t token) { return !mask || mask[token]; }
INLINE int is_reset(const uint8_t *mask, const uint8_t *resets, size_t token) {
    return resets && resets[token] && is_active(mask, token);
}

/* The cell's update of one vector, `h` being the recurrent products of all gates with their biases, `x` the input
   projection [G, H]. */
INLINE void update_vector(const struct forward *f, const vec *h, const float *x, const float *h_prev, float *h_new,
                          float *out, float *c, float *c_saved, float *saved, size_t lanes, int active, int reset) {
    const size_t H = f->H;
    vec old = reset ? splat(0.0f) : load_n(h_prev, lanes), new;
    switch (f->cell) {
    case RNN_TANH: new = tanh_of(load_n(x, lanes) + h[0]); break;
    case RNN_RELU: new = relu(load_n(x, lanes) + h[0]); break;
    case GRU_RESET_AFTER: {
        vec r = sigmoid(load_n(x, lanes) + h[0]);
        vec z = sigmoid(load_n(x + H, lanes) + h[1]);
        vec n = tanh_of(load_n(x + 2 * H, lanes) + r * h[2]);
        new = n + z * (old - n);
        if (saved) {
            store_n(saved, r, lanes);
            store_n(saved + H, z, lanes);
            store_n(saved + 2 * H, n, lanes);
            store_n(saved + 3 * H, h[2], lanes);
        }
        break;
    }
    default: { /* LSTM */
        vec i = sigmoid(load_n(x, lanes) + h[0]);
        vec forget = sigmoid(load_n(x + H, lanes) + h[1]);
        vec g = tanh_of(load_n(x + 2 * H, lanes) + h[2]);
        vec o = sigmoid(load_n(x + 3 * H, lanes) + h[3]);
        vec c_old = reset ? splat(0.0f) : load_n(c, lanes), c_new = forget * c_old + i * g;
        new = o * tanh_of(c_new);
        if (!active) c_new = c_old;
        store_n(c, c_new, lanes);
        if (saved) {
            store_n(saved, i, lanes);
            store_n(saved + H, forget, lanes);
            store_n(saved + 2 * H, g, lanes);
            store_n(saved + 3 * H, o, lanes);
            store_n(c_saved, c_new, lanes);
        }
    }
    }
    store_n(h_new, active ? new : old, lanes);
    if (out) store_n(out, active ? new : splat(0.0f), lanes);
}

static void update_tile(const struct forward_tile *at, tile_t products) {
    const struct forward *f = at->task;
    const size_t B = f->B, H = f->H, G = gates_of(f->cell), S = saved_of(f->cell);
    for (size_t r = 0; r < at->rows; r++) {
        const size_t row = at->row + r, token = at->t * B + row;
        const int active = is_active(f->mask, token), reset = is_reset(f->mask, f->resets, token);
        for (size_t v = 0; v < at->vectors; v++) {
            const size_t column = at->column + v * LANES, lanes = lanes_at(H, column);
            vec h[WIDEST];
            for (size_t g = 0; g < G; g++) {
                h[g] = bias(f, g, column, lanes);
                if (!reset) h[g] += load(products[r][g * at->vectors + v]);
            }
            update_vector(f, h, f->x + token * G * H + column, at->h_prev + row * H + column,
                          f->h + token * H + column, f->out ? f->out + token * H + column : NULL,
                          f->c_n ? f->c_n + row * H + column : NULL, f->c ? f->c + token * H + column : NULL,
                          f->saved ? f->saved + token * S * H + column : NULL, lanes, active, reset);
        }
    }
}

/* The first phase of a reset-before GRU: r, z and r * h. */
static void reset_tile(const struct forward_tile *at, tile_t products, float *reset, float *z_of_step) {
    const struct forward *f = at->task;
    const size_t H = f->H;
    for (size_t i = 0; i < at->rows; i++) {
        const size_t row = at->row + i, token = at->t * f->B + row;
        const int anew = is_reset(f->mask, f->resets, token);
        for (size_t v = 0; v < at->vectors; v++) {
            const size_t column = at->column + v * LANES, lanes = lanes_at(H, column);
            const float *x = f->x + token * 3 * H + column;
            vec r = bias(f, 0, column, lanes), z = bias(f, 1, column, lanes);
            if (!anew) r += load(products[i][v]), z += load(products[i][at->vectors + v]);
            r = sigmoid(load_n(x, lanes) + r);
            z = sigmoid(load_n(x + H, lanes) + z);
            const vec old = anew ? splat(0.0f) : load_n(at->h_prev + row * H + column, lanes);
            store_n(reset + row * H + column, r * old, lanes);
            store_n(z_of_step + row * H + column, z, lanes);
            if (f->saved) {
                float *saved = f->saved + token * 3 * H + column;
                store_n(saved, r, lanes);
                store_n(saved + H, z, lanes);
            }
        }
    }
}

/* The second phase: n and h. */
static void reset_update_tile(const struct forward_tile *at, tile_t products, const float *z_of_step) {
    const struct forward *f = at->task;
    const size_t H = f->H;
    for (size_t i = 0; i < at->rows; i++) {
        const size_t row = at->row + i, token = at->t * f->B + row;
        const int active = is_active(f->mask, token), anew = is_reset(f->mask, f->resets, token);
        for (size_t v = 0; v < at->vectors; v++) {
            const size_t column = at->column + v * LANES, lanes = lanes_at(H, column);
            vec n = load(products[i][v]) + bias(f, 2, column, lanes);
            n = tanh_of(load_n(f->x + token * 3 * H + 2 * H + column, lanes) + n);
            vec z = load_n(z_of_step + row * H + column, lanes);
            vec old = anew ? splat(0.0f) : load_n(at->h_prev + row * H + column, lanes);
            const vec new = n + z * (old - n);
            store_n(f->h + token * H + column, active ? new : old, lanes);
            if (f->out) store_n(f->out + token * H + column, active ? new : splat(0.0f), lanes);
            if (f->saved) store_n(f->saved + token * 3 * H + 2 * H + column, n, lanes);
        }
    }
}

/* What the update of a tile reads and writes. */
static void want_tile(struct wanted *wanted, const struct forward_tile *at, const struct panels *p) {
    const struct forward *f = at->task;
    const size_t G = gates_of(f->cell), S = saved_of(f->cell), H = f->H;
    wanted->count = 0;
    for (size_t r = 0; r < at->rows; r++) {
        const size_t token = at->t * f->B + at->row + r;
        want(wanted, f->x + (token * G + p->first_gate) * H + at->column, p->gates, H, at->vectors);
        want(wanted, f->h + token * H + at->column, 1, H, at->vectors);
        if (f->out) want(wanted, f->out + token * H + at->column, 1, H, at->vectors);
        if (f->saved) want(wanted, f->saved + token * S * H + at->column, S, H, at->vectors);
        if (f->c) want(wanted, f->c + token * H + at->column, 1, H, at->vectors);
    }
}

enum phase { WHOLE_STEP, RESET, AFTER_RESET };

static void forward_phase(const struct forward_job *job, const struct share *share, size_t t, const float *h_prev,
                          enum phase phase) {
    const struct forward *f = job->task;
    const struct panels *p = phase == AFTER_RESET ? &job->second : &job->first;
    const float *a = phase == AFTER_RESET ? job->reset : h_prev;
    tile_t products;
    struct wanted wanted;
    for (size_t tile = share->first_tile; tile < share->first_tile + share->tiles; tile++) {
        struct forward_tile at = {f, t, 0, 0, tile * p->vectors * LANES, vectors_in(p, tile), h_prev};
        const size_t width = p->gates * at.vectors;
        for (size_t done = 0; done < share->rows; done += at.rows) {
            at.row = share->first_row + done;
            at.rows = height(share->rows, done, ROWS[width]);
            want_tile(&wanted, &at, p);
            multiply(at.rows, width, products, a + at.row * f->H, f->H, panel(p, tile), f->H, &wanted);
            if (phase == WHOLE_STEP)
                update_tile(&at, products);
            else if (phase == RESET)
                reset_tile(&at, products, job->reset, job->z);
            else
                reset_update_tile(&at, products, job->z);
        }
    }
}

/* A row's part of a plane [B, H] that a share owns. */
static void copy_share(const struct share *share, size_t H, size_t tile_columns, float *to, const float *from) {
    const size_t column = share->first_tile * tile_columns, end = (share->first_tile + share->tiles) * tile_columns;
    const size_t count = (end < H ? end : H) - (column < H ? column : H);
    for (size_t row = share->first_row; row < share->first_row + share->rows; row++)
        memcpy(to + row * H + column, from + row * H + column, count * sizeof(float));
}

/* How a team tiles the gates, and who does what. */
static struct grid plan_forward(const struct forward *f, size_t members, struct panels *first, struct panels *second) {
    const size_t H = f->H, G = gates_of(f->cell);
    const int two_phases = f->cell == GRU_RESET_BEFORE;
    *first = (struct panels){H, 0, two_phases ? 2 : G, 1, H, first->data};
    if (two_phases || G == 1) first->vectors = tile_width(H, members);
    if (two_phases && first->vectors > 2) first->vectors = 2;
    *second = (struct panels){H, 2, 1, first->vectors, H, second->data};
    return choose_grid(members, f->B, tiles_of(first), G * H * H);
}

static void forward_member(void *argument, int member, int members) {
    struct forward_job job = *(struct forward_job *)argument;
    const struct forward *f = job.task;
    const size_t B = f->B, H = f->H, T = f->T;
    const int two_phases = f->cell == GRU_RESET_BEFORE;
    const struct grid grid = plan_forward(f, (size_t)members, &job.first, &job.second);
    const size_t tiles = tiles_of(&job.first), active = grid.row_groups * grid.members;
    if ((size_t)member >= active) return;
    const struct share share = share_of(grid, (size_t)member, B, tiles);
    struct barrier *group = &job.barriers[(size_t)member / grid.members], *all = &job.barriers[members];
    for (size_t tile = tiles * (size_t)member / active; tile < tiles * ((size_t)member + 1) / active; tile++) {
        pack_forward(&job.first, f->w, tile);
        if (two_phases) pack_forward(&job.second, f->w, tile);
    }
    const size_t tile_columns = job.first.vectors * LANES;
    if (f->c_n) copy_share(&share, H, tile_columns, f->c_n, f->c0);
    barrier_wait(all, (unsigned)active);

    const float *h_prev = f->h0;
    for (size_t i = 0; i < T; i++) {
        const size_t t = f->reverse ? T - 1 - i : i;
        if (two_phases) {
            forward_phase(&job, &share, t, h_prev, RESET);
            barrier_wait(group, (unsigned)grid.members);
            forward_phase(&job, &share, t, h_prev, AFTER_RESET);
        } else {
            forward_phase(&job, &share, t, h_prev, WHOLE_STEP);
        }
        h_prev = f->h + t * B * H;
        if (i + 1 < T) barrier_wait(group, (unsigned)grid.members);
    }
    copy_share(&share, H, tile_columns, f->h_n, h_prev);
}

static int forward(const struct forward *f, int threads) {
    const size_t plane = f->cell == GRU_RESET_BEFORE ? f->B * f->H : 0;
    const size_t weights = panels_size(f->H, gates_of(f->cell));
    const size_t barriers = ((size_t)threads + 1) * sizeof(struct barrier);
    char *memory = scratch(barriers + (weights + 2 * plane) * sizeof(float));
    if (!memory) return -1;
    struct forward_job job = {.task = f, .barriers = (struct barrier *)memory};
    for (int i = 0; i <= threads; i++) barrier_init(&job.barriers[i]);
    job.first.data = (float *)(memory + barriers);
    job.second.data = job.first.data + panels_size(f->H, 2);
    job.reset = job.first.data + weights;
    job.z = job.reset + plane;
    const struct grid grid = plan_forward(f, (size_t)threads, &job.first, &job.second);
    team_run((int)(grid.row_groups * grid.members), forward_member, &job);
    free(memory);
    return 0;
}
