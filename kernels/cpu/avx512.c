/* The recurrences with AVX-512. */
#if defined(__x86_64__)
/* Ahead of the target: it runs on every machine. */
static int supported(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512vl,fma")
#endif

#include <stdint.h>

#define LANES 16
#define REGISTERS 32
#define BACKEND avx512
#define POWERS /* of 2, see vector.h */

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
