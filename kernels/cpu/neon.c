/* The recurrences with NEON: but for the products, what compilers make of the portable code. */
#if defined(__aarch64__)
static int supported(void) { return 1; } /* no processor of this architecture is without */

#if !defined(__clang__)
/* Loads that are moved ahead of the products take the registers of their sums. */
#pragma GCC optimize("no-schedule-insns")
#endif

#include <stdint.h>

#define LANES 4
#define REGISTERS 32
#define BY_ELEMENT
#define BACKEND neon

#include "kernels.h"
#endif
