/* torch's tensors without torch's headers: their class has a table of functions by which other libraries read them
   (DLPack's exchange API). A question takes a few nanoseconds here, and a hundred or more in Python. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>

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
static PyObject *requires_grad;                      /* the name of an attribute */
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
    if (!requires_grad) return NULL;
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
        found->data == NULL || address % sizeof(float))
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

/* readable(graph, tensors, shapes) -> their addresses, or None if one of them cannot be read where it lies. graph:
   whether gradients are recorded. tensors: a list. shapes: of each its number of dimensions and its sizes, as bytes of
   int64; more of them may follow. */
PyObject *py_readable(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    if (count != 3) return PyErr_Format(PyExc_TypeError, "expected 3 arguments, got %zd", count);
    const int graph = args[0] == Py_True;
    char *bytes;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(args[2], &bytes, &size)) return NULL;
    const Py_ssize_t tensors = PyList_Size(args[1]);
    const int64_t *shape = (const int64_t *)(void *)bytes, *end = shape + size / (Py_ssize_t)sizeof *shape;
    PyObject *addresses = tensors < 0 ? NULL : PyTuple_New(tensors);
    for (Py_ssize_t i = 0; addresses && i < tensors; i++) {
        struct dl_tensor t;
        if (shape == end || !read_tensor(PyList_GetItem(args[1], i), graph, &t) || t.dims != *shape ||
            t.dims >= end - shape || memcmp(t.shape, shape + 1, (size_t)t.dims * sizeof *shape) || !is_contiguous(&t)) {
            Py_DECREF(addresses);
            Py_RETURN_NONE;
        }
        shape += 1 + t.dims;
        PyObject *address = PyLong_FromVoidPtr(t.data);
        if (!address || PyTuple_SetItem(addresses, i, address)) Py_CLEAR(addresses);
    }
    return addresses;
}

/* place(graph, x, time) -> (address, dimensions, T, B, I, and how far a step and a row lie apart, in floats) of an input
   [T, B, I] or, with time 1, [B, T, I], of which only features have to be side by side; of [T, I] as of one row, and of
   [I] as of one step. None where it cannot be read so. */
PyObject *py_place(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    if (count != 3) return PyErr_Format(PyExc_TypeError, "expected 3 arguments, got %zd", count);
    struct dl_tensor t;
    if (!read_tensor(args[1], args[0] == Py_True, &t) || t.dims < 1 || t.dims > 3) Py_RETURN_NONE;
    const int features = t.dims - 1, time = t.dims == 3 && PyObject_IsTrue(args[2]), row = 1 - time;
    if (t.strides[features] != 1 && t.shape[features] != 1) Py_RETURN_NONE;
    const Py_ssize_t T = t.dims > 1 ? t.shape[time] : 1, x_time = t.dims > 1 ? t.strides[time] : 0;
    const Py_ssize_t B = t.dims > 2 ? t.shape[row] : 1, x_row = t.dims > 2 ? t.strides[row] : 0;
    return Py_BuildValue("(Ninnnnn)", PyLong_FromVoidPtr(t.data), t.dims, T, B, (Py_ssize_t)t.shape[features], x_time,
                         x_row);
}
