/* Functions of the Python module that read torch's tensors: tensors.c. */
#ifndef FASTCELLS_TENSORS_H
#define FASTCELLS_TENSORS_H

#include <stddef.h>

struct _object; /* PyObject */

struct _object *py_read_with(struct _object *self, struct _object *const *args, ptrdiff_t count);
struct _object *py_readable(struct _object *self, struct _object *const *args, ptrdiff_t count);
struct _object *py_place(struct _object *self, struct _object *const *args, ptrdiff_t count);
struct _object *py_small_layer(struct _object *self, struct _object *const *args, ptrdiff_t count);

#endif
