/* Further functions of a vector, which defined cells may use. NaN goes through. */
#ifndef FASTCELLS_FUNCTIONS_H
#define FASTCELLS_FUNCTIONS_H

#include <math.h>

#include "vector.h"

INLINE vec exponential(vec x) {
    vec y = where(x < -104.0f, splat(-104.0f), where(x > 89.0f, splat(89.0f), x)); /* 0 below, infinite above */
    vec rounded = y * 1.44269504088896341f + ROUND;
    ivec n = (ivec)rounded - (ivec)splat(ROUND), half = n >> 1; /* two factors, as in sigmoid */
    vec fraction = exp_fraction(y, rounded);
    vec first = (vec)((half + 127) << 23), second = (vec)((n - half + 127) << 23);
    return (first + first * fraction) * second;
}

/* x = 2^e m with m from sqrt(1/2) to sqrt(2); log m = 2 artanh s with s = (m - 1) / (m + 1), by its series to s^9 (the
   rest is below 2^-28 of it). */
INLINE vec log_of(vec x) {
    const ivec tiny = x < 1.17549435e-38f;
    vec y = where(tiny, x * 8388608.0f, x); /* 2^23: now normal */
    const ivec offset = (ivec)y - 0x3f3504f3; /* sqrt(1/2) */
    const ivec exponent = offset >> 23;
    vec m = (vec)((ivec)y - (exponent << 23));
    vec e = (vec)(exponent + (ivec)splat(ROUND)) - ROUND; /* as a float */
    e = e - where(tiny, splat(23.0f), splat(0.0f));
    vec f = m - 1.0f, s = f / (2.0f + f), z = s * s;
    vec p = z * (1.0f / 9) + 1.0f / 7;
    p = p * z + 1.0f / 5;
    p = p * z + 1.0f / 3;
    /* 2 s = f - s f: the sum's first term is exact */
    vec log_m = f - s * (f - 2.0f * z * p);
    vec result = e * 0.693145751953125f + (log_m + e * 1.42860682030941723212e-6f);
    result = where(x == 0.0f, splat(-INFINITY), result);
    result = where(x < 0.0f, splat(NAN), result);
    return where((x == INFINITY) | (x != x), x, result);
}

INLINE vec log1p_of(vec x) {
    vec u = 1.0f + x; /* and what its rounding has lost, to first order */
    vec lost = (x - (u - 1.0f)) / u;
    return log_of(u) + where((u > 0.0f) & (u < 16777216.0f), lost, splat(0.0f));
}

INLINE vec softplus(vec x) {
    vec above = where(x < 0.0f, splat(0.0f), x), minus = where(x < 0.0f, x, -x);
    return above + log1p_of(exponential(minus));
}

INLINE vec sqrt_of(vec x) {
    vec y = where(x < 0.0f, splat(0.0f), x);
    UNROLL for (int i = 0; i < LANES; i++) y[i] = sqrtf(y[i]);
    return where(x < 0.0f, splat(NAN), y);
}

#endif
