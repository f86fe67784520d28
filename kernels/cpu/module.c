/* The Python module fastcells.kernels._cpu. It takes addresses as integers; fastcells/backends/cpu has checked the
   tensors behind them. What a kernel takes stands in arguments.h. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>

#include "backends.h"
#include "ids.h"
#include "program.h"
#include "team.h"
#include "tensors.h"

/* An argument of a kernel, for Python. */
struct argument {
    const char *name;
    const char *kind;  /* "number", "read", "write" or "keep" */
    const char *type;  /* C's, or "element" */
    const char *shape; /* of a tensor */
    const char *when;
};

#define NUMBER_ROW(type, name) {#name, "number", #type, "", ""},
#define READ_ROW(type, name, shape, when) {#name, "read", #type, shape, when},
#define WRITE_ROW(name, shape, when) {#name, "write", "element", shape, when},
#define KEEP_ROW(name, shape, when) {#name, "keep", "element", shape, when},
#define TABLE(name, ARGUMENTS)                                                                                         \
    static const struct argument name##_arguments[] = {ARGUMENTS(NUMBER_ROW, READ_ROW, WRITE_ROW, KEEP_ROW){NULL}}
TABLE(forward, FORWARD_ARGUMENTS);
TABLE(backward, BACKWARD_ARGUMENTS);
TABLE(layer, LAYER_ARGUMENTS);
TABLE(defined_forward, DEFINED_FORWARD_ARGUMENTS);
TABLE(defined_backward, DEFINED_BACKWARD_ARGUMENTS);
TABLE(weight_grad, WEIGHT_GRAD_ARGUMENTS);
TABLE(linear, LINEAR_ARGUMENTS);
TABLE(cross_entropy, CROSS_ENTROPY_ARGUMENTS);
TABLE(linear_cross_entropy, LINEAR_CROSS_ENTROPY_ARGUMENTS);
TABLE(matvec, MATVEC_ARGUMENTS);
TABLE(step_in_place, STEP_IN_PLACE_ARGUMENTS);
TABLE(gather, GATHER_ARGUMENTS);
TABLE(scatter, SCATTER_ARGUMENTS);

/* The next argument, as a number or as an address. An error is left for the caller to see. */
static size_t number(PyObject *const **args) { return PyLong_AsSize_t(*(*args)++); }
static void *address(PyObject *const **args) { return PyLong_AsVoidPtr(*(*args)++); }

#define READ_NUMBER(type, name) task.name = (type)number(&args);
#define READ_ADDRESS(type, name, shape, when) task.name = address(&args);
#define READ_OUTPUT(name, shape, when) task.name = address(&args);

/* Is there every argument, in its place, and with its name where one is given? `positional` may come without. */
static int complete(const struct argument *arguments, Py_ssize_t positional, PyObject *names) {
    const Py_ssize_t named = names ? PyTuple_Size(names) : 0;
    Py_ssize_t count = 0;
    for (; arguments[count].name; count++) {
        if (count < positional || count >= positional + named) continue;
        PyObject *name = PyTuple_GetItem(names, count - positional);
        if (!name || PyUnicode_CompareWithASCIIString(name, arguments[count].name) == 0) continue;
        PyErr_Format(PyExc_TypeError, "argument %zd is %s, got %S", count, arguments[count].name, name);
        return 0;
    }
    if (positional + named == count) return 1;
    PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", count, positional + named);
    return 0;
}

/* What would run past the end of a table: the backend, the cell, and the number of threads. */
#define BACKEND_AT(FUNCTION, NAME, KIND)                                                                               \
    static const struct NAME *FUNCTION(size_t index, size_t cell, size_t threads) {                                   \
        if (PyErr_Occurred()) return NULL;                                                                             \
        if (index < (size_t)NAME##_count && NAME##s[index]->supported() && cell < NUM_CELLS && threads >= 1 &&         \
            threads <= 4096)                                                                                           \
            return NAME##s[index];                                                                                     \
        PyErr_Format(PyExc_ValueError, "no backend %zu" KIND " on this machine, no cell %zu, or not %zu threads",      \
                     index, cell, threads);                                                                            \
        return NULL;                                                                                                   \
    }
BACKEND_AT(backend_at, backend, "")
BACKEND_AT(supported_bf16_backend, bf16_backend, " for bfloat16")

