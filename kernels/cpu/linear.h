/* A linear layer over many tokens, and the gradient of its input: out = x W^T + b, d_x = d W.

   W is packed into panels once a call. A member of the team then takes a block of rows that stays in a core's
   second-level cache, and goes through the panels with it: a panel stays in the first-level cache for as long as the
   rows stream by. Every sum goes along K in parts of fixed length, whatever the number of threads. */
#ifndef FASTCELLS_LINEAR_H
#define FASTCELLS_LINEAR_H

#include "arguments.h"
#include "panels.h"

#ifdef TILES
enum { LINEAR_WIDE = MAX_WIDTH };
#else
enum { LINEAR_WIDE = 3 };        /* vectors of columns in a tile */
#endif
enum { BLOCK = TERM * (48 << 10) }; /* elements of x in a block of rows: it shares a second-level cache with a panel */
/* Elements of a sum at a time, so that a panel fits as well; all where what is written on the way would be rounded. */
enum { LONGEST = TERM > 1 ? 1 << 30 : 2048 };

struct linear_job {
    const linear_task *task;
    float *panels; /* [tiles][K / TERM][vectors of the tile][LANES], zero past the last column and the last term */
    int filled;    /* whether a call before has packed them */
    int in_caches; /* whether `out` is there already, so that nothing has to be prefetched */
    struct barrier *barrier;
};

/* Columns in tiles of nearly the same width. */
static size_t linear_tiles(const linear_task *task) { return ceil_div(ceil_div(task->columns, LANES), LINEAR_WIDE); }
static size_t linear_vector(const linear_task *task, size_t tile) {
    return ceil_div(task->columns, LANES) * tile / linear_tiles(task);
}

/* LANES columns of W from `column` on, at every width-th vector of `to`. */
static void pack_columns(const linear_task *task, float *restrict to, size_t column, size_t width) {
    const size_t K = task->K, step = width * LANES, lanes = lanes_at(task->columns, column);
    if (task->transposed) {
        const element *restrict w = task->w + column;
        for (size_t k = 0; k < K; k += TERM)
            store(to + k / TERM * step, load_columns(w + k * task->columns, task->columns, K - k, lanes));
        return;
    }
    pack_rows(to, step, task->w + column * K, K, lanes);
}

/* A tile of sums to where it belongs: with the bias at first, and on top of what is there later. */
static void put_tile(const linear_task *task, tile_t products, size_t row, size_t rows, size_t vector, size_t count,
                     int first) {
    for (size_t v = 0; v < count; v++) {
        const size_t column = (vector + v) * LANES, lanes = lanes_at(task->columns, column);
        const vec b = first && task->b ? read_n(task->b + column, lanes) : splat(0.0f);
        for (size_t r = 0; r < rows; r++) {
            element *out = task->out + (row + r) * task->out_stride + column;
            write_n(out, load(products[r][v]) + (first ? b : read_n(out, lanes)), lanes);
        }
    }
}

/* A block of rows times the panels of some tiles. */
static void linear_block(const struct linear_job *job, size_t first_row, size_t rows, size_t first_tile,
                         size_t end_tile) {
    const linear_task *task = job->task;
    const size_t K = task->K;
    tile_t products;
    struct prefetch list;
    for (size_t k = 0; k < K; k += LONGEST) {
        const size_t terms = min_size(K - k, LONGEST);
        for (size_t tile = first_tile; tile < end_tile; tile++) {
            const size_t vector = linear_vector(task, tile), count = linear_vector(task, tile + 1) - vector;
            const float *panel = job->panels + (vector * terms_of(K) + k / TERM * count) * LANES;
            const element *out = task->out + first_row * task->out_stride + vector * LANES;
            list.lines = 0;
            if (!job->in_caches) prefetch(&list, out, task->out_stride, 1, 0, count);
            for (size_t done = 0, some; done < rows; done += some) {
                const size_t row = first_row + done;
                some = height(rows, done, ROWS[count]);
                prefetch_rows(&list, some);
                const element *x = task->x + row * task->x_stride + k;
#ifndef ROUNDED
                if ((vector + count) * LANES <= task->columns) { /* whole vectors go where they belong */
                    float *to = task->out + row * task->out_stride + vector * LANES;
                    const int more = k > 0 || task->accumulate;
                    const float *add = more ? to : task->b ? task->b + vector * LANES : NULL;
                    gemm_rows(some, count, to, task->out_stride, add, more ? task->out_stride : 0, x, task->x_stride,
                              panel, terms, &list);
                    continue;
                }
#endif
                gemm_tile(some, count, products, x, task->x_stride, panel, terms, 0, &list);
                put_tile(task, products, row, some, vector, count, k == 0 && !task->accumulate);
            }
        }
    }
}

