/* torch's tensors without torch's headers: their class has a table of functions by which other libraries read them
   (DLPack's exchange API). A question takes a few nanoseconds here, and a hundred or more in Python. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>

#include "backends.h"
#include "tensors.h"

#include <stdint.h>
#include <string.h>

/* As version 1 of DLPack lays them out. */
struct dl_tensor {
    void *data;
    int32_t device_type, device;
    int32_t dims;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides; /* in elements */
    uint64_t byte_offset;
};
struct dl_exchange {
    uint32_t major, minor;
    void *previous, *allocate, *managed_from_object, *managed_to_object;
    int (*from_object)(void *object, struct dl_tensor *found);
    void *stream;
};
enum { CPU_DEVICE = 1, FLOAT_CODE = 2 };

static PyObject *tensor, *parameter;                 /* the classes whose tensors are read; NULL: none */
static PyObject *requires_grad, *version_name;       /* names of attributes */
static PyCFunction is_neg;                           /* a method without arguments */
static int (*from_object)(void *, struct dl_tensor *);

/* read_with(Tensor, Parameter, is_neg of some tensor) -> whether tensors of just these two classes can be read here. */
PyObject *py_read_with(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    if (count != 3) return PyErr_Format(PyExc_TypeError, "expected 3 arguments, got %zd", count);
    PyObject *capsule = PyObject_GetAttrString(args[0], "__dlpack_c_exchange_api__");
    const struct dl_exchange *table = capsule ? PyCapsule_GetPointer(capsule, "dlpack_exchange_api") : NULL;
    const int flags = table ? PyCFunction_GetFlags(args[2]) : 0;
    Py_XDECREF(capsule);
    PyErr_Clear();
    if (!table || table->major != 1 || !table->from_object || flags != METH_NOARGS) Py_RETURN_FALSE;
    requires_grad = PyUnicode_InternFromString("requires_grad");
    version_name = PyUnicode_InternFromString("_version");
    if (!requires_grad || !version_name) return NULL;
    from_object = table->from_object, is_neg = PyCFunction_GetFunction(args[2]);
    Py_INCREF(args[0]), Py_INCREF(args[1]); /* for good */
    tensor = args[0], parameter = args[1];
    Py_RETURN_TRUE;
}

/* Whether the answer to a question, a new reference, is no. An error is not. */
static int is_no(PyObject *answer) {
    if (!answer) PyErr_Clear();
    Py_XDECREF(answer);
    return answer == Py_False;
}

/* Whether there is memory at a tensor's address, as fastcells/tensor_memory.py says: without any, that is what a view
   has before it. Memory that the system hands out lies above, mostly. */
static int has_memory(PyObject *object, uintptr_t address) {
    if ((uint64_t)address >> 40) return 1;
    PyObject *offset = PyObject_CallMethod(object, "storage_offset", NULL);
    const uintptr_t before = offset ? (uintptr_t)PyLong_AsSize_t(offset) * sizeof(float) : address;
    Py_XDECREF(offset);
    PyErr_Clear();
    return address != before;
}

/* Whether the kernels can read a tensor: of one of the two classes, float32, on the CPU, at an address of a float, not
   to be negated, and if gradients are recorded without one. What torch cannot say is a no. */
static int read_tensor(PyObject *object, int graph, struct dl_tensor *found) {
    PyObject *type = (PyObject *)Py_TYPE(object);
    if (!tensor || (type != tensor && type != parameter)) return 0;
    if (from_object(object, found)) {
        PyErr_Clear();
        return 0;
    }
    const uintptr_t address = (uintptr_t)found->data + found->byte_offset;
    if (found->code != FLOAT_CODE || found->bits != 32 || found->lanes != 1 || found->device_type != CPU_DEVICE ||
        address % sizeof(float) || !has_memory(object, address))
        return 0;
    found->data = (void *)address;
    return is_no(is_neg(object, NULL)) && (!graph || is_no(PyObject_GetAttr(object, requires_grad)));
}

static int is_contiguous(const struct dl_tensor *t) {
    int64_t step = 1;
    for (int i = t->dims - 1; i >= 0; i--) {
        if (t->shape[i] != 1 && t->strides[i] != step) return 0;
        step *= t->shape[i];
    }
    return 1;
}

/* The shapes of some tensors, one after another: of each its number of dimensions and its sizes. */
struct shapes {
    const int64_t *at, *end;
};

/* Whether the kernels can read a tensor of the next shape. */
static int read_next(PyObject *object, int graph, struct shapes *shapes, struct dl_tensor *found) {
    const int64_t *shape = shapes->at;
    if (shape == shapes->end || !read_tensor(object, graph, found) || found->dims != *shape ||
        found->dims >= shapes->end - shape ||
        memcmp(found->shape, shape + 1, (size_t)found->dims * sizeof *shape) != 0 || !is_contiguous(found))
        return 0;
    shapes->at += 1 + found->dims;
    return 1;
}

