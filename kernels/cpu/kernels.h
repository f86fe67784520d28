/* All kernels with one set of vector instructions. Included once for each, after LANES (floats in a vector), REGISTERS
   (how many vectors fit the register file), BACKEND (its name) and supported() are defined. */
#ifndef FASTCELLS_KERNELS_H
#define FASTCELLS_KERNELS_H

#include "backends.h"
#include "backward.h"
#include "cross_entropy.h"
#include "defined_backward.h"
#include "defined_forward.h"
#include "forward.h"
#include "gather.h"
#include "layer.h"
#include "linear.h"
#include "linear_cross_entropy.h"
#include "step_in_place.h"
#include "weight_grad.h"

static void activations(const float *x, float *s, float *t, size_t n) {
    for (size_t i = 0; i < n; i += LANES) {
        const size_t lanes = lanes_at(n, i);
        vec v = load_n(x + i, lanes);
        store_n(s + i, sigmoid(v), lanes);
        store_n(t + i, tanh_of(v), lanes);
    }
}

#define TEXT_OF(name) #name
#define TEXT(name) TEXT_OF(name)
#define STRUCT_OF(name) backend_##name
#define STRUCT(name) STRUCT_OF(name)
const struct backend STRUCT(BACKEND) = {TEXT(BACKEND),    supported,   forward, backward,      layer,         layer_panels,
                                        defined_forward,  defined_backward, weight_grad, linear, cross_entropy,
                                        linear_cross_entropy, step_in_place, matvec, gather, scatter, activations};

#endif
