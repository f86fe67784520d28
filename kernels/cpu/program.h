/* A defined cell's rule as a short program: elementwise instructions on blocks of floats, one block for each value of
   a tile. fastcells/backends/cpu writes them; block.h runs them.

   A program is words of 32 bits: how many registers, constants and instructions it has, the constants as floats, then
   for each instruction its operation, where its result goes, and three operands, of which the last ones may be without
   meaning. Results and operands are numbers of places: first the tensors that a kernel offers, then the registers,
   then the constants. */
#ifndef FASTCELLS_PROGRAM_H
#define FASTCELLS_PROGRAM_H

#include <stddef.h>
#include <stdint.h>

/* OP(name, number of operands, value). The first ones are those of fastcells/defined/graph.py, the others stand for
   several of these. What compares leaves all bits set for true. */
#define OPERATIONS(OP)                                                                                                 \
    OP(copy, 1, a)                                                                                                     \
    OP(add, 2, a + b)                                                                                                  \
    OP(sub, 2, a - b)                                                                                                  \
    OP(mul, 2, a *b)                                                                                                   \
    OP(div, 2, a / b)                                                                                                  \
    OP(neg, 1, -a)                                                                                                     \
    OP(abs, 1, (vec)((ivec)a & 0x7fffffff))                                                                            \
    OP(minimum, 2, where((a < b) | (a != a), a, b))                                                                    \
    OP(maximum, 2, where((a > b) | (a != a), a, b))                                                                    \
    OP(relu, 1, relu(a))                                                                                               \
    OP(where, 3, where((ivec)a, b, c))                                                                                 \
    OP(sigmoid, 1, sigmoid(a))                                                                                         \
    OP(tanh, 1, tanh_of(a))                                                                                            \
    OP(exp, 1, exponential(a))                                                                                              \
    OP(log, 1, log_of(a))                                                                                              \
    OP(log1p, 1, log1p_of(a))                                                                                          \
    OP(softplus, 1, softplus(a))                                                                                       \
    OP(sqrt, 1, sqrt_of(a))                                                                                            \
    OP(lt, 2, (vec)(a < b))                                                                                            \
    OP(le, 2, (vec)(a <= b))                                                                                           \
    OP(gt, 2, (vec)(a > b))                                                                                            \
    OP(ge, 2, (vec)(a >= b))                                                                                           \
    OP(eq, 2, (vec)(a == b))                                                                                           \
    OP(ne, 2, (vec)(a != b))                                                                                           \
    OP(and, 2, (vec)((ivec)a & (ivec)b))                                                                               \
    OP(or, 2, (vec)((ivec)a | (ivec)b))                                                                                \
    OP(not, 1, (vec)(~(ivec)a))                                                                                        \
    OP(sum, 3, a + (b + c))                                                                                            \
    OP(sigmoid_sum, 3, sigmoid(a + (b + c)))                                                                           \
    OP(tanh_sum, 3, tanh_of(a + (b + c)))                                                                              \
    OP(mul_add, 3, a *b + c)                                                                                           \
    OP(mul_sub, 3, a *b - c)                                                                                           \
    OP(sub_mul, 3, a - b * c)                                                                                          \
    OP(mul_less, 3, a *b * (1.0f - c))                                                                                 \
    OP(mul_rest, 3, a *(1.0f - b * c))

#define OPERATION_NUMBER(name, operands, value) OPERATION_##name,
enum operation_number { OPERATIONS(OPERATION_NUMBER) NUM_OPERATIONS };

struct operation {
    const char *name;
    int operands;
};
extern const struct operation operations[NUM_OPERATIONS];

enum { MAX_PLACES = 256, INSTRUCTION_WORDS = 5 };

/* What a program may do with a place. A writable one must be written, and may be read from then on. */
enum access { NO_ACCESS, READABLE, WRITABLE };

struct program {
    size_t places, registers, constants, instructions;
    const int32_t *constant, *code;
};

/* Read a program of `size` words whose first `places` places have this access. Returns 0, or 1 + the position of the
   word that is not valid; `size` for what a program leaves undone. */
size_t read_program(struct program *program, const int32_t *words, size_t size, const unsigned char *access,
                    size_t places);

#endif
