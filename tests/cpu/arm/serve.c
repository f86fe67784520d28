/* The C kernels for another process: calls come by standard input, results go by standard output. tests/support/arm.py
   is the other side, which has torch and the tests; this one is compiled for ARM.

   serve INSTRUCTIONS

   A call: the kernel's name in 24 bytes, the number of threads, then the arguments in the order of arguments.h. A
   number has 8 bytes; a tensor its size in bytes, 0 for NULL, and its bytes. The answer: the status, and the bytes of
   each tensor that the kernel writes. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backends.h"
#include "ids.h"
#include "team.h"

enum { NAME = 24, MOST_TENSORS = 32 };

/* What the call at hand has sent. */
static struct {
    void *at;
    size_t size;
    int written;
} tensors[MOST_TENSORS];
static size_t count;

static void take(void *to, size_t size) {
    if (size && fread(to, size, 1, stdin) != 1) exit(2);
}

static uint64_t take_number(void) {
    uint64_t number;
    take(&number, sizeof number);
    return number;
}

static void *take_tensor(int written) {
    const size_t size = take_number();
    if (!size) return NULL;
    void *memory = malloc(size);
    if (!memory || count == MOST_TENSORS) exit(3);
    take(memory, size);
    tensors[count].at = memory, tensors[count].size = size, tensors[count++].written = written;
    return memory;
}

static void answer(int64_t status) {
    fwrite(&status, sizeof status, 1, stdout);
    for (size_t i = 0; i < count; i++) {
        if (tensors[i].written) fwrite(tensors[i].at, tensors[i].size, 1, stdout);
        free(tensors[i].at);
    }
    count = 0;
    fflush(stdout);
}

#define TAKE_NUMBER(type, name) task.name = (type)take_number();
#define TAKE_READ(type, name, shape, when) task.name = take_tensor(0);
#define TAKE_WRITTEN(name, shape, when) task.name = take_tensor(1);
#define TAKE(ARGUMENTS) ARGUMENTS(TAKE_NUMBER, TAKE_READ, TAKE_WRITTEN, TAKE_WRITTEN)

#define SERVE(NAME, ARGUMENTS)                                                                                         \
    if (!strcmp(name, #NAME)) {                                                                                        \
        struct NAME task;                                                                                              \
        TAKE(ARGUMENTS)                                                                                                \
        answer(backend->NAME(&task, threads));                                                                         \
        continue;                                                                                                      \
    }
#define SERVE_BF16(NAME, ARGUMENTS)                                                                                    \
    if (!strcmp(name, #NAME "_bf16") && bf16_backend_count && bf16_backends[0]->supported()) {                          \
        struct NAME##_bf16 task;                                                                                       \
        TAKE(ARGUMENTS)                                                                                                \
        answer(bf16_backends[0]->NAME(&task, threads));                                                                \
        continue;                                                                                                      \
    }
#define SERVE_IDS(NAME, ARGUMENTS, IDS, COUNT, VOCABULARY, BESIDES)                                                    \
    if (!strcmp(name, #NAME)) {                                                                                        \
        struct NAME task;                                                                                              \
        TAKE(ARGUMENTS)                                                                                                \
        const size_t outside = ids_outside(IDS, COUNT, VOCABULARY, BESIDES);                                           \
        if (outside == COUNT && backend->NAME(&task, threads)) return 6;                                               \
        answer((int64_t)outside);                                                                                      \
        continue;                                                                                                      \
    }

int main(int arguments, char **argument) {
    const struct backend *backend = NULL;
    for (int i = 0; i < backend_count && arguments > 1; i++)
        if (!strcmp(backends[i]->name, argument[1]) && backends[i]->supported()) backend = backends[i];
    if (!backend) return 4;
    team_init();
    char name[NAME];
    while (fread(name, sizeof name, 1, stdin) == 1) {
        const int threads = (int)take_number();
        SERVE(forward, FORWARD_ARGUMENTS)
        SERVE(backward, BACKWARD_ARGUMENTS)
        SERVE(layer, LAYER_ARGUMENTS)
        SERVE(defined_forward, DEFINED_FORWARD_ARGUMENTS)
        SERVE(defined_backward, DEFINED_BACKWARD_ARGUMENTS)
        SERVE(weight_grad, WEIGHT_GRAD_ARGUMENTS)
        SERVE(linear, LINEAR_ARGUMENTS)
        SERVE(cross_entropy, CROSS_ENTROPY_ARGUMENTS)
        SERVE(matvec, MATVEC_ARGUMENTS)
        SERVE(step_in_place, STEP_IN_PLACE_ARGUMENTS)
        SERVE_BF16(forward, FORWARD_ARGUMENTS)
        SERVE_BF16(backward, BACKWARD_ARGUMENTS)
        SERVE_BF16(weight_grad, WEIGHT_GRAD_ARGUMENTS)
        SERVE_BF16(linear, LINEAR_ARGUMENTS)
        SERVE_IDS(gather, GATHER_ARGUMENTS, task.ids, task.tokens, task.vocabulary, NULL)
        SERVE_IDS(scatter, SCATTER_ARGUMENTS, task.ids, task.tokens, task.vocabulary, NULL)
        SERVE_IDS(linear_cross_entropy, LINEAR_CROSS_ENTROPY_ARGUMENTS, task.targets, task.rows, task.columns, &task.ignored)
        if (strcmp(name, "activations")) return 5;
        const float *x = take_tensor(0);
        float *sigmoid = take_tensor(1), *tanh = take_tensor(1);
        backend->activations(x, sigmoid, tanh, take_number());
        answer(0);
    }
    return 0;
}
