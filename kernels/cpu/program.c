/* Programs of defined cells are checked here, once a call: block.h believes what it is told. */
#include "program.h"

#include <string.h>

#define ROW(name, operands, value) {#name, operands},
const struct operation operations[NUM_OPERATIONS] = {OPERATIONS(ROW)};

size_t read_program(struct program *program, const int32_t *words, size_t size, const unsigned char *access,
                    size_t places) {
    enum { HEAD = 3 };
    if (!words || size < HEAD || places > MAX_PLACES) return size + 1;
    for (size_t i = 0; i < HEAD; i++) {
        if (words[i] < 0 || (i < 2 ? words[i] > MAX_PLACES : words[i] > (1 << 20))) return i + 1;
    }
    const size_t registers = (size_t)words[0], constants = (size_t)words[1], instructions = (size_t)words[2];
    const size_t all = places + registers + constants, first_constant = places + registers;
    if (all > MAX_PLACES || size != HEAD + constants + instructions * INSTRUCTION_WORDS) return size + 1;
    unsigned char known[MAX_PLACES]; /* whether a place can be read by now */
    for (size_t i = 0; i < all; i++) known[i] = i < places ? access[i] == READABLE : i >= first_constant;
    for (size_t i = 0; i < instructions; i++) {
        const size_t at = HEAD + constants + i * INSTRUCTION_WORDS;
        const int32_t op = words[at], to = words[at + 1];
        if (op < 0 || op >= NUM_OPERATIONS) return at + 1;
        for (size_t k = 0; k < INSTRUCTION_WORDS - 2; k++) {
            const int32_t from = words[at + 2 + k];
            if (from < 0 || (size_t)from >= all || !known[from]) return at + 2 + k + 1;
        }
        if (to < 0 || (size_t)to >= first_constant || ((size_t)to < places && access[to] != WRITABLE)) return at + 2;
        known[to] = 1;
    }
    for (size_t i = 0; i < places; i++) {
        if (access[i] == WRITABLE && !known[i]) return size + 1;
    }
    const int32_t *constant = words + HEAD;
    *program = (struct program){places, registers, constants, instructions, constant, constant + constants};
    return 0;
}
