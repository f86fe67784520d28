/* The recurrences in bfloat16, with AMX's products of matrices, and AVX-512 for all else. */
#include <stdint.h>

#include "backends.h"

#if defined(HAS_AMX)
#include <cpuid.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <unistd.h>

extern const struct bf16_backend backend_avx512_bf16;

/* Ahead of the target: it runs on every machine. */
#if defined(EMULATED_TILES)
static int supported(void) { return backend_avx512_bf16.supported(); }
static int permitted(void) { return 1; }
#else
enum { ARCH_GET_XCOMP_SUPP = 0x1021, ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24 }; /* of leaf 7; compilers have had no names for them for long */

static int find_tiles(void) {
    unsigned a, b, c, d;
    uint64_t features = 0;
    return backend_avx512_bf16.supported() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && d & AMX_BF16 && d & AMX_TILE &&
           !syscall(SYS_arch_prctl, ARCH_GET_XCOMP_SUPP, &features) && features >> XFEATURE_XTILEDATA & 1;
}

/* Linux gives tiles to processes that ask for them: what it keeps of a thread that a signal interrupts becomes 8 KB
   larger, and a stack for signals that has no room for it is refused from then on. So only who calls asks. */
static int ask_for_tiles(void) { return !syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA); }

/* The answer of the first call, which asks. */
static int once(atomic_int *answer, int (*ask)(void)) {
    enum { UNKNOWN, NO, YES };
    int found = atomic_load_explicit(answer, memory_order_relaxed);
    if (found == UNKNOWN) atomic_store_explicit(answer, found = ask() ? YES : NO, memory_order_relaxed);
    return found == YES;
}
static int supported(void) {
    static atomic_int answer;
    return once(&answer, find_tiles);
}
static int permitted(void) {
    static atomic_int answer;
    return once(&answer, ask_for_tiles);
}
#endif

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,amx-tile,amx-bf16"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,amx-tile,amx-bf16")
#endif

#define LANES 16
#define REGISTERS 32
#define ROUNDED
#define TILES

#include "backward.h"
#include "forward.h"
#include "linear.h"
#include "weight_grad.h"

const struct bf16_backend backend_amx_bf16 = {"amx_bf16", supported, permitted, forward, backward, weight_grad, linear};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
