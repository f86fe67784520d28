/* The recurrences in bfloat16, with NEON and its products of pairs. */
#if defined(__aarch64__)
#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

/* Ahead of the target: it runs on every machine. */
static int supported(void) {
#if defined(HWCAP2_BF16)
    return (getauxval(AT_HWCAP2) & HWCAP2_BF16) != 0;
#else
    return 0;
#endif
}

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("bf16"))), apply_to = function)
#else
#pragma GCC optimize("no-schedule-insns") /* as in neon.c */
#pragma GCC target("arch=armv8.2-a+bf16")
#endif

#include <stdint.h>

#define LANES 4
#define REGISTERS 32
#define BY_ELEMENT
#define ROUNDED

#include "backends.h"
#include "backward.h"
#include "forward.h"
#include "linear.h"
#include "weight_grad.h"

const struct bf16_backend backend_neon_bf16 = {"neon_bf16", supported, NULL, forward, backward, weight_grad, linear};

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
