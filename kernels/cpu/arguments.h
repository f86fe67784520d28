/* The arguments of each kernel: the only list of them. It makes the kernel's struct below, the function that reads them
   from Python (module.c), and the table from which fastcells/backends/cpu checks and allocates tensors and declares its
   operators for torch.library (`_cpu.arguments()`).

       NUMBER(type, name)             a number
       READ(type, name, shape, when)  a tensor that the kernel reads
       WRITE(name, shape, when)       a tensor of elements that it writes, for the caller
       KEEP(name, shape, when)        a tensor of elements that it writes, for the backward or another kernel

   An element is a float; in the structs whose names end in bf16, a bfloat16.

   Shapes: T time, B batch, H hidden, G gates, A `apart_gates` of cell_facts.h, S values that a cell saves of each step.
   N, E, P: see below. All tensors are contiguous and need no alignment beyond that of an element.

   `when` names what a tensor depends on; without all of that it is NULL. "optional": the caller may leave it out;
   "two_states", "has_saved" and the like: facts of the cell; "save": a backward follows; "apart": one follows, or rows
   have lengths. */
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
    KEEP(d_gates, "T B A*H", "apart_gates") /* of h W^T + b, the last gates; d_x has those of the others */            \
    WRITE(d_h0, "B H", "")                                                                                             \
    WRITE(d_c0, "B H", "two_states")

/* One layer and direction, the input projection included, without a backward. */
#define LAYER_ARGUMENTS(NUMBER, READ, WRITE, KEEP)                                                                     \
    SIZES(NUMBER)                                                                                                      \
    NUMBER(size_t, I)                                                                                                  \
    NUMBER(int, packed)      /* whether the weights are packed, and not read where they lie */                         \
    NUMBER(int, kept)        /* whether a call before has left them in `panels`: neither w_ih nor w is read then */    \
    NUMBER(size_t, vectors)  /* of columns in a tile of `panels`, and their size: layer_panels() */                    \
    NUMBER(size_t, chunk)    /* steps whose input projection is made at a time, where packed */                        \
    NUMBER(size_t, x_time)   /* from a step of x to the next */                                                        \
    NUMBER(size_t, x_row)    /* from a row of a step to the next */                                                    \
    NUMBER(size_t, out_time) /* and so for out */                                                                      \
    NUMBER(size_t, out_row)                                                                                            \
    READ(float, x, "T B I", "")                                                                                        \
    READ(float, h0, "B H", "optional") /* where NULL, the first step starts from zeros */                              \
    READ(float, c0, "B H", "optional two_states") /* zeros where NULL; not read without h0 */                          \
    READ(float, w_ih, "G*H I", "")                                                                                     \
    READ(float, w, "G*H H", "")                                                                                        \
    READ(float, b_ih, "G*H", "optional")                                                                               \
    READ(float, b, "G*H", "optional")                                                                                  \
    WRITE(out, "T B H", "")                                                                                            \
    WRITE(h_n, "B H", "optional")                                                                                      \
    WRITE(c_n, "B H", "two_states")                                                                                    \
    KEEP(x_proj, "T B G*H", "optional") /* memory for the input projection, of a chunk where packed; or NULL */        \
    KEEP(panels, "P", "optional")       /* and for the packed weights */

/* ---- the recurrence of a defined cell, whose rule is a program (program.h) ---- */

#define DEFINED_SIZES(NUMBER, READ)                                                                                        \
    NUMBER(size_t, T)                                                                                                  \
    NUMBER(size_t, B)                                                                                                  \
    NUMBER(size_t, H)                                                                                                  \
    NUMBER(int, reverse)                                                                                               \
    NUMBER(size_t, heads)        /* blocks of W_hh, each of D = H / heads units; 1 where it is full */                 \
    NUMBER(size_t, gates)        /* G */                                                                               \
    NUMBER(size_t, first_gates)  /* that multiply h by W_hh; 0 where the program has the whole product */              \
    NUMBER(size_t, second_gates) /* that multiply the operand which the first program makes */                         \
    NUMBER(size_t, states)       /* N */                                                                               \
    NUMBER(size_t, num_saved)    /* S */                                                                               \
    NUMBER(size_t, parameters)   /* E, of [H] each */                                                                  \
    NUMBER(size_t, carried)      /* values that the first of two programs leaves for the second */                     \
    NUMBER(size_t, program_size) /* in words */                                                                        \
    NUMBER(size_t, second_size)                                                                                        \
    READ(int32_t, program, "P", "")                                                                                    \
    READ(int32_t, second_program, "P2", "second_product")

