/* What the kernels of the table share: how rows are written and hashed, and how objects of Python's are read. */

#ifndef SIPHA_STATE_ROW_H
#define SIPHA_STATE_ROW_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <structmember.h>

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "digest.h"

/* -- MessagePack, in the one way in which it is written ----------------------------------------------------------------- */

typedef struct {
    const uint8_t *at;
    size_t size;
} Text;

static inline uint64_t big(const uint8_t *at, size_t width)
{
    uint64_t value = 0;
    for (size_t i = 0; i < width; i++)
        value = value << 8 | at[i];
    return value;
}

static inline uint8_t *put_big(uint8_t *at, uint64_t value, size_t width)
{
    for (size_t i = 0; i < width; i++)
        at[i] = (uint8_t)(value >> 8 * (width - 1 - i));
    return at + width;
}

static inline size_t width_of(uint64_t number)
{
    return number < 0x80 ? 1 : number <= 0xff ? 2 : number <= 0xffff ? 3 : number <= 0xffffffff ? 5 : 9;
}

static inline uint8_t *put_number(uint8_t *at, uint64_t number)
{
    switch (width_of(number)) {
    case 1:
        return put_big(at, number, 1);
    case 2:
        *at = 0xcc;
        return put_big(at + 1, number, 1);
    case 3:
        *at = 0xcd;
        return put_big(at + 1, number, 2);
    case 5:
        *at = 0xce;
        return put_big(at + 1, number, 4);
    default:
        *at = 0xcf;
        return put_big(at + 1, number, 8);
    }
}

/* -- rows --------------------------------------------------------------------------------------------------------------- */

/* As in row.py: the digest, the first expiry, the bucket, and then the bindings. */
#define LEAD 32
#define EARLIEST 16
#define BUCKET 24
#define LATEST (UINT64_C(1) << 62)

#define FIELDS 22

static inline void put_times(uint8_t *row, uint64_t earliest, uint64_t bucket)
{
    put_big(row + EARLIEST, earliest, 8);
    put_big(row + BUCKET, bucket, 8);
}

/* Give rows, up to four, their digests. */
static inline void put_digests(PyObject *const rows[], int count)
{
    uint8_t *leads[LANES];
    const uint8_t *data[LANES];
    size_t sizes[LANES];
    for (int i = 0; i < count; i++) {
        leads[i] = (uint8_t *)PyBytes_AS_STRING(rows[i]);
        data[i] = leads[i] + LEAD;
        sizes[i] = (size_t)PyBytes_GET_SIZE(rows[i]) - LEAD;
    }
#ifdef HAS_LANES
    if (count > 1 && __builtin_cpu_supports("avx2")) {
        digest_lanes(data, sizes, leads, count);
        return;
    }
#endif
    for (int i = 0; i < count; i++)
        digest(data[i], sizes[i], leads[i]);
}

/* The sum of digests, modulo 2^128. */
typedef struct {
    uint64_t high, low;
} Sum;

/* -- objects of classes with slots ------------------------------------------------------------------------------------- */

#define MEMBER(name) Py_ssize_t name;

/* What an object of such a class has there, borrowed; NULL if that was never set. */
static inline PyObject *at(PyObject *object, Py_ssize_t offset)
{
    return *(PyObject **)((char *)object + offset);
}

static inline bool is_number(PyObject *object, uint64_t *value)
{
    if (object == NULL || !PyLong_CheckExact(object))
        return false;
    *value = PyLong_AsUnsignedLongLong(object);
    if (*value == (uint64_t)-1 && PyErr_Occurred()) {
        PyErr_Clear(); /* below 0, or more than 64 bits */
        return false;
    }
    return true;
}

static inline bool is_optional_number(PyObject *object, bool *has, uint64_t *value)
{
    *has = object != Py_None;
    return !*has || is_number(object, value);
}

/* The outcome that tells of a row. */
static inline PyObject *outcome(PyObject *registered, PyObject *raw_class, PyObject *row, PyObject *time)
{
    PyObject *data = PyBytes_FromStringAndSize(PyBytes_AS_STRING(row) + LEAD, PyBytes_GET_SIZE(row) - LEAD);
    if (data == NULL)
        return NULL;
    PyObject *raw = PyObject_CallOneArg(raw_class, data);
    Py_DECREF(data);
    if (raw == NULL)
        return NULL;
    PyObject *arguments[] = {raw, time};
    PyObject *made = PyObject_Vectorcall(registered, arguments, 2, NULL);
    Py_DECREF(raw);
    return made;
}

static inline PyObject *taken(const char *module, const char *name)
{
    PyObject *imported = PyImport_ImportModule(module);
    if (imported == NULL)
        return NULL;
    PyObject *found = PyObject_GetAttrString(imported, name);
    Py_DECREF(imported);
    return found;
}

/* Where the objects of a class have an attribute; -1 with an error set if that is none of its slots. */
static inline Py_ssize_t place(PyObject *class, const char *name)
{
    PyObject *member = PyObject_GetAttrString(class, name);
    if (member == NULL)
        return -1;
    Py_ssize_t offset = -1;
    if (Py_IS_TYPE(member, &PyMemberDescr_Type) && ((PyMemberDescrObject *)member)->d_member->type == T_OBJECT_EX)
        offset = ((PyMemberDescrObject *)member)->d_member->offset;
    else
        PyErr_Format(PyExc_ImportError, "%s of %R is no slot", name, class);
    Py_DECREF(member);
    return offset;
}

/* -- what is granted ------------------------------------------------------------------------------------------------------ */

typedef struct {
    uint64_t version, time, default_expires, min_expires, max_expires;
} Moment;

/* As `registration.granted`. */
static inline uint64_t granted(uint64_t seconds, uint64_t jitter, const Moment *moment)
{
    uint64_t least = moment->min_expires ? moment->min_expires : 1;
    if (moment->max_expires && seconds > moment->max_expires)
        seconds = moment->max_expires;
    return seconds > jitter && seconds - jitter > least ? seconds - jitter : least;
}

#define LARGEST UINT64_C(0xffffffff)

#endif
