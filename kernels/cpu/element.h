/* What the tensors of a recurrence are made of: float, or where ROUNDED is defined bfloat16, the upper half of a float.
   Whatever is computed is a float. Included once for each set of instructions, after LANES is defined. */
#ifndef FASTCELLS_ELEMENT_H
#define FASTCELLS_ELEMENT_H

#include "arguments.h"
#include "vector.h"

#ifdef ROUNDED

typedef bfloat16 element;
typedef struct forward_bf16 forward_task;
typedef struct backward_bf16 backward_task;
typedef struct weight_grad_bf16 weight_grad_task;
typedef struct linear_bf16 linear_task;

enum { TERM = 2 }; /* neighbours along a product's sum that one instruction multiplies and adds up */

/* Of `stored`, a tensor that the kernel writes, and `carried`, floats of its own: where a state lies from step to step. */
#define CARRIED(carried, stored) ((void)(stored), (carried))

typedef uint16_t halves __attribute__((vector_size(2 * LANES)));
typedef uint16_t unaligned_halves __attribute__((vector_size(2 * LANES), aligned(2), may_alias));

/* n elements as floats; the lanes past them are 0. */
INLINE vec read_n(const element *p, size_t n) {
    halves h = {0};
    if (n == LANES)
        h = *(const unaligned_halves *)p;
    else
        memcpy(&h, p, n * sizeof *p);
    return (vec)(__builtin_convertvector(h, ivec) << 16);
}

/* Rounded to the nearest, ties to even; with AVX-512 whatever the thread's rounding, and subnormal numbers become 0. */
INLINE halves rounded(vec v) {
#if defined(__aarch64__)
    return (halves)vcvt_bf16_f32((float32x4_t)v);
#else
    return (halves)_mm512_cvtneps_pbh((__m512)v);
#endif
}

INLINE void write_n(element *p, vec v, size_t n) {
    const halves h = rounded(v);
    if (n == LANES)
        *(unaligned_halves *)p = h;
    else
        memcpy(p, &h, n * sizeof *p);
}

/* n elements as they are, two a lane; the others are 0. */
INLINE vec load_terms(const element *p, size_t n) {
    vec v = {0};
    if (n == TERM * LANES)
        memcpy(&v, p, sizeof v);
    else
        memcpy(&v, p, n * sizeof *p);
    return v;
}

/* A lane for each column of two numbers, which are elements; the first one's come first. */
INLINE vec columns_of_terms(vec first, vec second) { return (vec)((((ivec)first >> 16) & 0xffff) | (ivec)second); }

#ifdef BY_ELEMENT /* as below */
typedef float broadcast;
INLINE broadcast splat_term(const element *p) {
    float bits;
    memcpy(&bits, p, sizeof bits);
    return bits;
}
INLINE vec add_product(vec sum, broadcast a, vec w) {
    __asm__("bfdot %0.4s, %1.8h, %2.2h[0]" : "+w"(sum) : "w"(w), "w"(a));
    return sum;
}
#else
typedef vec broadcast;
INLINE broadcast splat_term(const element *p) {
    int32_t bits;
    memcpy(&bits, p, sizeof bits);
    return (vec)((ivec){0} + bits);
}

INLINE vec add_product(vec sum, broadcast a, vec w) {
    return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)w);
}
#endif

/* The last element of an odd sum, of which a term of the weights has the other half 0: what lies behind it in `a` is
   another row's, or nobody's. */
INLINE vec add_last(vec sum, const element *a, vec w) {
    return sum + (vec)((ivec){0} + (int32_t)((uint32_t)*a << 16)) * (vec)((ivec)w << 16);
}

#else

typedef float element;
typedef struct forward forward_task;
typedef struct backward backward_task;
typedef struct weight_grad weight_grad_task;
typedef struct linear linear_task;

enum { TERM = 1 };
#define CARRIED(carried, stored) (stored) /* nothing is lost in it */

INLINE vec read_n(const element *p, size_t n) { return load_n(p, n); }
INLINE void write_n(element *p, vec v, size_t n) { store_n(p, v, n); }
INLINE vec load_terms(const element *p, size_t n) { return load_n(p, n); }
INLINE vec columns_of_terms(vec first, vec second) {
    (void)second;
    return first;
}
#ifdef BY_ELEMENT /* NEON multiplies a vector by an element of another one: no lanes to fill, which takes its time */
typedef float broadcast;
INLINE broadcast splat_term(const element *p) { return *p; }
INLINE vec add_product(vec sum, broadcast a, vec w) {
    /* Compilers fill lanes all the same, even for their own functions of this name, and then lack registers. */
    __asm__("fmla %0.4s, %1.4s, %2.s[0]" : "+w"(sum) : "w"(w), "w"(a));
    return sum;
}
#else
typedef vec broadcast;
INLINE broadcast splat_term(const element *p) { return splat(*p); }
INLINE vec add_product(vec sum, broadcast a, vec w) { return sum + a * w; }
#endif
INLINE vec add_last(vec sum, const element *a, vec w) {
    (void)a, (void)w;
    return sum;
}

#endif

/* A lane for each column of the first of `terms` rows, which lie `step` apart, and of the next one, if there is one. */
INLINE vec load_columns(const element *p, size_t step, size_t terms, size_t lanes) {
    return columns_of_terms(read_n(p, lanes), TERM > 1 && terms > 1 ? read_n(p + step, lanes) : splat(0.0f));
}

enum { STATES_CARRIED = TERM > 1 }; /* in floats of their own */

#endif
