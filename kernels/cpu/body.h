/* The recurrences on one set of vector instructions. Included once for each, after LANES, REGISTERS (how many vectors
   fit the register file) and BACKEND (its name) are defined.

   A member of the team owns some rows of the batch and some tiles of hidden columns. Members that share rows tell each
   other what the next product needs by writing the output tensors themselves, with a barrier after each step. Every
   sum has one order, whatever the number of threads. */

#include "recurrence.h"

#include <stdlib.h>
#include <string.h>

#include "team.h"

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#include "vector.h"

/* Memory on a cache line of its own, for the duration of a call; free() ends it. */
static void *scratch(size_t bytes) {
    void *memory;
    return posix_memalign(&memory, CACHE_LINE, bytes) ? NULL : memory;
}

enum { WIDEST = 4 }; /* vectors of a tile: the gates of one vector of columns, or columns of one gate */
enum { MOST_ROWS = 8 };
enum { MOST_WANTED = 320 }; /* lines: the widest tile's rows times what an LSTM or GRU reads and writes of each */
enum { PART = 512 };   /* terms of a product's sum that are added up one after another */
enum { ADDENDS = 16 }; /* the same for the sum beside a weight's gradient */

/* Rows of a tile by its width: accumulators, weights and a broadcast in registers. */
static const size_t ROWS[WIDEST + 1] = {
    0,
    8,
    REGISTERS >= 32 ? 8 : 6,
    REGISTERS >= 32 ? 8 : 4,
    REGISTERS >= 32 ? 6 : 3,
};

/* ---- the product of a tile ---- */

typedef float tile_t[MOST_ROWS][WIDEST][LANES] __attribute__((aligned(64)));

/* Lines of memory to ask for in the course of a product. All at once they would be more than a core keeps track of, and
   it would wait for the first ones. */
struct wanted {
    size_t count;
    const float *line[MOST_WANTED];
};

/* One term of the sums of a tile: acc[r][v] += a[r * row_step] * w[v] */
INLINE void add_term(size_t rows, size_t width, vec acc[MOST_ROWS][WIDEST], const float *restrict a, size_t row_step,
                     const float *restrict w) {
    vec columns[WIDEST];
    UNROLL for (size_t v = 0; v < width; v++) columns[v] = load(w + v * LANES);
    UNROLL for (size_t r = 0; r < rows; r++) {
        vec s = splat(a[r * row_step]);
        UNROLL for (size_t v = 0; v < width; v++) acc[r][v] += s * columns[v];
    }
}

/* out[r][v] (+)= sum over k of a[r * row_step + k * k_step] * panel[k][v], asking for `lines` lines on the way; the
   last eighth of it leaves them time to arrive. */
INLINE void product(size_t rows, size_t width, tile_t out, const float *restrict a, size_t row_step, size_t k_step,
                    const float *restrict panel, size_t K, int add, const float *const *line, size_t lines) {
    vec acc[MOST_ROWS][WIDEST];
    UNROLL for (size_t r = 0; r < rows; r++) {
        UNROLL for (size_t v = 0; v < width; v++) acc[r][v] = splat(0.0f);
    }
    const size_t terms_a_line = lines ? (K - K / 8) / lines : 0;
    size_t k = 0;
    for (size_t i = 0; i < lines; i++) {
        __builtin_prefetch(line[i]);
        for (const size_t end = k + terms_a_line; k < end; k++)
            add_term(rows, width, acc, a + k * k_step, row_step, panel + k * width * LANES);
    }
    for (; k < K; k++) add_term(rows, width, acc, a + k * k_step, row_step, panel + k * width * LANES);
    UNROLL for (size_t r = 0; r < rows; r++) {
        UNROLL for (size_t v = 0; v < width; v++) store(out[r][v], add ? load(out[r][v]) + acc[r][v] : acc[r][v]);
    }
}

#define PRODUCT(rows, width)                                                                                           \
    static __attribute__((noinline)) void product_##rows##_##width(                                                    \
        tile_t out, const float *a, size_t row_step, size_t k_step, const float *panel, size_t K, int add,             \
        const float *const *line, size_t lines) {                                                                      \
        product(rows, width, out, a, row_step, k_step, panel, K, add, line, lines);                                    \
    }
#define PRODUCTS(width)                                                                                                \
    PRODUCT(1, width)                                                                                                  \
    PRODUCT(2, width)                                                                                                  \
    PRODUCT(3, width)                                                                                                  \
    PRODUCT(4, width)                                                                                                  \
    PRODUCT(5, width)                                                                                                  \
    PRODUCT(6, width)                                                                                                  \
    PRODUCT(7, width)                                                                                                  \
    PRODUCT(8, width)
PRODUCTS(1)
PRODUCTS(2)
PRODUCTS(3)
PRODUCTS(4)

typedef void (*product_fn)(tile_t, const float *, size_t, size_t, const float *, size_t, int, const float *const *,
                           size_t);
