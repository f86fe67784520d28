/* One step of one sequence, and matrix times vector: what generating text is made of. Each weight is read once, where
   it lies; packing would cost more than it saves. */

/* out[i] = sum over k of w[i][k] x[k], for rows first to end; a few rows at a time, so that their loads overlap. */
static void rows_times_vector(float *out, const float *w, const float *x, size_t first, size_t end, size_t K) {
    enum { FEW = 4 };
    for (size_t row = first; row < end; row += FEW) {
        const size_t rows = end - row < FEW ? end - row : FEW;
        vec sum[FEW] = {{0}};
        for (size_t k = 0; k < K; k += LANES) {
            const size_t lanes = lanes_at(K, k);
            const vec v = load_n(x + k, lanes);
            for (size_t r = 0; r < rows; r++) sum[r] += load_n(w + (row + r) * K + k, lanes) * v;
        }
        for (size_t r = 0; r < rows; r++) {
            float total = 0.0f;
            for (size_t lane = 0; lane < LANES; lane++) total += sum[r][lane];
            out[row + r] = total;
        }
    }
}

struct single_job {
    const struct single *task;
    float *x, *products; /* [G, H] */
    float *reset, *h;    /* [H]: r * h of a reset-before GRU; the new h, while the old one is read */
    struct barrier *barrier;
};

/* The input projection of some rows of W_ih. */
static void project(const struct single *s, float *out, size_t first, size_t end) {
    if (s->id < 0)
        rows_times_vector(out, s->w_ih, s->x, first, end, s->I);
    else
        for (size_t row = first; row < end; row++) out[row] = s->w_ih[row * s->I + (size_t)s->id];
    for (size_t row = first; s->b_ih && row < end; row++) out[row] += s->b_ih[row];
}

static void single_member(void *argument, int member, int members) {
    const struct single_job *job = argument;
    const struct single *s = job->task;
    const size_t H = s->H, G = gates_of(s->cell), vectors = vectors_of(H);
    const size_t first = vectors * (size_t)member / (size_t)members * LANES;
    size_t end = vectors * ((size_t)member + 1) / (size_t)members * LANES;
    if (end > H) end = H;
    const struct forward f = {.cell = s->cell, .T = 1, .B = 1, .H = H, .b = s->b_hh};
    const int two_phases = s->cell == GRU_RESET_BEFORE;
    for (size_t g = 0; g < G; g++) {
        project(s, job->x, g * H + first, g * H + end);
        if (!two_phases || g < 2) rows_times_vector(job->products, s->w_hh, s->h, g * H + first, g * H + end, H);
    }
    if (two_phases) {
        for (size_t column = first; column < end; column += LANES) {
            const size_t lanes = lanes_at(end, column);
            vec r = load_n(job->products + column, lanes) + bias(&f, 0, column, lanes);
            r = sigmoid(load_n(job->x + column, lanes) + r);
            store_n(job->reset + column, r * load_n(s->h + column, lanes), lanes);
        }
        barrier_wait(job->barrier, (unsigned)members);
        rows_times_vector(job->products, s->w_hh, job->reset, 2 * H + first, 2 * H + end, H);
    }
    for (size_t column = first; column < end; column += LANES) {
        const size_t lanes = lanes_at(end, column);
        vec h[WIDEST];
        for (size_t g = 0; g < G; g++) h[g] = load_n(job->products + g * H + column, lanes) + bias(&f, g, column, lanes);
        if (two_phases) {
            vec z = sigmoid(load_n(job->x + H + column, lanes) + h[1]);
            vec n = tanh_of(load_n(job->x + 2 * H + column, lanes) + h[2]);
            store_n(job->h + column, n + z * (load_n(s->h + column, lanes) - n), lanes);
        } else {
            update_vector(&f, h, job->x + column, s->h + column, job->h + column, NULL,
                          s->c ? s->c + column : NULL, NULL, NULL, lanes, 1, 0);
        }
    }
    barrier_wait(job->barrier, (unsigned)members); /* everybody has read the old h */
    memcpy(s->h + first, job->h + first, (end - first) * sizeof(float));
}

static int single(const struct single *s, int threads) {
    const size_t gates = gates_of(s->cell) * s->H;
    char *memory = scratch(sizeof(struct barrier) + (2 * gates + 2 * s->H) * sizeof(float));
    if (!memory) return -1;
    struct single_job job = {.task = s, .barrier = (struct barrier *)memory};
    barrier_init(job.barrier);
    job.x = (float *)(memory + sizeof(struct barrier));
    job.products = job.x + gates;
    job.reset = job.products + gates;
    job.h = job.reset + s->H;
    team_run(threads, single_member, &job);
    free(memory);
    return 0;
}

struct matvec_job {
    float *out;
    const float *w, *x, *b;
    size_t rows, columns;
};

static void matvec_member(void *argument, int member, int members) {
    const struct matvec_job *job = argument;
    const size_t first = job->rows * (size_t)member / (size_t)members;
    const size_t end = job->rows * ((size_t)member + 1) / (size_t)members;
    rows_times_vector(job->out, job->w, job->x, first, end, job->columns);
    for (size_t row = first; job->b && row < end; row++) job->out[row] += job->b[row];
}

static void matvec(float *out, const float *w, const float *x, const float *b, size_t rows, size_t columns,
                   int threads) {
    struct matvec_job job = {out, w, x, b, rows, columns};
    team_run(threads, matvec_member, &job);
}
