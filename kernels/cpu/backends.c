#include "backends.h"

extern const struct backend backend_portable;
#if defined(__x86_64__)
extern const struct backend backend_avx512, backend_avx2;
extern const struct bf16_backend backend_amx_bf16, backend_avx512_bf16;
#elif defined(__aarch64__)
extern const struct backend backend_neon;
extern const struct bf16_backend backend_neon_bf16;
#endif

const struct backend *const backends[] = {
#if defined(__x86_64__)
    &backend_avx512,
    &backend_avx2,
#elif defined(__aarch64__)
    &backend_neon,
#endif
    &backend_portable,
};
const int backend_count = sizeof backends / sizeof *backends;

const struct bf16_backend *const bf16_backends[] = {
#if defined(__x86_64__)
#if defined(HAS_AMX)
    &backend_amx_bf16,
#endif
    &backend_avx512_bf16,
#elif defined(__aarch64__)
    &backend_neon_bf16,
#endif
    NULL,
};
const int bf16_backend_count = sizeof bf16_backends / sizeof *bf16_backends - 1;
