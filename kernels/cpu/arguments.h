/* The arguments of each kernel: the only list of them. It makes the kernel's struct below, the function that reads them
   from Python (module.c), and the table from which fastcells/backends/cpu checks and allocates tensors and declares its
   operators for torch.library (`_cpu.arguments()`).

       NUMBER(type, name)             a number
       READ(type, name, shape, when)  a tensor that the kernel reads
       WRITE(name, shape, when)       a tensor of elements that it writes, for the caller
       KEEP(name, shape, when)        a tensor of elements that it writes, for the backward or another kernel

   An element is a float; in the structs whose names end in bf16, a bfloat16.

   Shapes: T time, B batch, H hidden, G gates, S values that a cell saves of each step. All tensors are contiguous and
   need no alignment beyond that of an element.

   `when` names what a tensor depends on; without all of that it is NULL. "optional": the caller may leave it out;
   "two_states", "has_saved", "other_gradient": facts of the cell; "save": a backward follows; "apart": one follows, or
   rows have lengths. */
#ifndef FASTCELLS_ARGUMENTS_H
#define FASTCELLS_ARGUMENTS_H

#include <stddef.h>
#include <stdint.h>

#include "cell_facts.h"

/* ---- the recurrence of one layer and one direction ---- */

#define SIZES(NUMBER)                                                                                                  \
    NUMBER(enum cell, cell)                                                                                            \
    NUMBER(size_t, T)                                                                                                  \
    NUMBER(size_t, B)                                                                                                  \
    NUMBER(size_t, H)                                                                                                  \
    NUMBER(int, reverse) /* whether time is walked from T-1 to 0 */

/* What changes single steps, in the forward and in the backward. */
#define STEP_OPTIONS(READ)                                                                                             \
    READ(int64_t, lengths, "B", "optional")  /* from step lengths[b] on the state of row b stands still */             \
    READ(uint8_t, resets, "T B", "optional") /* not 0 where a step starts from zeros, within its row's length */

#define FORWARD_ARGUMENTS(NUMBER, READ, WRITE, KEEP)                                                                   \
    SIZES(NUMBER)                                                                                                      \
    READ(element, x, "T B G*H", "") /* input projection, W_ih's bias included */                                       \
    READ(element, h0, "B H", "")                                                                                       \
    READ(element, c0, "B H", "two_states")                                                                             \
    READ(element, w, "G*H H", "")                                                                                      \
    READ(element, b, "G*H", "optional")                                                                                \
    STEP_OPTIONS(READ)                                                                                                 \
    WRITE(out, "T B H", "")               /* h after each step, 0 past a row's length */                               \
    KEEP(hidden, "T B H", "apart")        /* h after each step; where NULL, `out` serves */                            \
    KEEP(cells, "T B H", "save two_states") /* c after each step */                                                    \
    KEEP(saved, "T B S H", "save has_saved") /* in the order of fastcells/spec */                                      \
    WRITE(h_n, "B H", "")                                                                                              \
    WRITE(c_n, "B H", "two_states")

#define BACKWARD_ARGUMENTS(NUMBER, READ, WRITE, KEEP)                                                                  \
    SIZES(NUMBER)                                                                                                      \
    READ(element, d_hidden, "T B H", "") /* not read past a row's length */                                            \
    READ(element, d_h_n, "B H", "")                                                                                    \
    READ(element, d_c_n, "B H", "two_states")                                                                          \
    READ(element, h0, "B H", "")                                                                                       \
    READ(element, c0, "B H", "two_states")                                                                             \
    READ(element, w, "G*H H", "")                                                                                      \
    STEP_OPTIONS(READ)                                                                                                 \
    READ(element, hidden, "T B H", "") /* this and the next two: as the forward left them */                           \
    READ(element, cells, "T B H", "two_states")                                                                        \
    READ(element, saved, "T B S H", "has_saved")                                                                       \
    KEEP(d_x, "T B G*H", "")                                                                                           \
    KEEP(d_gates, "T B G*H", "other_gradient") /* of h W^T + b; d_x serves where NULL */                               \
    WRITE(d_h0, "B H", "")                                                                                             \
    WRITE(d_c0, "B H", "two_states")

/* ---- products ---- */

/* The gradients of a weight matrix and of the bias beside it: sums over the tokens of d^T x and of d. */
#define WEIGHT_GRAD_ARGUMENTS(NUMBER, READ, WRITE, KEEP)                                                               \
    NUMBER(size_t, tokens)                                                                                             \
    NUMBER(size_t, rows)                                                                                               \
    NUMBER(size_t, columns)                                                                                            \
    NUMBER(size_t, d_stride)      /* from a row of d to the next */                                                    \
    NUMBER(size_t, split)         /* x is in two parts; the rows of the first */                                       \
    READ(float, d, "N rows", "")  /* gradient of the product's result */                                               \
    READ(float, x, "split columns", "")                                                                                \
    READ(float, x_rest, "N-split columns", "optional")                                                                 \
    WRITE(d_w, "rows columns", "")                                                                                     \
    WRITE(d_b, "rows", "")

