/* The kernels, once for each set of vector instructions. */
#ifndef FASTCELLS_BACKENDS_H
#define FASTCELLS_BACKENDS_H

#include "arguments.h"

/* Whether the compiler knows AMX; the tiles are Linux's to give. */
#if defined(__x86_64__) && defined(__linux__) && (defined(__clang__) ? __clang_major__ >= 14 : __GNUC__ >= 11)
#define HAS_AMX
#endif

/* The kernels return 0, or -1 where memory does not suffice. */
struct backend {
    const char *name;
    int (*supported)(void);
    int (*forward)(const struct forward *, int threads);
    int (*backward)(const struct backward *, int threads);
    int (*layer)(const struct layer *, int threads);
    size_t (*layer_panels)(enum cell, size_t B, size_t H, size_t I, int threads, size_t *vectors);
    int (*defined_forward)(const struct defined_forward *, int threads); /* > 0: a program's word that is not valid */
    int (*defined_backward)(const struct defined_backward *, int threads);
    int (*weight_grad)(const struct weight_grad *, int threads);
    int (*linear)(const struct linear *, int threads);
    int (*cross_entropy)(const struct cross_entropy *, int threads);
    int (*linear_cross_entropy)(const struct linear_cross_entropy *, int threads);
    int (*step_in_place)(const struct step_in_place *, int threads);
    int (*matvec)(const struct matvec *, int threads);
    int (*gather)(const struct gather *, int threads); /* and scatter: of ids inside the vocabulary (ids.h) */
    int (*scatter)(const struct scatter *, int threads);
    void (*activations)(const float *x, float *sigmoid, float *tanh, size_t n); /* for tests of their accuracy */
};

/* The recurrences, and the products around them, in bfloat16: the products of the processors that have instructions for it. */
struct bf16_backend {
    const char *name;
    int (*supported)(void);
    int (*permitted)(void); /* asks the system for what it gives when asked; NULL where there is nothing to ask for */
    int (*forward)(const struct forward_bf16 *, int threads);
    int (*backward)(const struct backward_bf16 *, int threads);
    int (*weight_grad)(const struct weight_grad_bf16 *, int threads);
    int (*linear)(const struct linear_bf16 *, int threads);
};

/* The best first; the last one runs everywhere. */
extern const struct backend *const backends[];
extern const int backend_count;

/* Those of this architecture, if there are any; the best first. What follows one that is not permitted is supported
   wherever that is. */
extern const struct bf16_backend *const bf16_backends[];
extern const int bf16_backend_count;

#endif