/* Bytes of int64; NULL with an error for anything else. */
static const int64_t *numbers_of(PyObject *bytes, Py_ssize_t *count) {
    char *found;
    if (PyBytes_AsStringAndSize(bytes, &found, count)) return NULL;
    *count /= (Py_ssize_t)sizeof(int64_t);
    return (const int64_t *)(void *)found;
}

/* readable(graph, tensors, shapes) -> their addresses, or None if one of them cannot be read where it lies. graph:
   whether gradients are recorded. tensors: a list. shapes: as above, in bytes of int64; more of them may follow. */
PyObject *py_readable(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    if (count != 3) return PyErr_Format(PyExc_TypeError, "expected 3 arguments, got %zd", count);
    Py_ssize_t size;
    const int64_t *first = numbers_of(args[2], &size);
    const Py_ssize_t tensors = first ? PyList_Size(args[1]) : -1;
    struct shapes shapes = {first, first + (tensors < 0 ? 0 : size)};
    PyObject *addresses = tensors < 0 ? NULL : PyTuple_New(tensors);
    for (Py_ssize_t i = 0; addresses && i < tensors; i++) {
        struct dl_tensor t;
        if (!read_next(PyList_GetItem(args[1], i), args[0] == Py_True, &shapes, &t)) {
            Py_DECREF(addresses);
            Py_RETURN_NONE;
        }
        PyObject *address = PyLong_FromVoidPtr(t.data);
        if (!address || PyTuple_SetItem(addresses, i, address)) Py_CLEAR(addresses);
    }
    return addresses;
}

/* Where an input of one to three dimensions lies; returns whether its features are side by side. */
struct input {
    int64_t T, B, I, time, row; /* the last two: how far steps and rows lie apart, in floats */
};
static int lies(const struct dl_tensor *t, int batch_first, struct input *at) {
    if (t->dims < 1 || t->dims > 3) return 0;
    const int features = t->dims - 1, time = t->dims == 3 && batch_first, row = 1 - time;
    *at = (struct input){.T = t->dims > 1 ? t->shape[time] : 1,
                         .B = t->dims > 2 ? t->shape[row] : 1,
                         .I = t->shape[features],
                         .time = t->dims > 1 ? t->strides[time] : 0,
                         .row = t->dims > 2 ? t->strides[row] : 0};
    return t->strides[features] == 1 || t->shape[features] == 1;
}

/* place(graph, x, time) -> (address, dimensions, T, B, I, and how far a step and a row lie apart, in floats) of an input
   [T, B, I] or, with time 1, [B, T, I], of which only features have to be side by side; of [T, I] as of one row, and of
   [I] as of one step. None where it cannot be read so. */
PyObject *py_place(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    if (count != 3) return PyErr_Format(PyExc_TypeError, "expected 3 arguments, got %zd", count);
    struct dl_tensor t;
    struct input at;
    if (!read_tensor(args[1], args[0] == Py_True, &t) || !lies(&t, PyObject_IsTrue(args[2]), &at)) Py_RETURN_NONE;
    return Py_BuildValue("(Ninnnnn)", PyLong_FromVoidPtr(t.data), t.dims, (Py_ssize_t)at.T, (Py_ssize_t)at.B,
                         (Py_ssize_t)at.I, (Py_ssize_t)at.time, (Py_ssize_t)at.row);
}

/* What does not depend on the tensors of a call, in the order of fastcells/backends/cpu/layer_call.py. */
struct sizes {
    int64_t backend, cell, T, B, H, I, packed, weights, states, batch_first, out_time, out_row;
};

/* A new tensor: new(*sizes), and where it lies. */
static PyObject *new_tensor(PyObject *new, PyObject *sizes, float **data) {
    struct dl_tensor t;
    PyObject *made = PyObject_Call(new, sizes, NULL);
    if (made && !read_tensor(made, 0, &t)) {
        Py_CLEAR(made);
        PyErr_SetString(PyExc_RuntimeError, "a new tensor cannot be written");
    }
    if (made) *data = t.data;
    return made;
}

/* Whether a tensor is the one that was packed, where it was then, with the numbers of then as far as torch counts
   changes. */
static int is_still(PyObject *object, const struct dl_tensor *t, PyObject *kept[3], Py_ssize_t i) {
    PyObject *version = PyObject_GetAttr(object, version_name);
    const int same = version && PyList_GetItem(kept[0], i) == object &&
                     PyObject_RichCompareBool(version, PyList_GetItem(kept[1], i), Py_EQ) == 1 &&
                     PyLong_AsVoidPtr(PyTuple_GetItem(kept[2], i)) == t->data;
    Py_XDECREF(version);
    PyErr_Clear(); /* of an inference tensor, whose changes nobody counts, among others */
    return same;
}