/* out = x W^T + b: a linear layer, or the gradient of its input. */
#define LINEAR_ARGUMENTS(NUMBER, READ, WRITE, KEEP)                                                                    \
    NUMBER(size_t, rows)                                                                                               \
    NUMBER(size_t, K)                                                                                                  \
    NUMBER(size_t, columns)                                                                                            \
    NUMBER(size_t, x_stride) /* from a row of x to the next */                                                         \
    NUMBER(int, transposed)  /* whether w is [K, columns] */                                                           \
    READ(float, x, "rows K", "")                                                                                       \
    READ(float, w, "columns K", "")                                                                                    \
    READ(float, b, "columns", "optional")                                                                              \
    WRITE(out, "rows columns", "")

/* out = w x + b */
#define MATVEC_ARGUMENTS(NUMBER, READ, WRITE, KEEP)                                                                    \
    NUMBER(size_t, rows)                                                                                               \
    NUMBER(size_t, columns)                                                                                            \
    READ(float, w, "rows columns", "")                                                                                 \
    READ(float, x, "columns", "")                                                                                      \
    READ(float, b, "rows", "optional")                                                                                 \
    WRITE(out, "rows", "")

/* One step of one sequence, in place. */
#define STEP_IN_PLACE_ARGUMENTS(NUMBER, READ, WRITE, KEEP)                                                             \
    NUMBER(enum cell, cell)                                                                                            \
    NUMBER(size_t, H)                                                                                                  \
    NUMBER(size_t, I)                                                                                                  \
    NUMBER(size_t, id) /* a token id below I; I where x is dense */                                                    \
    READ(float, x, "I", "optional")                                                                                    \
    READ(float, w_ih, "G*H I", "")                                                                                     \
    READ(float, w_hh, "G*H H", "")                                                                                     \
    READ(float, b_ih, "G*H", "optional")                                                                               \
    READ(float, b_hh, "G*H", "optional")                                                                               \
    WRITE(h, "H", "") /* read, too, and so is c */                                                                     \
    WRITE(c, "H", "two_states")

/* ---- token ids (ids.h) ---- */

#define IDS_SIZES(NUMBER, READ)                                                                                        \
    NUMBER(size_t, tokens)                                                                                             \
    NUMBER(size_t, rows)                                                                                               \
    NUMBER(size_t, vocabulary)                                                                                         \
    READ(int64_t, ids, "tokens", "")

#define GATHER_ARGUMENTS(NUMBER, READ, WRITE, KEEP)                                                                    \
    IDS_SIZES(NUMBER, READ)                                                                                            \
    READ(float, w, "rows vocabulary", "")                                                                              \
    READ(float, b, "rows", "optional")                                                                                 \
    KEEP(out, "tokens rows", "")

#define SCATTER_ARGUMENTS(NUMBER, READ, WRITE, KEEP)                                                                   \
    IDS_SIZES(NUMBER, READ)                                                                                            \
    READ(float, d, "tokens rows", "")                                                                                  \
    WRITE(d_w, "rows vocabulary", "")                                                                                  \
    WRITE(d_b, "rows", "")

/* ---- the structs ---- */

#define NUMBER_FIELD(type, name) type name;
#define READ_FIELD(type, name, shape, when) const type *name;
#define WRITE_FIELD(name, shape, when) element *name;
#define FIELDS(ARGUMENTS) ARGUMENTS(NUMBER_FIELD, READ_FIELD, WRITE_FIELD, WRITE_FIELD)

typedef uint16_t bfloat16; /* its bits */

#define element float
struct forward { FIELDS(FORWARD_ARGUMENTS) };
struct backward { FIELDS(BACKWARD_ARGUMENTS) };
struct weight_grad { FIELDS(WEIGHT_GRAD_ARGUMENTS) };
struct linear { FIELDS(LINEAR_ARGUMENTS) };
struct matvec { FIELDS(MATVEC_ARGUMENTS) };
struct step_in_place { FIELDS(STEP_IN_PLACE_ARGUMENTS) };
struct gather { FIELDS(GATHER_ARGUMENTS) };
struct scatter { FIELDS(SCATTER_ARGUMENTS) };
#undef element

#define element bfloat16
struct forward_bf16 { FIELDS(FORWARD_ARGUMENTS) };
struct backward_bf16 { FIELDS(BACKWARD_ARGUMENTS) };
#undef element

#endif
