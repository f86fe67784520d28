/* Products of a few rows with weights where they lie. Packing reads every weight and writes it once, which pays only for
   what reads it again and again. */
#ifndef FASTCELLS_FEW_ROWS_H
#define FASTCELLS_FEW_ROWS_H

#include "gemm.h"

enum { MAX_FEW = REGISTERS >= 32 ? 4 : 2 }; /* rows at a time: their sums with several rows of weights stay in registers */

typedef float few_t[MAX_FEW][LANES] __attribute__((aligned(4 * LANES)));

/* Lane i of the result is the sum of the lanes of each[i], taken two by two. */
INLINE vec sums_of_lanes(vec each[LANES]) {
    UNROLL for (int side = 1; side < LANES; side *= 2) {
        ivec upper, lower;
        sides(side, &upper, &lower);
        UNROLL for (int i = 0; i < LANES; i += 2 * side)
            each[i] = shuffle(each[i], each[i + side], upper) + shuffle(each[i], each[i + side], lower);
    }
    return each[0];
}

/* acc[r][i] += w[i][k] a[r][k] for LANES terms, or for those that `kept` has. */
INLINE void add_terms(size_t rows, size_t abreast, vec acc[MAX_FEW][LANES], const float *const *w, const float *a,
                      size_t a_step, size_t k, const ivec *kept) {
    vec terms[MAX_FEW];
    UNROLL for (size_t r = 0; r < rows; r++) {
        terms[r] = load(a + r * a_step + k);
        if (kept) terms[r] = (vec)((ivec)terms[r] & *kept);
    }
    UNROLL for (size_t i = 0; i < abreast; i++) {
        vec weights = load(w[i] + k);
        if (kept) weights = (vec)((ivec)weights & *kept);
        UNROLL for (size_t r = 0; r < rows; r++) acc[r][i] += weights * terms[r];
    }
}

/* The same for rows of fewer than LANES terms. */
static __attribute__((noinline)) void short_rows(size_t rows, few_t out, const float *w, size_t there, const float *a,
                                                 size_t a_step, size_t K) {
    for (size_t r = 0; r < rows; r++) {
        vec sums[LANES];
        const vec terms = load_part(a + r * a_step, K);
        for (size_t i = 0; i < LANES; i++) sums[i] = load_part(w + (i < there ? i : there - 1) * K, K) * terms;
        store(out[r], sums_of_lanes(sums));
    }
}

/* The terms that are left where K ends: the vector that ends with them has others before. */
static __attribute__((noinline)) ivec last_terms(size_t K) {
    ivec kept = {0};
    for (int i = 0; i < LANES; i++) kept[i] = (size_t)i >= LANES - K % LANES ? -1 : 0;
    return kept;
}

/* out[r][i] = sum over k of w[i][k] a[r][k], for LANES rows of weights that lie K apart, of which `there` are there. Each
   sum is taken in `deep` parts, 1 or 2, which take turns. */
INLINE void few_rows(size_t rows, size_t abreast, size_t deep, few_t out, const float *w, size_t there, const float *a,
                     size_t a_step, size_t K) {
    if (K < LANES) {
        short_rows(rows, out, w, there, a, a_step, K);
        return;
    }
    vec sums[MAX_FEW][LANES];
    for (size_t first = 0; first < LANES; first += abreast) {
        vec acc[MAX_FEW][LANES], more[MAX_FEW][LANES];
        const float *row[LANES];
        UNROLL for (size_t i = 0; i < abreast; i++) {
            row[i] = w + (first + i < there ? first + i : there - 1) * K;
            UNROLL for (size_t r = 0; r < rows; r++) acc[r][i] = more[r][i] = splat(0.0f);
        }
        size_t k = 0;
        for (; k + deep * LANES <= K; k += deep * LANES) {
            add_terms(rows, abreast, acc, row, a, a_step, k, NULL);
            if (deep > 1) add_terms(rows, abreast, more, row, a, a_step, k + LANES, NULL);
        }
        if (deep > 1) {
            UNROLL for (size_t r = 0; r < rows; r++) {
                UNROLL for (size_t i = 0; i < abreast; i++) acc[r][i] += more[r][i];
            }
            if (k + LANES <= K) add_terms(rows, abreast, acc, row, a, a_step, k, NULL);
        }
        if (K % LANES) {
            const ivec kept = last_terms(K);
            add_terms(rows, abreast, acc, row, a, a_step, K - LANES, &kept);
        }
        UNROLL for (size_t r = 0; r < rows; r++) {
            UNROLL for (size_t i = 0; i < abreast; i++) sums[r][first + i] = acc[r][i];
        }
    }
    UNROLL for (size_t r = 0; r < rows; r++) store(out[r], sums_of_lanes(sums[r]));
}

/* One function for each number of rows: so many rows of weights at once that multiplications do not wait for each
   other, and of a row of weights no less at a time than what one row of the batch leaves registers for. That reads
   memory in fewer streams (measured with AVX-512, one row: 1.1 to 1.4 times as fast as 16 by 1). */
#define FEW_ROWS(rows, abreast, deep)                                                                                  \
    static __attribute__((noinline)) void few_rows_##rows(few_t out, const float *w, size_t there, const float *a,     \
                                                          size_t a_step, size_t K) {                                   \
        few_rows(rows, abreast < LANES ? abreast : LANES, deep, out, w, there, a, a_step, K);                          \
    }
#if REGISTERS < 32
FEW_ROWS(1, 4, 2)
FEW_ROWS(2, 4, 1)
#else
FEW_ROWS(1, 8, 2)
FEW_ROWS(2, 4, 2)
FEW_ROWS(3, 4, 1)
FEW_ROWS(4, 4, 1)
#endif

typedef void (*few_rows_fn)(few_t, const float *, size_t, const float *, size_t, size_t);
static const few_rows_fn FEW_ROWS_OF[MAX_FEW] = {
    few_rows_1,
    few_rows_2,
#if REGISTERS >= 32
    few_rows_3,
    few_rows_4,
#endif
};

#endif
