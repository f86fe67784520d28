#include "backends.h"

extern const struct backend backend_portable;
#if defined(__x86_64__)
extern const struct backend backend_avx512, backend_avx2;
#endif

const struct backend *const backends[] = {
#if defined(__x86_64__)
    &backend_avx512,
    &backend_avx2,
#endif
    &backend_portable,
};
const int backend_count = sizeof backends / sizeof *backends;
