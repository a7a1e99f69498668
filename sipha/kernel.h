/* What the kernels share: named tuples that are declared in Python, and made in C. */

#ifndef SIPHA_KERNEL_H
#define SIPHA_KERNEL_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>

/* Whether a class is a NamedTuple of so many fields, whose instances can be made here. */
static inline bool is_named_tuple(PyObject *type, Py_ssize_t size)
{
    if (!PyType_Check(type) || !PyType_FastSubclass((PyTypeObject *)type, Py_TPFLAGS_TUPLE_SUBCLASS)
        || ((PyTypeObject *)type)->tp_alloc != PyType_GenericAlloc
        || ((PyTypeObject *)type)->tp_basicsize != PyTuple_Type.tp_basicsize)
        return false;
    PyObject *fields = PyObject_GetAttrString(type, "_fields");
    bool matches = fields != NULL && PyTuple_Check(fields) && PyTuple_GET_SIZE(fields) == size;
    Py_XDECREF(fields);
    PyErr_Clear();
    return matches;
}

/* One of such a class, without its fields; NULL and an exception if there is no memory. */
static inline PyObject *blank(PyObject *type, Py_ssize_t size)
{
    PyObject *made = ((PyTypeObject *)type)->tp_alloc((PyTypeObject *)type, size);
#if PY_VERSION_HEX >= 0x030E0000
    if (made != NULL)
        ((PyTupleObject *)made)->ob_hash = -1;  /* not known yet, which 0 wouldn't say */
#endif
    return made;
}

/* Give a tuple its next field, which is the tuple's from now on; false if that couldn't be made. */
static inline bool put(PyObject *tuple, Py_ssize_t index, PyObject *field)
{
    if (field != NULL)
        PyTuple_SET_ITEM(tuple, index, field);
    return field != NULL;
}

/* The tuple if it has all its fields, else NULL. */
static inline PyObject *filled(PyObject *tuple, bool whole)
{
    if (!whole)
        Py_CLEAR(tuple);
    return tuple;
}

#endif
