/* The recurrences with AVX2 and FMA. */
#if defined(__x86_64__)
/* Ahead of the target: it runs on every machine. */
static int supported(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#include <stdint.h>

#define LANES 8
#define REGISTERS 16
#define BACKEND avx2

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
