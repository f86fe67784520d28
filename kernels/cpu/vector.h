/* LANES floats in one register, and the activations on them. Included once for each set of instructions, after LANES
   is defined; everything is static.

   Strictly IEEE: NaN and infinity go through, gradual underflow is kept. No -ffast-math anywhere. */
#ifndef FASTCELLS_VECTOR_H
#define FASTCELLS_VECTOR_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(ROUNDED) || defined(POWERS) /* instructions that compilers have no operators for */
#if defined(__aarch64__)
#include <arm_neon.h>
#else
#include <immintrin.h>
#endif
#endif

#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
typedef float unaligned_vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define INLINE static inline __attribute__((always_inline))

INLINE vec load(const float *p) { return *(const unaligned_vec *)p; }
INLINE void store(float *p, vec v) { *(unaligned_vec *)p = v; }

/* The first n lanes, n < LANES; the others are 0. */
INLINE vec load_part(const float *p, size_t n) {
    vec v = {0};
    memcpy(&v, p, n * sizeof(float));
    return v;
}
INLINE void store_part(float *p, vec v, size_t n) { memcpy(p, &v, n * sizeof(float)); }

INLINE vec load_n(const float *p, size_t n) { return n == LANES ? load(p) : load_part(p, n); }
INLINE void store_n(float *p, vec v, size_t n) {
    if (n == LANES)
        store(p, v);
    else
        store_part(p, v, n);
}

/* Lanes of the vector at a column that lie within the columns. */
INLINE size_t lanes_at(size_t columns, size_t column) { return columns - column < LANES ? columns - column : LANES; }

INLINE vec splat(float s) {
    /* As an integer: adding 0 is nothing then, where for floats -0 + 0 = 0 would have to be computed. */
    int32_t bits;
    memcpy(&bits, &s, sizeof bits);
    return (vec)((ivec){0} + bits);
}
INLINE vec where(ivec mask, vec yes, vec no) { return (vec)((mask & (ivec)yes) | (~mask & (ivec)no)); }

/* Lanes of a (0 to LANES - 1) and b (from LANES on); a mask known to the compiler becomes one instruction or two. */
INLINE vec shuffle(vec a, vec b, ivec mask) {
#if defined(__clang__)
    vec out = a;
    for (int i = 0; i < LANES; i++) out[i] = mask[i] < LANES ? a[mask[i]] : b[mask[i] - LANES];
    return out;
#else
    return __builtin_shuffle(a, b, mask);
#endif
}

/* Which lanes of two vectors change sides, `side` apart: of the first for `upper`, of the second for `lower`. */
INLINE void sides(int side, ivec *upper, ivec *lower) {
    ivec lane = {0};
    UNROLL for (int i = 0; i < LANES; i++) lane[i] = i;
    const ivec right = (lane & side) != 0;
    *upper = (right & (lane + (LANES - side))) | (~right & lane);
    *lower = (right & (lane + LANES)) | (~right & (lane + side));
}

/* Rows become columns: single elements change sides first, then pairs of them, and so on. */
INLINE void transpose(vec square[LANES]) {
    UNROLL for (int side = 1; side < LANES; side *= 2) {
        ivec upper, lower;
        sides(side, &upper, &lower);
        UNROLL for (int i = 0; i < LANES; i++) {
            if (i & side) continue;
            const vec a = square[i], b = square[i + side];
            square[i] = shuffle(a, b, upper);
            square[i + side] = shuffle(a, b, lower);
        }
    }
}

/* exp(y) = scale + scale * fraction, for -87 <= y <= 0 (and NaN): y = n ln 2 + r with |r| <= ln(2) / 2,
   scale = 2^n, fraction = exp(r) - 1 by its series to r^8 (the rest is below 2^-31 of it), or where results are rounded
   to r^5 (below 2^-18). */
