/* The recurrences with what every compiler has: vectors of 128 bits, which become NEON or SSE2. */
#include <stdint.h>

#define LANES 4
#if defined(__aarch64__)
#define REGISTERS 32
#else
#define REGISTERS 16
#endif
#define BACKEND portable

static int supported(void) { return 1; }

#include "kernels.h"