/* Rows are split first, since a member then needs no more than its own of x; columns too where there are few rows. */
static struct grid linear_grid(const linear_task *task, size_t team) {
    const size_t tiles = linear_tiles(task), heights = ceil_div(task->rows, ROWS[LINEAR_WIDE]);
    struct grid best = {1, 1};
    size_t least = (size_t)-1;
    for (size_t groups = team; groups >= 1; groups--) {
        const size_t members = min_size(team / groups, tiles);
        if (groups > heights) continue;
        const size_t work = ceil_div(heights, groups) * ceil_div(tiles, members);
        if (work < least) {
            least = work;
            best = (struct grid){groups, members};
        }
    }
    return best;
}

static void pack_weights(const struct linear_job *job, int member, int members) {
    const linear_task *task = job->task;
    const struct range packed = part_of(linear_tiles(task), (size_t)member, (size_t)members);
    for (size_t tile = packed.first; tile < packed.end; tile++) {
        const size_t vector = linear_vector(task, tile), width = linear_vector(task, tile + 1) - vector;
        float *panel = job->panels + vector * terms_of(task->K) * LANES;
        for (size_t v = 0; v < width; v++) pack_columns(task, panel + v * LANES, (vector + v) * LANES, width);
    }
}

/* Some rows in blocks, times the panels of some tiles. */
static void linear_rows(const struct linear_job *job, const struct share *share) {
    const size_t fitting = BLOCK / min_size(job->task->K, LONGEST), most = fitting > 48 ? fitting : 48;
    for (size_t done = 0, rows; done < share->rows; done += rows) {
        rows = height(share->rows, done, most);
        linear_block(job, share->first_row + done, rows, share->first_tile, share->first_tile + share->tiles);
    }
}

static void linear_member(void *argument, int member, int members) {
    const struct linear_job *job = argument;
    const linear_task *task = job->task;
    const size_t tiles = linear_tiles(task), me = (size_t)member;
    if (!job->filled) {
        pack_weights(job, member, members);
        barrier_wait(job->barrier, (unsigned)members);
    }
    const struct grid grid = linear_grid(task, (size_t)members);
    if (me >= grid.row_groups * grid.members) return;
    const struct share share = share_of(grid, me, task->rows, tiles);
    linear_rows(job, &share);
    release_tiles();
}

static size_t linear_panels(size_t columns, size_t K) { return ceil_div(columns, LANES) * LANES * terms_of(K); }

/* panels: memory for the packed weights that outlives the call, or NULL. */
static int linear_with(const linear_task *task, float *panels, int filled, int in_caches, int threads) {
    struct linear_job job = {.task = task, .filled = filled, .in_caches = in_caches};
    float *memory = scratch(&job.barrier, 1, panels ? 0 : linear_panels(task->columns, task->K));
    if (!memory) return -1;
    job.panels = panels ? panels : memory;
    team_run(threads, linear_member, &job);
    free(job.barrier);
    return 0;
}

static int linear(const linear_task *task, int threads) { return linear_with(task, NULL, 0, 0, threads); }

#endif