#define DEFINED_FORWARD_ARGUMENTS(NUMBER, READ, WRITE, KEEP)                                                           \
    DEFINED_SIZES(NUMBER, READ)                                                                                        \
    READ(float, x, "T B G*H", "")                                                                                      \
    READ(float, state, "N B H", "") /* the initial one */                                                              \
    READ(float, w, "heads G*D D", "has_product")                                                                       \
    READ(float, b, "G*H", "optional")                                                                                  \
    READ(float, extra, "E H", "has_extra")                                                                             \
    STEP_OPTIONS(READ)                                                                                                 \
    WRITE(out, "T B H", "")                                                                                            \
    KEEP(hidden, "T B H", "apart")                                                                                     \
    KEEP(others, "N-1 T B H", "save other_states") /* the states but h, after each step */                             \
    KEEP(saved, "T B S H", "save has_saved")                                                                           \
    WRITE(last, "N B H", "")

#define DEFINED_BACKWARD_ARGUMENTS(NUMBER, READ, WRITE, KEEP)                                                          \
    DEFINED_SIZES(NUMBER, READ)                                                                                        \
    READ(float, d_hidden, "T B H", "") /* not read past a row's length */                                              \
    READ(float, d_last, "N B H", "")                                                                                   \
    READ(float, state, "N B H", "")                                                                                    \
    READ(float, w, "heads G*D D", "has_product")                                                                       \
    READ(float, extra, "E H", "has_extra")                                                                             \
    STEP_OPTIONS(READ)                                                                                                 \
    READ(float, hidden, "T B H", "") /* this and the next two: as the forward left them */                             \
    READ(float, others, "N-1 T B H", "other_states")                                                                   \
    READ(float, saved, "T B S H", "has_saved")                                                                         \
    KEEP(d_x, "T B G*H", "")                                                                                           \
    KEEP(d_gates, "T B G*H", "other_gradient") /* of h W^T + b; d_x serves where NULL */                               \
    WRITE(d_state, "N B H", "")                                                                                        \
    WRITE(d_extra, "E H", "has_extra")                                                                                 \
    KEEP(operand, "T B H", "second_product") /* what the second product multiplies */

/* ---- products ---- */

/* The gradients of a weight matrix and of the bias beside it: sums over the tokens of d^T x and of d. */
#define WEIGHT_GRAD_ARGUMENTS(NUMBER, READ, WRITE, KEEP)                                                               \
    NUMBER(size_t, tokens)                                                                                             \
    NUMBER(size_t, rows)                                                                                               \
    NUMBER(size_t, columns)                                                                                            \
    NUMBER(size_t, d_stride)      /* from a row of d to the next */                                                    \
    NUMBER(size_t, rest_stride)   /* and so for d_rest */                                                              \
    NUMBER(size_t, rest_rows)     /* of d_w, the last ones, for which d_rest serves in the place of d */               \
    NUMBER(size_t, split)         /* x is in two parts; the rows of the first */                                       \
    NUMBER(int, accumulate)       /* whether to add to what d_w and d_b hold */                                        \
    READ(element, d, "N rows-R", "") /* gradient of the product's result */                                            \
    READ(element, d_rest, "N R", "optional")                                                                           \
    READ(element, x, "split columns", "")                                                                              \
    READ(element, x_rest, "N-split columns", "optional")                                                               \
    WRITE(d_w, "rows columns", "")                                                                                     \
    WRITE(d_b, "rows", "")