struct exponential {
    vec scale, fraction;
};
enum { MAX_ABREAST = 8 }; /* vectors whose activations are computed side by side */
#define ROUND 12582912.0f /* 1.5 * 2^23: adding it rounds to an integer, which then stands in the low bits */

INLINE vec exp_fraction(vec y, vec rounded) {
    vec n = rounded - ROUND;
    vec r = y - n * 0.693145751953125f; /* ln 2 in two parts; the first has zeros at its end, its product is exact */
    r = r - n * 1.42860682030941723212e-6f;
#ifdef ROUNDED
    vec p = splat(1.0f / 120);
#else
    vec p = r * (1.0f / 40320) + 1.0f / 5040;
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
#endif
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    return r + r * r * p;
}

#if defined(POWERS) || (defined(ROUNDED) && !defined(__aarch64__))
/* Several vectors a step at a time: a processor looks for what does not wait for anything among the next hundred
   instructions or so. */
#define SIDE_BY_SIDE
INLINE vec scaled(vec v, vec y) { return (vec)_mm512_scalef_ps((__m512)v, (__m512)y); } /* by 2^floor(y) */
#endif

#if defined(ROUNDED) && !defined(__aarch64__)

/* For what is rounded to 8 bits: right to 16, with what AVX-512 has for powers of 2. */

INLINE vec at_most(float limit, vec v) { return (vec)_mm512_min_ps(_mm512_set1_ps(limit), (__m512)v); } /* NaN too */

/* The sigmoid of the first so many vectors, the tanh of the others: 1 / (1 + e) with e = exp(-x); and (e - 1) / (e + 1)
   with e = exp(2|x|), whose numerator does not cancel near 0.

   The whole part of a power of 2 is left to the instruction that scales by it; of the fraction f, 2^f - 1 has the least
   relative error (2^-15.8) that four terms allow, so that it is right near 0 too. A reciprocal of what is finite is
   right to 14 bits, and to twice as many after a step of Newton's. */
