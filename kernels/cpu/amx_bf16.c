/* The recurrences in bfloat16, with AMX's products of matrices, and AVX-512 for all else. */
#include "backends.h"

#if defined(HAS_AMX)
#include <sys/syscall.h>
#include <unistd.h>

#if defined(EMULATED_TILES)
#define PERMITTED 1
#else
/* Linux gives the tiles to the processes that ask for them: they make what it keeps of a thread that waits, or a signal
   interrupts, 8 KB larger. */
#define PERMITTED                                                                                                      \
    (__builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&                                       \
     !syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA))
enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
#endif

/* Ahead of the target: it runs on every machine. */
static int supported(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("fma") && PERMITTED;
}

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,amx-tile,amx-bf16"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,amx-tile,amx-bf16")
#endif

#include <stdint.h>

#define LANES 16
#define REGISTERS 32
#define ROUNDED
#define TILES

#include "backward.h"
#include "forward.h"
#include "linear.h"
#include "weight_grad.h"

const struct bf16_backend backend_amx_bf16 = {"amx_bf16", supported, forward, backward, weight_grad, linear};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
