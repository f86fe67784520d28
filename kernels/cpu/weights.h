/* The gradient of a weight matrix: a product along T * B, with both factors stored token by token. */

enum { TOKENS = 128 };                                   /* at a time: their part of x stays in the second-level cache */
enum { WIDE = 3, TALL = REGISTERS >= 32 && LANES >= 8 ? 8 : 4 }; /* the tile; TALL divides LANES */

struct weights_job {
    const struct weights *task;
    float *x[2]; /* some tokens of x in panels; one is written while the other is read */
    struct barrier *barrier;
};

/* The columns from `column` on of `tokens` tokens of x from `token` on as a panel [tokens][vectors][LANES], zero past
   the last one. */
static void pack_tokens(float *restrict panel, const struct weights *task, size_t token, size_t tokens, size_t column,
                        size_t vectors) {
    for (size_t k = 0; k < tokens; k++) {
        const size_t at = token + k, columns = task->columns;
        const float *x = at < task->split ? task->x[0] + at * columns : task->x[1] + (at - task->split) * columns;
        for (size_t v = 0; v < vectors; v++) {
            const size_t first = column + v * LANES;
            store(panel + (k * vectors + v) * LANES, load_n(x + first, lanes_at(columns, first)));
        }
    }
}

/* LANES columns of d, [tokens][LANES], and their sums, a few addends at a time, so that rounding errors stay small. */
static vec pack_gates(float *restrict to, const float *restrict d, size_t step, size_t lanes, size_t tokens) {
    vec sum = splat(0.0f);
    for (size_t part = 0; part < tokens; part += ADDENDS) {
        vec few = splat(0.0f);
        for (size_t k = part; k < tokens && k < part + ADDENDS; k++) {
            vec v = load_n(d + k * step, lanes);
            store(to + k * LANES, v);
            few += v;
        }
        sum += few;
    }
    return sum;
}

/* out += products, or out = products for the first tokens. */
static void add_tile(const struct weights *task, tile_t products, size_t row, size_t rows, size_t vector, size_t count,
                     int first) {
    for (size_t r = 0; r < rows; r++) {
        for (size_t v = 0; v < count; v++) {
            const size_t column = (vector + v) * LANES, lanes = lanes_at(task->columns, column);
            float *out = task->out + (row + r) * task->columns + column;
            const vec p = load(products[r][v]);
            store_n(out, first ? p : load_n(out, lanes) + p, lanes);
        }
    }
}

static void weights_member(void *argument, int member, int members) {
    const struct weights_job *job = argument;
    const struct weights *task = job->task;
    const size_t me = (size_t)member, team = (size_t)members;
    const size_t vectors = ceil_div(task->columns, LANES), tiles = ceil_div(vectors, WIDE);
    const size_t blocks = ceil_div(task->rows, LANES);
    for (size_t token = 0; token < task->tokens; token += TOKENS) {
        const size_t tokens = task->tokens - token < TOKENS ? task->tokens - token : TOKENS;
        float *panels = job->x[token / TOKENS % 2];
        for (size_t tile = tiles * me / team; tile < tiles * (me + 1) / team; tile++) {
            const size_t v = vectors * tile / tiles, count = vectors * (tile + 1) / tiles - v;
            pack_tokens(panels + v * LANES * TOKENS, task, token, tokens, v * LANES, count);
        }
        barrier_wait(job->barrier, (unsigned)members);
        const size_t first_block = blocks * me / team, end_block = blocks * (me + 1) / team;
        for (size_t block = first_block; block < end_block; block++) {
            float gates[TOKENS * LANES] __attribute__((aligned(64)));
            tile_t products;
            const size_t row = block * LANES, lanes = lanes_at(task->rows, row);
            const vec sum = pack_gates(gates, task->d + token * task->d_step + row, task->d_step, lanes, tokens);
            store_n(task->sums + row, token ? load_n(task->sums + row, lanes) + sum : sum, lanes);

            /* Meanwhile, ask for what the next block reads of d: a line of each token, far from each other. */
            const float *line[TOKENS];
            const size_t next_token = block + 1 < end_block ? token : token + TOKENS;
            const size_t next_row = block + 1 < end_block ? row + LANES : first_block * LANES;
            size_t lines = 0, asked = 0, done = 0;
            for (; lines < TOKENS && next_token + lines < task->tokens; lines++)
                line[lines] = task->d + (next_token + lines) * task->d_step + next_row;

            const size_t products_of_block = tiles * ceil_div(lanes, TALL);
            for (size_t tile = 0; tile < tiles; tile++) {
                const size_t v = vectors * tile / tiles, count = vectors * (tile + 1) / tiles - v;
                for (size_t r = 0; r < lanes; r += TALL) {
                    const size_t rows = lanes - r < TALL ? lanes - r : TALL;
                    const size_t upto = lines * ++done / products_of_block;
                    PRODUCT_OF[count - 1][rows - 1](products, gates + r, 1, LANES, panels + v * LANES * TOKENS, tokens,
                                                    0, line + asked, upto - asked);
                    asked = upto;
                    add_tile(task, products, row + r, rows, v, count, token == 0);
                }
            }
        }
    }
}

static int weights(const struct weights *task, int threads) {
    const size_t panels = ceil_div(task->columns, LANES) * LANES * TOKENS;
    char *memory = scratch(sizeof(struct barrier) + 2 * panels * sizeof(float));
    if (!memory) return -1;
    struct weights_job job = {.task = task, .barrier = (struct barrier *)memory};
    barrier_init(job.barrier);
    job.x[0] = (float *)(memory + sizeof(struct barrier));
    job.x[1] = job.x[0] + panels;
    team_run(threads, weights_member, &job);
    free(memory);
    return 0;
}
