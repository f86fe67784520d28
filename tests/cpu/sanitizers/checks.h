/* What every case needs: random numbers, heap buffers of exactly their size, comparisons, and a call with each number
   of threads. */
#ifndef CPU_SANITIZERS_CHECKS_H
#define CPU_SANITIZERS_CHECKS_H

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef OVERRUN
#define OVERRUN 0 /* floats that each output is too small */
#endif
#ifndef WRONG
#define WRONG 0.0 /* what the expected numbers are off by */
#endif

enum { MOST_THREADS = 4 };

/* Two computations of one small formula differ by a few roundings, a wrong term by its size: 256 lie between. */
static const double TOLERANCE = 256 * FLT_EPSILON;

static char where[200]; /* what is running, for messages */

#define FAIL(...) (fprintf(stderr, "%s: ", where), fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), exit(1))

static void check(const char *what, size_t at, double actual, double expected, double scale) {
    expected += WRONG;
    if (!(fabs(actual - expected) <= TOLERANCE * fmax(1.0, scale)))
        FAIL("%s[%zu] is %.9g instead of %.9g", what, at, actual, expected);
}

/* ---- random numbers and memory ---- */

static uint64_t state = 20261122;

static uint64_t random_bits(void) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
}
static size_t below(size_t n) { return (size_t)(random_bits() >> 16) % n; }
static double uniform(void) { return (double)(random_bits() >> 11) / (double)(1ull << 52) - 1.0; } /* in [-1, 1) */

static void *held[200]; /* what the case at hand has allocated */
static int holding;

static void *bytes(size_t n) {
    void *memory = malloc(n ? n : 1);
    if (!memory || holding == sizeof held / sizeof *held) FAIL("out of memory");
    return held[holding++] = memory;
}

static void release(int keep) {
#ifdef EMULATED_TILES
    if (emulated_tiles.configured) FAIL("a call has left its tiles behind");
#endif
    while (holding > keep) free(held[--holding]);
}

/* Floats that end where their memory ends, and that are aligned as a float and no more. */
static float *floats(size_t n, double scale) {
    float *p = bytes((n + 1) * sizeof(float));
    for (size_t i = 0; i <= n; i++) p[i] = (float)(uniform() * scale);
    return p + 1;
}

/* NaN, so that what is not written shows. */
static float *unwritten(size_t n) {
    float *p = bytes((n - OVERRUN) * sizeof(float));
    for (size_t i = 0; i < n - OVERRUN; i++) p[i] = NAN;
    return p;
}

static double *doubles(size_t n) {
    double *p = bytes(n * sizeof(double));
    for (size_t i = 0; i < n; i++) p[i] = uniform();
    return p;
}

/* ---- calls with each number of threads ---- */

/* The outputs of a call with `threads` threads, to be compared with those of one thread. */
struct output {
    const char *name;
    float **place;
    size_t size;
    const float *before; /* what it holds at first; NULL: nothing */
};

static float *output_memory(const struct output *output) {
    if (!output->size) return NULL;
    float *p = unwritten(output->size);
    if (output->before) memcpy(p, output->before, (output->size - OVERRUN) * sizeof *p);
    return p;
}

static void run_threads(struct output *outputs, size_t count, int (*run)(const void *, const void *, int),
                        const void *kernel, const void *task) {
    float *first[12] = {0};
    for (int threads = 1; threads <= MOST_THREADS; threads++) {
        for (size_t i = 0; i < count; i++) *outputs[i].place = output_memory(outputs + i);
        if (run(kernel, task, threads)) FAIL("out of memory");
        for (size_t i = 0; i < count; i++) {
            if (threads == 1)
                first[i] = *outputs[i].place;
            else if (outputs[i].size && memcmp(first[i], *outputs[i].place, outputs[i].size * sizeof(float)))
                FAIL("%s differs between 1 and %d threads", outputs[i].name, threads);
        }
    }
}

#endif