INLINE void activate(size_t sigmoids, size_t count, vec *x) {
    static const float TERMS[] = {0.053523276f, 0.24061711f, 0.69313556f};
    vec y[MAX_ABREAST], f[MAX_ABREAST], p[MAX_ABREAST], above[MAX_ABREAST], below[MAX_ABREAST];
    UNROLL for (size_t i = 0; i < count; i++) {
        if (i < sigmoids)
            y[i] = at_most(126.0f, x[i] * -1.44269504f);
        else
            y[i] = at_most(60.0f, 2.88539008f * (vec)((ivec)x[i] & 0x7fffffff));
    }
    UNROLL for (size_t i = 0; i < count; i++) {
        f[i] = (vec)_mm512_reduce_ps((__m512)y[i], _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
        p[i] = splat(0.012707291f);
    }
    UNROLL for (size_t k = 0; k < sizeof TERMS / sizeof *TERMS; k++) {
        UNROLL for (size_t i = 0; i < count; i++) p[i] = p[i] * f[i] + TERMS[k];
    }
    UNROLL for (size_t i = 0; i < count; i++) {
        if (i < sigmoids) {
            below[i] = 1.0f + scaled(1.0f + p[i] * f[i], y[i]);
        } else {
            const vec scale = scaled(splat(1.0f), y[i]);
            above[i] = (scale - 1.0f) + scale * (p[i] * f[i]);
            below[i] = above[i] + 2.0f;
        }
    }
    UNROLL for (size_t i = 0; i < count; i++) {
        const vec r = (vec)_mm512_rcp14_ps((__m512)below[i]), inverse = r * (2.0f - below[i] * r);
        x[i] = i < sigmoids ? inverse : (vec)((ivec)(above[i] * inverse) | ((ivec)x[i] & (int32_t)0x80000000));
    }
}

#elif defined(ROUNDED)

/* For what is rounded to 8 bits: right to 17, in half of the time. Exponents end at that of the smallest normal number,
   where bfloat16's conversions end too. */

INLINE struct exponential exp_of(vec y) {
    y = where(y < -87.0f, splat(-87.0f), y);
    vec rounded = y * 1.44269504088896341f + ROUND;
    vec scale = (vec)(((ivec)rounded - (ivec)splat(ROUND) + 127) << 23);
    return (struct exponential){scale, exp_fraction(y, rounded)};
}

INLINE vec reciprocal(vec x) { /* of 1 to 2 */
    vec r = (vec)vrecpeq_f32((float32x4_t)x); /* right to 8 bits; each step doubles them */
    r = r * (2.0f - x * r);
    return r * (2.0f - x * r);
}

INLINE vec sigmoid(vec x) {
    struct exponential e = exp_of((vec)((ivec)x | (int32_t)0x80000000)); /* exp(-|x|) cannot overflow */
    vec whole = e.scale + e.scale * e.fraction;
    return where(x < 0.0f, whole, splat(1.0f)) * reciprocal(1.0f + whole);
}

INLINE vec tanh_of(vec x) { /* (1 - e) / (1 + e) with e = exp(-2|x|); the numerator does not cancel near 0 */
    struct exponential e = exp_of(-2.0f * (vec)((ivec)x & 0x7fffffff));
    vec change = e.scale * e.fraction;
    vec quotient = ((1.0f - e.scale) - change) * reciprocal((1.0f + e.scale) + change);
    return (vec)((ivec)quotient | ((ivec)x & (int32_t)0x80000000));
}

#elif defined(POWERS)

/* With AVX-512's powers of 2, which underflow gradually: two thirds of the instructions below. */

INLINE vec at_least(float limit, vec v) { return (vec)_mm512_max_ps(_mm512_set1_ps(limit), (__m512)v); } /* NaN too */

/* exp(y) = 2^n (1 + fraction); the fraction, exp(r) - 1 for |r| <= ln(2) / 2, has the least relative error (2^-26.2)
   that so many terms allow. */
INLINE void power_fractions(size_t count, const vec *y, vec *n, vec *fraction) {
    static const float TERMS[] = {0.00836654752f, 0.0416672006f, 0.166665435f, 0.49999997f};
    vec r[MAX_ABREAST], p[MAX_ABREAST];
    UNROLL for (size_t i = 0; i < count; i++) n[i] = y[i] * 1.44269504088896341f + ROUND;
    UNROLL for (size_t i = 0; i < count; i++) n[i] = n[i] - ROUND;
    UNROLL for (size_t i = 0; i < count; i++) r[i] = y[i] - n[i] * 0.693145751953125f;
    UNROLL for (size_t i = 0; i < count; i++) r[i] = r[i] - n[i] * 1.42860682030941723212e-6f;
    UNROLL for (size_t i = 0; i < count; i++) p[i] = splat(0.00138825166f);
    UNROLL for (size_t k = 0; k < sizeof TERMS / sizeof *TERMS; k++) {
        UNROLL for (size_t i = 0; i < count; i++) p[i] = p[i] * r[i] + TERMS[k];
    }
    UNROLL for (size_t i = 0; i < count; i++) fraction[i] = r[i] + r[i] * r[i] * p[i];
}

/* exp(y) for y <= 0, and NaN; it is 0 from -104 on. */
INLINE vec exp_of(vec y) {
    vec n, fraction, limited = at_least(-104.0f, y);
    power_fractions(1, &limited, &n, &fraction);
    return scaled(1.0f + fraction, n);
}

/* The sigmoid of the first so many vectors, the tanh of the others. Of the exponentials of -|x| and -2|x|, which cannot
   overflow: 1 / (1 + e), or e / (1 + e) where x < 0; and (1 - e) / (1 + e), whose numerator does not cancel near 0. */
INLINE void activate(size_t sigmoids, size_t count, vec *x) {
    vec y[MAX_ABREAST], n[MAX_ABREAST], fraction[MAX_ABREAST];
    UNROLL for (size_t i = 0; i < count; i++) {
        if (i < sigmoids)
            y[i] = at_least(-104.0f, (vec)((ivec)x[i] | (int32_t)0x80000000));
        else
            y[i] = at_least(-40.0f, -2.0f * (vec)((ivec)x[i] & 0x7fffffff)); /* the result is 1 long before that */
    }
    power_fractions(count, y, n, fraction);
    UNROLL for (size_t i = 0; i < count; i++) {
        if (i < sigmoids) {
            const vec e = scaled(1.0f + fraction[i], n[i]);
            const __mmask16 negative = _mm512_movepi32_mask((__m512i)x[i]);
            x[i] = (vec)_mm512_mask_mov_ps(_mm512_set1_ps(1.0f), negative, (__m512)e) / (1.0f + e);
        } else {
            const vec scale = scaled(splat(1.0f), n[i]);
            const vec quotient = ((1.0f - scale) - scale * fraction[i]) / ((1.0f + scale) + scale * fraction[i]);
            x[i] = (vec)((ivec)quotient | ((ivec)x[i] & (int32_t)0x80000000));
        }
    }
}

#else

/* exp(y) for y <= 0, and NaN. */
INLINE vec exp_of(vec y) {
    y = where(y < -104.0f, splat(-104.0f), y); /* 0 from here on */
    vec rounded = y * 1.44269504088896341f + ROUND;
    ivec n = (ivec)rounded - (ivec)splat(ROUND);
    vec fraction = exp_fraction(y, rounded);
    ivec half = n >> 1; /* 2^n in two factors, since n goes below the smallest exponent of a normal number */
    vec first = (vec)((half + 127) << 23), second = (vec)((n - half + 127) << 23);
    return (first + first * fraction) * second;
}

INLINE vec sigmoid(vec x) {
    vec e = exp_of(where(x < 0.0f, x, -x)); /* exp(-|x|) cannot overflow */
    return where(x < 0.0f, e, splat(1.0f)) / (1.0f + e);
}

INLINE vec tanh_of(vec x) {
    /* With e = exp(-2|x|): (1 - e) / (1 + e), where 1 - e = -expm1(-2|x|) does not cancel near 0; or the same as
       1 - 2 e / (1 + e) where e is small, since the quotient's rounding errors shrink with it. */
    ivec sign = (ivec)x & (int32_t)0x80000000;
    vec y = -2.0f * (vec)((ivec)x & 0x7fffffff);
    y = where(y < -87.0f, splat(-87.0f), y); /* the result is 1 long before that */
    vec rounded = y * 1.44269504088896341f + ROUND;
    vec scale = (vec)(((ivec)rounded - (ivec)splat(ROUND) + 127) << 23);
    vec fraction = exp_fraction(y, rounded);
    vec e = scale + scale * fraction, one_less_e = (1.0f - scale) - scale * fraction;
    ivec small = y > -1.0986f;
    vec quotient = where(small, one_less_e, e + e) / ((1.0f + scale) + scale * fraction);
    return (vec)((ivec)where(small, quotient, 1.0f - quotient) | sign);
}

#endif

#ifdef SIDE_BY_SIDE
INLINE vec sigmoid(vec x) {
    activate(1, 1, &x);
    return x;
}

INLINE vec tanh_of(vec x) {
    activate(0, 1, &x);
    return x;
}
#else
/* The sigmoid of the first so many vectors, the tanh of the others. */
INLINE void activate(size_t sigmoids, size_t count, vec *x) {
    UNROLL for (size_t i = 0; i < count; i++) x[i] = i < sigmoids ? sigmoid(x[i]) : tanh_of(x[i]);
}
#endif

INLINE vec relu(vec x) { return where(x < 0.0f, splat(0.0f), x); } /* NaN goes through */

#endif