/* out = x W^T + b: a linear layer, or the gradient of its input. */
#define LINEAR_ARGUMENTS(NUMBER, READ, WRITE, KEEP)                                                                    \
    NUMBER(size_t, rows)                                                                                               \
    NUMBER(size_t, K)                                                                                                  \
    NUMBER(size_t, columns)                                                                                            \
    NUMBER(size_t, x_stride) /* from a row of x to the next, and so for out */                                         \
    NUMBER(size_t, out_stride)                                                                                         \
    NUMBER(int, transposed)  /* whether w is [K, columns] */                                                           \
    NUMBER(int, accumulate)  /* whether to add to what out holds; there is no b then */                                \
    READ(element, x, "rows K", "")                                                                                     \
    READ(element, w, "columns K", "")                                                                                  \
    READ(element, b, "columns", "optional")                                                                            \
    WRITE(out, "rows columns", "")

/* Cross-entropy of rows of scores, and its gradient, which takes their place. */
#define CROSS_ENTROPY_ARGUMENTS(NUMBER, READ, WRITE, KEEP)                                                             \
    NUMBER(size_t, rows)                                                                                               \
    NUMBER(size_t, columns)                                                                                            \
    NUMBER(size_t, x_stride)                /* from a row of x to the next */                                          \
    NUMBER(int64_t, ignored)                /* the target of a row that does not count */                              \
    NUMBER(int, gradient)                   /* whether it is asked for */                                              \
    READ(int64_t, targets, "rows", "")      /* columns, but for those of rows that do not count */                     \
    READ(float, smoothing, "2", "")         /* what the target gets, and what every column gets: columns times, 1 */   \
    READ(float, d_loss, "rows", "optional") /* 1 where NULL */                                                         \
    WRITE(x, "rows columns", "")            /* the scores before */                                                    \
    WRITE(loss, "rows", "")

/* Cross-entropy of a linear layer's scores, x W^T + b, and the gradients of the losses' sum, as far as they are wanted. */
#define LINEAR_CROSS_ENTROPY_ARGUMENTS(NUMBER, READ, WRITE, KEEP)                                                      \
    NUMBER(size_t, rows)                                                                                               \
    NUMBER(size_t, K)                                                                                                  \
    NUMBER(size_t, columns)                                                                                            \
    NUMBER(int64_t, ignored)                                                                                           \
    NUMBER(int, mean)                       /* of the rows that count, instead of the sum */                           \
    READ(float, x, "rows K", "")                                                                                       \
    READ(float, w, "columns K", "")                                                                                    \
    READ(float, b, "columns", "optional")                                                                              \
    READ(int64_t, targets, "rows", "")                                                                                 \
    READ(float, smoothing, "2", "")                                                                                    \
    READ(float, d_loss, "rows", "optional") /* without a mean */                                                       \
    WRITE(loss, "rows", "")                                                                                            \
    WRITE(sum, "", "")                      /* or the mean, NaN where no row counts */                                 \
    WRITE(d_x, "rows K", "optional")                                                                                   \
    WRITE(d_w, "columns K", "optional")     /* and d_b; both or none */                                                \
    WRITE(d_b, "columns", "optional")

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
struct layer { FIELDS(LAYER_ARGUMENTS) };
struct defined_forward { FIELDS(DEFINED_FORWARD_ARGUMENTS) };
struct defined_backward { FIELDS(DEFINED_BACKWARD_ARGUMENTS) };
struct weight_grad { FIELDS(WEIGHT_GRAD_ARGUMENTS) };
struct linear { FIELDS(LINEAR_ARGUMENTS) };
struct cross_entropy { FIELDS(CROSS_ENTROPY_ARGUMENTS) };
struct linear_cross_entropy { FIELDS(LINEAR_CROSS_ENTROPY_ARGUMENTS) };
struct matvec { FIELDS(MATVEC_ARGUMENTS) };
struct step_in_place { FIELDS(STEP_IN_PLACE_ARGUMENTS) };
struct gather { FIELDS(GATHER_ARGUMENTS) };
struct scatter { FIELDS(SCATTER_ARGUMENTS) };
#undef element

#define element bfloat16
struct forward_bf16 { FIELDS(FORWARD_ARGUMENTS) };
struct backward_bf16 { FIELDS(BACKWARD_ARGUMENTS) };
struct weight_grad_bf16 { FIELDS(WEIGHT_GRAD_ARGUMENTS) };
struct linear_bf16 { FIELDS(LINEAR_ARGUMENTS) };
#undef element

#endif