#define NAMES(width)                                                                                                   \
    {product_1_##width, product_2_##width, product_3_##width, product_4_##width,                                       \
     product_5_##width, product_6_##width, product_7_##width, product_8_##width}
static const product_fn PRODUCT_OF[WIDEST][MOST_ROWS] = {NAMES(1), NAMES(2), NAMES(3), NAMES(4)};

/* out[r][v] = sum over k of a[r][k] * panel[k][v]. Long sums are taken in parts, so that rounding errors do not pile
   up along K. */
static void multiply(size_t rows, size_t width, tile_t out, const float *a, size_t a_stride, const float *panel,
                     size_t K, const struct wanted *wanted) {
    const product_fn part = PRODUCT_OF[width - 1][rows - 1];
    size_t asked = 0;
    for (size_t k = 0; k < K; k += PART) {
        const size_t terms = K - k < PART ? K - k : PART, upto = wanted->count * (k + terms) / K;
        part(out, a + k, a_stride, 1, panel + k * width * LANES, terms, k > 0, wanted->line + asked, upto - asked);
        asked = upto;
    }
}

/* Note what the update of a tile reads and writes: `planes` planes of a row, H apart, for `vectors` vectors of
   columns. */
static void want(struct wanted *wanted, const float *row, size_t planes, size_t H, size_t vectors) {
    enum { LINE = CACHE_LINE / sizeof(float) };
    for (size_t plane = 0; plane < planes; plane++) {
        for (size_t i = 0; i < vectors * LANES && wanted->count < MOST_WANTED; i += LINE)
            wanted->line[wanted->count++] = row + plane * H + i;
    }
}

/* ---- who does what ---- */

struct share {
    size_t first_row, rows;   /* of the batch */
    size_t first_tile, tiles; /* of the hidden columns */
};

/* The team as a grid: `row_groups` groups of `members` each. */
struct grid {
    size_t row_groups, members;
};

static size_t ceil_div(size_t a, size_t b) { return (a + b - 1) / b; }

/* The split with the least work on the busiest member. Without a barrier if that costs nothing, but with the fewest
   weights a member where they are large: what stays in a core's own cache is read at full speed. */
static struct grid choose_grid(size_t team, size_t B, size_t tiles, size_t weights) {
    enum { BARRIER = 6000 }; /* multiplications that one does in the time of a barrier, with a single row */
    const size_t tile_weights = weights / tiles;
    struct grid best = {1, 1};
    size_t least = (size_t)-1;
    for (size_t groups = 1; groups <= team; groups++) {
        size_t members = team / groups;
        if (groups > B || members > tiles) members = groups > B ? 0 : tiles;
        if (members == 0) continue;
        size_t work = ceil_div(B, groups) * ceil_div(tiles, members) * tile_weights;
        if (members > 1) work += work / 16 + BARRIER;
        if (weights * sizeof(float) / members > (size_t)512 << 10) work += work / 8;
        if (work < least) {
            least = work;
            best = (struct grid){groups, members};
        }
    }
    return best;
}

static struct share share_of(struct grid grid, size_t member, size_t B, size_t tiles) {
    size_t group = member / grid.members, column = member % grid.members;
    struct share share;
    share.first_row = B * group / grid.row_groups;
    share.rows = B * (group + 1) / grid.row_groups - share.first_row;
    share.first_tile = tiles * column / grid.members;
    share.tiles = tiles * (column + 1) / grid.members - share.first_tile;
    return share;
}

/* Rows in tiles of nearly the same height, none above `most`. */
static size_t height(size_t rows, size_t done, size_t most) {
    size_t left = rows - done;
    return ceil_div(left, ceil_div(left, most));
}

/* Vectors of columns in a tile where a tile has one gate: as wide as keeps all members of a team busy. */
static size_t tile_width(size_t H, size_t team) {
    size_t vectors = ceil_div(H, LANES), best = 1, least = (size_t)-1;
    for (size_t width = WIDEST; width > 0; width--) {
        size_t work = ceil_div(ceil_div(vectors, width), team) * width * 16;
        work += work * (WIDEST - width) / 32; /* a narrow tile loads more for the same work */
        if (work < least) {
            least = work;
            best = width;
        }
    }
    return best;
}

#include "pack.h"

#include "forward.h"

#include "backward.h"

#include "weights.h"

#include "linear.h"

#include "single.h"

static void activations(const float *x, float *s, float *t, size_t n) {
    for (size_t i = 0; i < n; i += LANES) {
        const size_t lanes = lanes_at(n, i);
        vec v = load_n(x + i, lanes);
        store_n(s + i, sigmoid(v), lanes);
        store_n(t + i, tanh_of(v), lanes);
    }
}

#define TEXT_OF(name) #name
#define TEXT(name) TEXT_OF(name)
#define STRUCT_OF(name) backend_##name
#define STRUCT(name) STRUCT_OF(name)
const struct backend STRUCT(BACKEND) = {TEXT(BACKEND), supported, forward, backward, weights, linear, single, matvec,
                                      activations};