/* small_layer(call, graph, x, tensors, kept, threads) -> (out, h) or (out, (h, c)) of a layer of one direction, of a
   cell (h,) or (h, c), without anything asked in Python; None where a tensor is not as the call has it.
   call: (`struct sizes`, shapes, both as bytes of int64; what makes a tensor, its arguments for out, and for a state, or
   None for a cell), and what Python has behind them. graph: whether gradients are recorded. tensors: a list of the
   weights, and of the states that are given. kept: None, or what has been packed of the weights: (they, their versions
   and addresses; panels, their address and the vectors of a tile). */
PyObject *py_small_layer(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    if (count != 6) return PyErr_Format(PyExc_TypeError, "expected 6 arguments, got %zd", count);
    const long threads = PyLong_AsLong(args[5]);
    if (threads == -1 && PyErr_Occurred()) return NULL;
    PyObject *part[5], *kept[6] = {NULL};
    for (Py_ssize_t i = 0; args[4] != Py_None && i < 6; i++) {
        if (!(kept[i] = PyTuple_GetItem(args[4], i))) return NULL;
    }
    for (Py_ssize_t i = 0; i < 5; i++) {
        if (!(part[i] = PyTuple_GetItem(args[0], i))) return NULL;
    }
    Py_ssize_t sizes, numbers;
    const struct sizes *s = (const void *)numbers_of(part[0], &numbers);
    const int64_t *first = s ? numbers_of(part[1], &sizes) : NULL;
    const Py_ssize_t tensors = first ? PyList_Size(args[3]) : -1;
    if (tensors < 0) return NULL;
    if (numbers != sizeof *s / sizeof(int64_t) || s->backend >= backend_count || !backends[s->backend]->supported() ||
        threads < 1 || threads > 4096)
        return PyErr_Format(PyExc_ValueError, "%zd numbers, no such backend, or %ld threads", numbers, threads);
    const int graph = args[1] == Py_True;
    struct shapes shapes = {first, first + sizes};
    struct dl_tensor t;
    struct input at;
    const int cell = part[4] == Py_None;
    if (!read_tensor(args[2], graph, &t) || !lies(&t, (int)s->batch_first, &at)) Py_RETURN_NONE;
    if (cell) at = (struct input){.T = 1, .B = at.T, .I = at.I, .row = at.time}; /* rows, and no time */
    if (at.T != s->T || at.B != s->B || at.I != s->I) Py_RETURN_NONE;
    if (tensors != s->weights && tensors != s->weights + s->states) Py_RETURN_NONE;
    struct layer task = {.cell = (enum cell)s->cell, .T = (size_t)s->T, .B = (size_t)s->B, .H = (size_t)s->H,
                         .I = (size_t)s->I, .packed = (int)s->packed, .chunk = (size_t)s->T, .x_time = (size_t)at.time,
                         .x_row = (size_t)at.row, .out_time = (size_t)s->out_time, .out_row = (size_t)s->out_row,
                         .x = t.data};
    const float *read[6] = {0};
    for (Py_ssize_t i = 0; i < tensors; i++) {
        PyObject *object = PyList_GetItem(args[3], i);
        if (!read_next(object, graph, &shapes, &t)) Py_RETURN_NONE;
        if (kept[0] && i < s->weights && !is_still(object, &t, kept, i)) Py_RETURN_NONE;
        read[i < s->weights ? i : 4 + i - s->weights] = t.data;
    }
    task.w_ih = read[0], task.w = read[1], task.b_ih = read[2], task.b = read[3], task.h0 = read[4], task.c0 = read[5];
    if (kept[0]) {
        task.packed = task.kept = 1;
        task.panels = PyLong_AsVoidPtr(kept[4]), task.vectors = PyLong_AsSize_t(kept[5]);
        if (PyErr_Occurred()) return NULL;
    }
    PyObject *out = new_tensor(part[2], part[3], &task.out), *h = NULL, *c = NULL;
    if (out && !cell) h = new_tensor(part[2], part[4], &task.h_n);
    if (out && s->states == 2) c = new_tensor(part[2], cell ? part[3] : part[4], &task.c_n);
    int status = -1;
    if (out && (h || cell) && (c || s->states == 1)) {
        Py_BEGIN_ALLOW_THREADS;
        status = backends[s->backend]->layer(&task, (int)threads);
        Py_END_ALLOW_THREADS;
        if (status) PyErr_NoMemory();
    }
    if (!status && cell) return c ? Py_BuildValue("(NN)", out, c) : Py_BuildValue("(N)", out);
    if (!status) return c ? Py_BuildValue("(N(NN))", out, h, c) : Py_BuildValue("(NN)", out, h);
    Py_XDECREF(out), Py_XDECREF(h), Py_XDECREF(c);
    return NULL;
}
