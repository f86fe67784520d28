/* The recurrences in bfloat16, with AVX-512 and its products of pairs. */
#if defined(__x86_64__)
/* Ahead of the target: it runs on every machine. */
static int supported(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("fma");
}

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")
#endif

#include <stdint.h>

#define LANES 16
#define REGISTERS 32
#define ROUNDED

#include "backends.h"
#include "backward.h"
#include "forward.h"
#include "linear.h"
#include "weight_grad.h"

const struct bf16_backend backend_avx512_bf16 = {"avx512_bf16", supported, NULL, forward, backward, weight_grad, linear};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