static const struct bf16_backend *bf16_backend_at(size_t index, size_t cell, size_t threads) {
    const struct bf16_backend *chosen = supported_bf16_backend(index, cell, threads);
    return chosen && chosen->permitted && !chosen->permitted() ? bf16_backends[index + 1] : chosen;
}

/* py_NAME(backend, threads, the kernel's arguments, which may be named): KERNEL of TYPE, with the arguments of the
   kernel TABLE. CELL: of its task. */
#define KERNEL(NAME, TABLE, TYPE, KERNEL, ARGUMENTS, CELL)                                                             \
    static PyObject *py_##NAME(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names) {             \
        (void)self;                                                                                                    \
        struct NAME task;                                                                                              \
        if (!complete(TABLE##_arguments, count - 2, names)) return NULL;                                               \
        const size_t backend = number(&args), threads = number(&args);                                                 \
        ARGUMENTS(READ_NUMBER, READ_ADDRESS, READ_OUTPUT, READ_OUTPUT)                                                 \
        const struct TYPE *chosen = TYPE##_at(backend, CELL, threads);                                                 \
        if (!chosen) return NULL;                                                                                      \
        int status;                                                                                                    \
        Py_BEGIN_ALLOW_THREADS;                                                                                        \
        status = chosen->KERNEL(&task, (int)threads);                                                                  \
        Py_END_ALLOW_THREADS;                                                                                          \
        if (status > 0) return PyErr_Format(PyExc_ValueError, "word %d of the program is not valid", status - 1);      \
        if (status) return PyErr_NoMemory();                                                                           \
        Py_RETURN_NONE;                                                                                                \
    }
#define FLOAT_KERNEL(NAME, ARGUMENTS, CELL) KERNEL(NAME, NAME, backend, NAME, ARGUMENTS, CELL)
FLOAT_KERNEL(forward, FORWARD_ARGUMENTS, (size_t)task.cell)
FLOAT_KERNEL(backward, BACKWARD_ARGUMENTS, (size_t)task.cell)
FLOAT_KERNEL(layer, LAYER_ARGUMENTS, (size_t)task.cell)
FLOAT_KERNEL(defined_forward, DEFINED_FORWARD_ARGUMENTS, 0)
FLOAT_KERNEL(defined_backward, DEFINED_BACKWARD_ARGUMENTS, 0)
FLOAT_KERNEL(weight_grad, WEIGHT_GRAD_ARGUMENTS, 0)
FLOAT_KERNEL(linear, LINEAR_ARGUMENTS, 0)
FLOAT_KERNEL(cross_entropy, CROSS_ENTROPY_ARGUMENTS, 0)
FLOAT_KERNEL(matvec, MATVEC_ARGUMENTS, 0)
FLOAT_KERNEL(step_in_place, STEP_IN_PLACE_ARGUMENTS, (size_t)task.cell)
KERNEL(forward_bf16, forward, bf16_backend, forward, FORWARD_ARGUMENTS, (size_t)task.cell)
KERNEL(backward_bf16, backward, bf16_backend, backward, BACKWARD_ARGUMENTS, (size_t)task.cell)
KERNEL(weight_grad_bf16, weight_grad, bf16_backend, weight_grad, WEIGHT_GRAD_ARGUMENTS, 0)
KERNEL(linear_bf16, linear, bf16_backend, linear, LINEAR_ARGUMENTS, 0)

/* py_NAME(backend, threads, the arguments) -> position of an id outside the vocabulary, or how many there are. */
#define IDS_KERNEL(NAME, ARGUMENTS, IDS, COUNT, VOCABULARY, BESIDES)                                                   \
    static PyObject *py_##NAME(PyObject *self, PyObject *const *args, Py_ssize_t count, PyObject *names) {             \
        (void)self;                                                                                                    \
        struct NAME task;                                                                                              \
        if (!complete(NAME##_arguments, count - 2, names)) return NULL;                                                \
        const size_t backend = number(&args), threads = number(&args);                                                 \
        ARGUMENTS(READ_NUMBER, READ_ADDRESS, READ_OUTPUT, READ_OUTPUT)                                                 \
        const struct backend *chosen = backend_at(backend, 0, threads);                                                \
        if (!chosen) return NULL;                                                                                      \
        size_t outside;                                                                                                \
        int status = 0;                                                                                                \
        Py_BEGIN_ALLOW_THREADS;                                                                                        \
        outside = ids_outside(IDS, COUNT, VOCABULARY, BESIDES);                                                        \
        if (outside == COUNT) status = chosen->NAME(&task, (int)threads);                                              \
        Py_END_ALLOW_THREADS;                                                                                          \
        if (status) return PyErr_NoMemory();                                                                           \
        return PyLong_FromSize_t(outside);                                                                             \
    }
IDS_KERNEL(gather, GATHER_ARGUMENTS, task.ids, task.tokens, task.vocabulary, NULL)
IDS_KERNEL(scatter, SCATTER_ARGUMENTS, task.ids, task.tokens, task.vocabulary, NULL)
IDS_KERNEL(linear_cross_entropy, LINEAR_CROSS_ENTROPY_ARGUMENTS, task.targets, task.rows, task.columns, &task.ignored)

static PyObject *py_layer_panels(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    if (count != 6) return PyErr_Format(PyExc_TypeError, "expected 6 arguments, got %zd", count);
    const size_t backend = number(&args), threads = number(&args), cell = number(&args);
    const size_t B = number(&args), H = number(&args), I = number(&args);
    const struct backend *chosen = backend_at(backend, cell, threads);
    if (!chosen) return NULL;
    size_t vectors;
    const size_t floats = chosen->layer_panels((enum cell)cell, B, H, I, (int)threads, &vectors);
    return Py_BuildValue("(nn)", (Py_ssize_t)vectors, (Py_ssize_t)floats);
}

static PyObject *py_activations(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    if (count != 5) return PyErr_Format(PyExc_TypeError, "expected 5 arguments, got %zd", count);
    size_t backend = number(&args);
    float *x = address(&args), *sigmoid = address(&args), *tanh = address(&args);
    size_t n = number(&args);
    const struct backend *chosen = backend_at(backend, 0, 1);
    if (!chosen) return NULL;
    chosen->activations(x, sigmoid, tanh, n);
    Py_RETURN_NONE;
}

/* ---- what there is ---- */

/* Append `item`, a new reference or NULL, to `list`, which becomes NULL after an error. */
static void append(PyObject **list, PyObject *item) {
    if (!item || !*list || PyList_Append(*list, item)) Py_CLEAR(*list);
    Py_XDECREF(item);
}

#define LIST_OF(NAME)                                                                                                  \
    static PyObject *py_##NAME##s(PyObject *self, PyObject *ignored) {                                                 \
        (void)self, (void)ignored;                                                                                     \
        PyObject *list = PyList_New(0);                                                                                \
        for (int i = 0; list && i < NAME##_count; i++)                                                                 \
            append(&list, Py_BuildValue("(sO)", NAME##s[i]->name, NAME##s[i]->supported() ? Py_True : Py_False));      \
        return list;                                                                                                   \
    }
LIST_OF(backend)
LIST_OF(bf16_backend)

static PyObject *py_cells(PyObject *self, PyObject *ignored) {
    (void)self, (void)ignored;
    PyObject *list = PyList_New(0);
    for (int i = 0; list && i < NUM_CELLS; i++) {
        const struct cell_facts *c = &CELL_FACTS[i];
        append(&list, Py_BuildValue("(snnnn)", c->name, (Py_ssize_t)c->gates, (Py_ssize_t)c->states,
                                    (Py_ssize_t)c->num_saved, (Py_ssize_t)c->apart_gates));
    }
    return list;
}

static PyObject *py_arguments(PyObject *self, PyObject *ignored) {
    (void)self, (void)ignored;
#define ENTRY(NAME) {#NAME, NAME##_arguments}
    static const struct {
        const char *kernel;
        const struct argument *arguments;
    } tables[] = {ENTRY(forward),          ENTRY(backward),             ENTRY(layer),  ENTRY(defined_forward),
                  ENTRY(defined_backward), ENTRY(weight_grad),          ENTRY(linear), ENTRY(cross_entropy),
                  ENTRY(gather),           ENTRY(linear_cross_entropy), ENTRY(matvec), ENTRY(step_in_place),
                  ENTRY(scatter)};
    PyObject *found = PyDict_New();
    for (size_t i = 0; found && i < sizeof tables / sizeof *tables; i++) {
        PyObject *list = PyList_New(0);
        for (const struct argument *a = tables[i].arguments; list && a->name; a++)
            append(&list, Py_BuildValue("(sssss)", a->name, a->kind, a->type, a->shape, a->when));
        if (!list || PyDict_SetItemString(found, tables[i].kernel, list)) Py_CLEAR(found);
        Py_XDECREF(list);
    }
    return found;
}

static PyObject *py_operations(PyObject *self, PyObject *ignored) {
    (void)self, (void)ignored;
    PyObject *list = PyList_New(0);
    for (int i = 0; list && i < NUM_OPERATIONS; i++)
        append(&list, Py_BuildValue("(si)", operations[i].name, operations[i].operands));
    return list;
}

static PyObject *py_team(PyObject *self, PyObject *ignored) {
    (void)self, (void)ignored;
    return PyUnicode_FromString(team_kind());
}

#define METHOD(NAME, FLAGS, DOC) {#NAME, (PyCFunction)(void (*)(void))py_##NAME, FLAGS, DOC}
#define KERNEL_METHOD(NAME) METHOD(NAME, METH_FASTCALL | METH_KEYWORDS, #NAME "(backend, threads, *arguments()[" #NAME "])")
#define BF16_METHOD(NAME)                                                                                              \
    METHOD(NAME##_bf16, METH_FASTCALL | METH_KEYWORDS, #NAME ", of tensors in bfloat16")
#define IDS_METHOD(NAME)                                                                                               \
    METHOD(NAME, METH_FASTCALL | METH_KEYWORDS, #NAME "(backend, threads, *arguments()[" #NAME                         \
                                                      "]) -> position of an id outside, or their number")

static PyMethodDef methods[] = {
    KERNEL_METHOD(forward),
    KERNEL_METHOD(backward),
    KERNEL_METHOD(layer),
    KERNEL_METHOD(defined_forward),
    KERNEL_METHOD(defined_backward),
    KERNEL_METHOD(weight_grad),
    KERNEL_METHOD(linear),
    KERNEL_METHOD(cross_entropy),
    KERNEL_METHOD(matvec),
    KERNEL_METHOD(step_in_place),
    BF16_METHOD(forward),
    BF16_METHOD(backward),
    BF16_METHOD(weight_grad),
    BF16_METHOD(linear),
    IDS_METHOD(gather),
    IDS_METHOD(scatter),
    IDS_METHOD(linear_cross_entropy),
    METHOD(layer_panels, METH_FASTCALL,
           "layer_panels(backend, threads, cell, B, H, I) -> (vectors, floats): of layer's argument `panels`"),
    METHOD(read_with, METH_FASTCALL,
           "read_with(Tensor, Parameter, is_neg of some tensor) -> whether tensors can be read: see tensors.c"),
    METHOD(readable, METH_FASTCALL, "readable(graph, tensors, shapes) -> addresses, or None"),
    METHOD(place, METH_FASTCALL, "place(graph, x, time) -> (address, dimensions, T, B, I, step, row), or None"),
    METHOD(small_layer, METH_FASTCALL, "small_layer(call, graph, x, tensors, kept, threads) -> what a layer returns, or None"),
    METHOD(activations, METH_FASTCALL, "activations(backend, x, sigmoid, tanh, n)"),
    METHOD(backends, METH_NOARGS, "backends() -> [(name, whether this machine has it), ...], the best first"),
    METHOD(bf16_backends, METH_NOARGS, "bf16_backends() -> [(name, whether this machine has it)] of bfloat16, the best first"),
    METHOD(cells, METH_NOARGS, "cells() -> [(name, gates, states, num_saved, apart_gates), ...], by number"),
    METHOD(arguments, METH_NOARGS, "arguments() -> {kernel: [(name, kind, type, shape, when), ...]}: see arguments.h"),
    METHOD(operations, METH_NOARGS, "operations() -> [(name, operands), ...] of programs, by number: see program.h"),
    METHOD(team, METH_NOARGS, "team() -> where threads come from: 'openmp' or 'threads'"),
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_cpu", "The recurrences on the CPU.", 0, methods,
                                        NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__cpu(void) {
    team_init();
    return PyModule_Create(&definition);
}
