/* The C kernels without Python, for a sanitizer to watch: every cell, set of instructions and number of threads, on
   shapes that fill nothing evenly, in heap buffers of exactly their size. What they compute is checked against loops
   in double precision, and has to be the same bits for every number of threads.

   driver [instructions]: all sets that the machine has, or one.

   -DOVERRUN, -DRACY and -DWRONG plant a fault each: test_cpu_sanitizers.py sees that they are found. */
#define _GNU_SOURCE
#include "bf16_cases.h"
#include "defined_cases.h"
#include "layer_cases.h"
#include "product_cases.h"
#include "recurrence_cases.h"
#include "team.h"
#ifdef RACY
#include "racy_team.h"
#endif

enum { RANDOM_SHAPES = 6 };

static const size_t SHAPES[][3] = {
    /* T, B, H: each size 1; a vector and its neighbours; rows of tiles; sums in several parts */
    {1, 1, 1},  {1, 1, 3},  {3, 1, 17}, {1, 7, 16}, {2, 9, 15},   {5, 2, 33},
    {4, 3, 64}, {3, 8, 65}, {2, 17, 5}, {2, 5, 48}, {2, 1, 515},  {2, 3, 132},
};

static size_t smallest_factor(size_t n) {
    size_t factor = 2;
    while (factor < n && n % factor) factor++;
    return factor;
}

static void run_all(const struct backend *backend) {
    for (enum cell cell = 0; cell < NUM_CELLS; cell++) {
        for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++, release(0))
            recurrence_case(backend, cell, SHAPES[i][0], SHAPES[i][1], SHAPES[i][2]);
        for (size_t i = 0; i < RANDOM_SHAPES; i++, release(0))
            recurrence_case(backend, cell, 1 + below(6), 1 + below(20), 1 + below(80));
        for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++, release(0))
            layer_case(backend, cell, SHAPES[i][0], SHAPES[i][1], SHAPES[i][2], 1 + below(70));
        for (size_t i = 0; i < 2 * RANDOM_SHAPES; i++, release(0))
            layer_case(backend, cell, 1 + below(5), 1 + below(9), 1 + below(80), 1 + below(70));
        for (size_t i = 0; i < RANDOM_SHAPES; i++, release(0)) step_in_place_case(backend, cell, 1 + below(80), 1 + below(40));
    }
    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++) {
        const size_t H = SHAPES[i][2];
        for (size_t heads = 1; heads <= H; heads += heads == 1 ? smallest_factor(H) - 1 : H, release(0)) {
            defined_lstm_case(backend, SHAPES[i][0], SHAPES[i][1], H, heads);
            release(0);
            defined_gru_case(backend, SHAPES[i][0], SHAPES[i][1], H, heads);
        }
    }
    for (size_t i = 0; i < 6 * RANDOM_SHAPES; i++, release(0))
        weight_grad_case(backend, 1 + below(300), 1 + below(70), 1 + below(120));
    for (size_t i = 0; i < 6 * RANDOM_SHAPES; i++, release(0))
        linear_case(backend, 1 + below(100), 1 + below(80), 1 + below(90));
    linear_case(backend, 5, 2070, 3), release(0); /* a sum in several parts, two of them through memory */
    for (size_t i = 0; i < 6 * RANDOM_SHAPES; i++, release(0)) cross_entropy_case(backend, 1 + below(9), 1 + below(600));
    for (size_t i = 0; i < 2 * RANDOM_SHAPES; i++, release(0))
        linear_cross_entropy_case(backend, 1 + below(300), 1 + below(30), 1 + below(90));
    for (size_t i = 0; i < RANDOM_SHAPES; i++, release(0)) matvec_case(backend, 1 + below(50), 1 + below(90));
    for (size_t i = 0; i < 6 * RANDOM_SHAPES; i++, release(0))
        ids_case(backend, 1 + below(60), 1 + below(150), 1 + below(80));
    for (size_t n = 1; n < 70; n++, release(0)) activations_case(backend, n);
}

static void run_bf16(const struct bf16_backend *backend) {
    for (enum cell cell = 0; cell < NUM_CELLS; cell++) {
        for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++)
            bf16_case(backend, cell, SHAPES[i][0], SHAPES[i][1], SHAPES[i][2]);
        for (size_t i = 0; i < RANDOM_SHAPES; i++) bf16_case(backend, cell, 1 + below(6), 1 + below(20), 1 + below(80));
    }
    bf16_case(backend, LSTM, 1, 2, 1101); /* a sum in several parts, and an odd one */
    for (size_t i = 0; i < RANDOM_SHAPES; i++) {
        bf16_linear_case(backend, 1 + below(40), 1 + below(60), 1 + below(80));
        bf16_weight_grad_case(backend, 1 + below(60), 1 + below(80), 1 + below(60));
    }
    bf16_linear_case(backend, 3, 4101, 17);
    bf16_weight_grad_case(backend, 1301, 33, 17); /* more tokens than are read at a time */
}

int main(int count, char **arguments) {
    int runs = 0;
    team_init();
    if (strcmp(team_kind(), "threads")) FAIL("an OpenMP runtime that a sanitizer cannot see into");
    for (int i = 0; i < backend_count; i++) {
        if (!backends[i]->supported() || (count > 1 && strcmp(arguments[1], backends[i]->name))) continue;
        run_all(backends[i]);
        printf("%s\n", backends[i]->name);
        runs++;
    }
    for (int i = 0; i < bf16_backend_count; i++) {
        if (!bf16_backends[i]->supported() || (count > 1 && strcmp(arguments[1], bf16_backends[i]->name))) continue;
        run_bf16(bf16_backends[i]);
        printf("%s\n", bf16_backends[i]->name);
        runs++;
    }
    if (!runs) FAIL("no such instructions here");
    return 0;
}
