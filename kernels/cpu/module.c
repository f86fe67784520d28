/* The Python module fastcells.kernels._cpu. It takes addresses as integers; ../../fastcells/native.py has checked
   the tensors behind them. */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>

#include "ids.h"
#include "recurrence.h"
#include "team.h"

/* The next argument, as a size or as an address. An error is left for the caller to see. */
static size_t size(PyObject *const **args) { return PyLong_AsSize_t(*(*args)++); }
static void *address(PyObject *const **args) { return PyLong_AsVoidPtr(*(*args)++); }

static int count_is(Py_ssize_t given, Py_ssize_t wanted) {
    if (given == wanted) return 1;
    PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", wanted, given);
    return 0;
}

/* The backend, the cell and the number of threads are what would run past the end of a table. */
static const struct backend *backend_at(size_t index, size_t cell, size_t threads) {
    if (PyErr_Occurred()) return NULL;
    if (index < (size_t)backend_count && backends[index]->supported() && cell < CELLS && threads >= 1 &&
        threads <= 4096)
        return backends[index];
    PyErr_Format(PyExc_ValueError, "no backend %zu on this machine, no cell %zu, or not %zu threads", index, cell,
                 threads);
    return NULL;
}

static PyObject *result(int status) {
    if (status) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_forward(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    if (!count_is(count, 20)) return NULL;
    size_t backend = size(&args), cell = size(&args), threads = size(&args);
    struct forward f = {.cell = (enum cell)cell};
    f.T = size(&args), f.B = size(&args), f.H = size(&args);
    f.reverse = size(&args) != 0;
    f.x = address(&args), f.w = address(&args), f.b = address(&args);
    f.mask = address(&args), f.resets = address(&args);
    f.h0 = address(&args), f.c0 = address(&args);
    f.h = address(&args), f.c = address(&args), f.saved = address(&args), f.out = address(&args);
    f.h_n = address(&args), f.c_n = address(&args);
    const struct backend *chosen = backend_at(backend, cell, threads);
    if (!chosen) return NULL;
    int status;
    Py_BEGIN_ALLOW_THREADS;
    status = chosen->forward(&f, (int)threads);
    Py_END_ALLOW_THREADS;
    return result(status);
}

static PyObject *py_backward(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    if (!count_is(count, 22)) return NULL;
    size_t backend = size(&args), cell = size(&args), threads = size(&args);
    struct backward b = {.cell = (enum cell)cell};
    b.T = size(&args), b.B = size(&args), b.H = size(&args);
    b.reverse = size(&args) != 0;
    b.w = address(&args), b.mask = address(&args), b.resets = address(&args);
    b.h0 = address(&args), b.c0 = address(&args);
    b.h = address(&args), b.c = address(&args), b.saved = address(&args);
    b.d_out = address(&args), b.d_h_n = address(&args), b.d_c_n = address(&args);
    b.d_x = address(&args), b.d_gates = address(&args);
    b.d_h0 = address(&args), b.d_c0 = address(&args);
    const struct backend *chosen = backend_at(backend, cell, threads);
    if (!chosen) return NULL;
    int status;
    Py_BEGIN_ALLOW_THREADS;
    status = chosen->backward(&b, (int)threads);
    Py_END_ALLOW_THREADS;
    return result(status);
}

static PyObject *py_weights(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    if (!count_is(count, 12)) return NULL;
    size_t backend = size(&args), threads = size(&args);
    struct weights w = {.tokens = size(&args)};
    w.rows = size(&args), w.columns = size(&args), w.d_step = size(&args), w.split = size(&args);
    w.d = address(&args), w.x[0] = address(&args), w.x[1] = address(&args);
    w.out = address(&args), w.sums = address(&args);
    const struct backend *chosen = backend_at(backend, 0, threads);
    if (!chosen) return NULL;
    int status;
    Py_BEGIN_ALLOW_THREADS;
    status = chosen->weights(&w, (int)threads);
    Py_END_ALLOW_THREADS;
    return result(status);
}

static PyObject *py_linear(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    if (!count_is(count, 11)) return NULL;
    size_t backend = size(&args), threads = size(&args);
    struct linear l = {.rows = size(&args)};
    l.K = size(&args), l.columns = size(&args), l.x_step = size(&args);
    l.transposed = size(&args) != 0;
    l.x = address(&args), l.w = address(&args), l.b = address(&args), l.out = address(&args);
    const struct backend *chosen = backend_at(backend, 0, threads);
    if (!chosen) return NULL;
    int status;
    Py_BEGIN_ALLOW_THREADS;
    status = chosen->linear(&l, (int)threads);
    Py_END_ALLOW_THREADS;
    return result(status);
}

static PyObject *py_single(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    if (!count_is(count, 13)) return NULL;
    size_t backend = size(&args), cell = size(&args), threads = size(&args);
    struct single s = {.cell = (enum cell)cell};
    s.H = size(&args), s.I = size(&args);
    s.x = address(&args);
    s.id = (int64_t)PyLong_AsLongLong(*args++);
    s.w_ih = address(&args), s.w_hh = address(&args), s.b_ih = address(&args), s.b_hh = address(&args);
    s.h = address(&args), s.c = address(&args);
    const struct backend *chosen = backend_at(backend, cell, threads);
    if (!chosen) return NULL;
    if (s.id < 0 ? !s.x && s.I > 0 : (uint64_t)s.id >= s.I) /* a dense x of no elements has no address */
        return PyErr_Format(PyExc_IndexError, "token id %lld is outside [0, %zu)", (long long)s.id, s.I);
    int status;
    Py_BEGIN_ALLOW_THREADS;
    status = chosen->single(&s, (int)threads);
    Py_END_ALLOW_THREADS;
    return result(status);
}

static PyObject *py_matvec(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    if (!count_is(count, 8)) return NULL;
    size_t backend = size(&args), threads = size(&args), rows = size(&args), columns = size(&args);
    float *w = address(&args), *x = address(&args), *b = address(&args), *out = address(&args);
    const struct backend *chosen = backend_at(backend, 0, threads);
    if (!chosen) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    chosen->matvec(out, w, x, b, rows, columns, (int)threads);
    Py_END_ALLOW_THREADS;
    Py_RETURN_NONE;
}

/* tokens, rows, vocabulary and ids, the same for both; 0 if there is an error. */
static int read_ids(struct ids *task, PyObject *const **args, size_t *threads) {
    *threads = size(args);
    task->tokens = size(args), task->rows = size(args), task->vocabulary = size(args);
    task->ids = address(args);
    return backend_at((size_t)backend_count - 1, 0, *threads) != NULL;
}

/* Run `work` unless an id is outside the vocabulary. Its position, or the number of tokens if all are inside. */
static PyObject *with_ids(const struct ids *task, size_t threads, void (*work)(const struct ids *, int)) {
    size_t outside;
    if (PyErr_Occurred()) return NULL;
    Py_BEGIN_ALLOW_THREADS;
    outside = ids_outside(task);
    if (outside == task->tokens) work(task, (int)threads);
    Py_END_ALLOW_THREADS;
    return PyLong_FromSize_t(outside);
}

static PyObject *py_gather(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    size_t threads;
    struct ids task = {0};
    if (!count_is(count, 8) || !read_ids(&task, &args, &threads)) return NULL;
    task.w = address(&args), task.b = address(&args), task.out = address(&args);
    return with_ids(&task, threads, ids_gather);
}

static PyObject *py_scatter(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    size_t threads;
    struct ids task = {0};
    if (!count_is(count, 8) || !read_ids(&task, &args, &threads)) return NULL;
    task.d = address(&args), task.out = address(&args), task.sums = address(&args);
    return with_ids(&task, threads, ids_scatter);
}

static PyObject *py_activations(PyObject *self, PyObject *const *args, Py_ssize_t count) {
    (void)self;
    if (!count_is(count, 5)) return NULL;
    size_t backend = size(&args);
    float *x = address(&args), *sigmoid = address(&args), *tanh = address(&args);
    size_t n = size(&args);
    const struct backend *chosen = backend_at(backend, 0, 1);
    if (!chosen) return NULL;
    chosen->activations(x, sigmoid, tanh, n);
    Py_RETURN_NONE;
}

static PyObject *py_backends(PyObject *self, PyObject *ignored) {
    (void)self, (void)ignored;
    PyObject *names = PyList_New(0);
    for (int i = 0; names && i < backend_count; i++) {
        PyObject *entry = Py_BuildValue("(sO)", backends[i]->name, backends[i]->supported() ? Py_True : Py_False);
        if (!entry || PyList_Append(names, entry)) Py_CLEAR(names);
        Py_XDECREF(entry);
    }
    return names;
}

static PyObject *py_team(PyObject *self, PyObject *ignored) {
    (void)self, (void)ignored;
    return PyUnicode_FromString(team_kind());
}

static PyMethodDef methods[] = {
    {"forward", (PyCFunction)(void (*)(void))py_forward, METH_FASTCALL,
     "forward(backend, cell, threads, T, B, H, reverse, x, w, b, mask, resets, h0, c0, h, c, saved, out, "
     "h_n, c_n)"},
    {"backward", (PyCFunction)(void (*)(void))py_backward, METH_FASTCALL,
     "backward(backend, cell, threads, T, B, H, reverse, w, mask, resets, h0, c0, h, c, saved, d_out, d_h_n, d_c_n, d_x, "
     "d_gates, d_h0, d_c0)"},
    {"weights", (PyCFunction)(void (*)(void))py_weights, METH_FASTCALL,
     "weights(backend, threads, tokens, rows, columns, d_step, split, d, x, x_rest, out, sums)"},
    {"linear", (PyCFunction)(void (*)(void))py_linear, METH_FASTCALL,
     "linear(backend, threads, rows, K, columns, x_step, transposed, x, w, b, out)"},
    {"single", (PyCFunction)(void (*)(void))py_single, METH_FASTCALL,
     "single(backend, cell, threads, H, I, x, id, w_ih, w_hh, b_ih, b_hh, h, c)"},
    {"matvec", (PyCFunction)(void (*)(void))py_matvec, METH_FASTCALL,
     "matvec(backend, threads, rows, columns, w, x, b, out)"},
    {"gather", (PyCFunction)(void (*)(void))py_gather, METH_FASTCALL,
     "gather(threads, tokens, rows, vocabulary, ids, w, b, out) -> position of an id outside, or tokens"},
    {"scatter", (PyCFunction)(void (*)(void))py_scatter, METH_FASTCALL,
     "scatter(threads, tokens, rows, vocabulary, ids, d, out, sums) -> position of an id outside, or tokens"},
    {"activations", (PyCFunction)(void (*)(void))py_activations, METH_FASTCALL,
     "activations(backend, x, sigmoid, tanh, n)"},
    {"backends", py_backends, METH_NOARGS, "backends() -> [(name, whether this machine has it), ...], the best first"},
    {"team", py_team, METH_NOARGS, "team() -> where threads come from: 'openmp' or 'threads'"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_cpu", "The recurrences on the CPU.", 0, methods,
                                        NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__cpu(void) {
    team_init();
    return PyModule_Create(&definition);
}
