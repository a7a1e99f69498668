/* What refreshes do to the rows of the table, in place of what `sipha.state.registration` and `sipha.state.row` do, which
 * are the reference: a row's bytes are read, compared and rewritten as they are, without making a Binding of them.
 *
 * Only a row is touched that has one binding, in the very bytes that msgspec makes of one, with no number below 0. Of
 * anything else nothing is said, and the reference is asked. No byte is read before it is seen that it is there.
 */

#include "row.h"

/* -- MessagePack, as far as it is written in one way ------------------------------------------------------------------- */

typedef struct {
    const uint8_t *at, *end;
} Rest;

/* A number of so many bytes, if it is above what fewer would take. */
static inline bool read_wide(Rest *rest, size_t width, uint64_t above, uint64_t *value)
{
    if ((size_t)(rest->end - rest->at) < width)
        return false;
    *value = big(rest->at, width);
    rest->at += width;
    return *value > above;
}

static bool read_number(Rest *rest, uint64_t *value)
{
    if (rest->at == rest->end)
        return false;
    uint8_t kind = *rest->at++;
    switch (kind) {
    case 0xcc:
        return read_wide(rest, 1, 0x7f, value);
    case 0xcd:
        return read_wide(rest, 2, 0xff, value);
    case 0xce:
        return read_wide(rest, 4, 0xffff, value);
    case 0xcf:
        return read_wide(rest, 8, 0xffffffff, value);
    default:
        *value = kind;
        return kind < 0x80;
    }
}

static bool is_utf8(Text text)
{
    uint8_t bits = 0;
    for (size_t i = 0; i < text.size; i++)
        bits |= text.at[i];
    if (bits < 0x80)
        return true;
    PyObject *decoded = PyUnicode_DecodeUTF8((const char *)text.at, (Py_ssize_t)text.size, NULL);
    if (decoded == NULL)
        PyErr_Clear();
    Py_XDECREF(decoded);
    return decoded != NULL;
}

static bool read_text(Rest *rest, Text *text)
{
    if (rest->at == rest->end)
        return false;
    uint8_t kind = *rest->at++;
    uint64_t size;
    if (kind >= 0xa0 && kind <= 0xbf)
        size = kind & 0x1f;
    else if (!(kind == 0xd9 && read_wide(rest, 1, 0x1f, &size)) && !(kind == 0xda && read_wide(rest, 2, 0xff, &size)) &&
             !(kind == 0xdb && read_wide(rest, 4, 0xffff, &size)))
        return false;
    if ((uint64_t)(rest->end - rest->at) < size)
        return false;
    *text = (Text){rest->at, (size_t)size};
    rest->at += size;
    return is_utf8(*text);
}

static bool read_count(Rest *rest, uint64_t *count)
{
    if (rest->at == rest->end)
        return false;
    uint8_t kind = *rest->at++;
    if (kind >= 0x90 && kind <= 0x9f) {
        *count = kind & 0x0f;
        return true;
    }
    return (kind == 0xdc && read_wide(rest, 2, 0x0f, count)) || (kind == 0xdd && read_wide(rest, 4, 0xffff, count));
}

/* -- rows --------------------------------------------------------------------------------------------------------------- */

/* The fields of binding.py, each with where it begins if it is to be written anew, or what follows it is. */
typedef struct {
    Text aor, contact;
    uint64_t contact_id;
    const uint8_t *version_at;
    uint64_t version, expires_at;
    const uint8_t *call_id_at;
    Text call_id;
    const uint8_t *cseq_at;
    uint64_t cseq;
    const uint8_t *q_at;
    bool has_q;
    uint64_t q;
    Text instance;
    uint64_t reg_id;
    Text params, received, socket, flow;
    uint64_t path_count;
    Rest path;
    Text user_agent, methods;
    uint64_t flags, cflags;
    Text attr;
    const uint8_t *last_modified_at;
    uint64_t last_modified;
    const uint8_t *kv_store_at;
    Text kv_store;
    const uint8_t *end;
} Binding;

static bool read_path(Rest *rest, Binding *binding)
{
    if (!read_count(rest, &binding->path_count))
        return false;
    binding->path.at = rest->at;
    Text hop;
    for (uint64_t i = 0; i < binding->path_count; i++)
        if (!read_text(rest, &hop))
            return false;
    binding->path.end = rest->at;
    return true;
}

static bool read_q(Rest *rest, Binding *binding)
{
    binding->has_q = rest->at == rest->end || *rest->at != 0xc0;
    if (binding->has_q)
        return read_number(rest, &binding->q);
    rest->at++;
    return true;
}

/* The binding of a row that has one, in what stands behind the lead. */
static bool read_binding(const uint8_t *data, size_t size, Binding *b)
{
    Rest rest = {data, data + size};
    uint64_t bindings, fields;
    if (!read_count(&rest, &bindings) || bindings != 1 || !read_count(&rest, &fields) || fields != FIELDS)
        return false;
    if (!read_text(&rest, &b->aor) || !read_text(&rest, &b->contact) || !read_number(&rest, &b->contact_id))
        return false;
    b->version_at = rest.at;
    if (!read_number(&rest, &b->version) || !read_number(&rest, &b->expires_at))
        return false;
    b->call_id_at = rest.at;
    if (!read_text(&rest, &b->call_id))
        return false;
    b->cseq_at = rest.at;
    if (!read_number(&rest, &b->cseq))
        return false;
    b->q_at = rest.at;
    if (!read_q(&rest, b) || !read_text(&rest, &b->instance) || !read_number(&rest, &b->reg_id) ||
        !read_text(&rest, &b->params) || !read_text(&rest, &b->received) || !read_text(&rest, &b->socket) ||
        !read_text(&rest, &b->flow) || !read_path(&rest, b) || !read_text(&rest, &b->user_agent) ||
        !read_text(&rest, &b->methods) || !read_number(&rest, &b->flags) || !read_number(&rest, &b->cflags) ||
        !read_text(&rest, &b->attr))
        return false;
    b->last_modified_at = rest.at;
    if (!read_number(&rest, &b->last_modified))
        return false;
    b->kv_store_at = rest.at;
    b->end = rest.end;
    return read_text(&rest, &b->kv_store) && rest.at == rest.end;
}

static bool read_row(PyObject *row, const uint8_t **lead, Binding *binding)
{
    if (!PyBytes_CheckExact(row) || PyBytes_GET_SIZE(row) < LEAD)
        return false;
    *lead = (const uint8_t *)PyBytes_AS_STRING(row);
    return read_binding(*lead + LEAD, (size_t)PyBytes_GET_SIZE(row) - LEAD, binding);
}

static uint8_t *put(uint8_t *at, const uint8_t *from, const uint8_t *end)
{
    memcpy(at, from, (size_t)(end - from));
    return at + (end - from);
}

/* A row with this binding, refreshed, without its digest; NULL with an error set. */
static PyObject *rewritten(const uint8_t *data, const Binding *b, const uint64_t bucket, uint64_t version,
                           uint64_t expires_at, uint64_t cseq, uint64_t last_modified)
{
    size_t size = (size_t)(b->version_at - data) + width_of(version) + width_of(expires_at) +
                  (size_t)(b->cseq_at - b->call_id_at) + width_of(cseq) + (size_t)(b->last_modified_at - b->q_at) +
                  width_of(last_modified) + (size_t)(b->end - b->kv_store_at);
    PyObject *row = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size + LEAD);
    if (row == NULL)
        return NULL;
    uint8_t *lead = (uint8_t *)PyBytes_AS_STRING(row);
    uint8_t *at = put(lead + LEAD, data, b->version_at);
    at = put_number(put_number(at, version), expires_at);
    at = put_number(put(at, b->call_id_at, b->cseq_at), cseq);
    at = put_number(put(at, b->q_at, b->last_modified_at), last_modified);
    put(at, b->kv_store_at, b->end);
    put_times(lead, expires_at, bucket);
    return row;
}

/* -- what Python asks for ------------------------------------------------------------------------------------------------- */

/* Of each class what is read of its objects: where in them that stands. */
#define REFRESH(_) _(aor) _(version) _(cseq) _(expires) _(jitter)
#define REGISTER(_)                                                                                                    \
    _(aor) _(call_id) _(cseq) _(contacts) _(wildcard) _(received) _(socket) _(flow) _(path) _(user_agent) _(methods)     \
    _(flags) _(cflags) _(attr) _(kv_store)
#define CONTACT(_) _(uri) _(expires) _(q) _(instance) _(reg_id) _(params) _(jitter)

typedef struct {
    PyObject *type;
    REFRESH(MEMBER)
} RefreshClass;

typedef struct {
    PyObject *type;
    REGISTER(MEMBER)
} RegisterClass;

typedef struct {
    PyObject *type;
    CONTACT(MEMBER)
} ContactClass;

typedef struct {
    RefreshClass refresh;
    RegisterClass request;
    ContactClass contact;
    PyObject *registered, *raw;
} State;

static bool is_equal(PyObject *object, uint64_t value)
{
    uint64_t number;
    return is_number(object, &number) && number == value;
}

static bool is_same(PyObject *object, Text text)
{
    if (object == NULL || !PyUnicode_CheckExact(object))
        return false;
    Py_ssize_t size;
    const char *data = PyUnicode_AsUTF8AndSize(object, &size);
    if (data == NULL) {
        PyErr_Clear(); /* a lone surrogate: no row has one */
        return false;
    }
    return (size_t)size == text.size && memcmp(data, text.at, text.size) == 0;
}

static bool is_path(PyObject *object, const Binding *binding)
{
    if (object == NULL || !PyTuple_CheckExact(object) || (uint64_t)PyTuple_GET_SIZE(object) != binding->path_count)
        return false;
    Rest rest = binding->path;
    Text hop;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(object); i++)
        if (!read_text(&rest, &hop) || !is_same(PyTuple_GET_ITEM(object, i), hop))
            return false;
    return true;
}

/* -- refresh */

/* What a record makes of a row: NULL without an error if the reference is to be asked. */
static PyObject *refreshed(const RefreshClass *class, PyObject *record, PyObject *row, const Moment *moment)
{
    const uint8_t *lead;
    Binding b;
    uint64_t version, cseq, jitter, seconds = moment->default_expires;
    bool asks;
    if (!read_row(row, &lead, &b) || !is_number(at(record, class->version), &version) || version != b.version ||
        !is_number(at(record, class->cseq), &cseq) || cseq <= b.cseq || cseq > LARGEST ||
        !is_optional_number(at(record, class->expires), &asks, &seconds) || !seconds || seconds > LARGEST ||
        !is_number(at(record, class->jitter), &jitter) || jitter > LARGEST)
        return NULL;
    uint64_t expires_at = moment->time + granted(seconds, jitter, moment) * 1000;
    uint64_t bucket = big(lead + BUCKET, 8);
    if (big(lead + EARLIEST, 8) <= moment->time || expires_at / 1000 < bucket)
        return NULL;
    return rewritten(lead + LEAD, &b, bucket, moment->version, expires_at, cseq, moment->time);
}

static void exchange(Sum *sum, PyObject *row, PyObject *new)
{
    const uint8_t *former = (const uint8_t *)PyBytes_AS_STRING(row), *lead = (const uint8_t *)PyBytes_AS_STRING(new);
    uint64_t low = big(lead + 8, 8), former_low = big(former + 8, 8);
    sum->low += low;
    sum->high += big(lead, 8) + (sum->low < low);
    sum->high -= big(former, 8) + (sum->low < former_low);
    sum->low -= former_low;
}

/* The row of an AOR, the shard that has it, and the row that is to take its place: until then without its digest. */
typedef struct {
    PyObject *shard, *aor, *row, *new, *outcome;
} Made;

static void forget(const Made made[], int count)
{
    for (int i = 0; i < count; i++) {
        Py_DECREF(made[i].aor);
        Py_DECREF(made[i].row);
        Py_XDECREF(made[i].new);
        Py_XDECREF(made[i].outcome);
    }
}

/* Make what a record makes of a row, behind what is made; false, maybe with an error set, if it isn't plain, or not yet. */
static bool make_one(State *state, PyObject *shards, PyObject *record, const Moment *moment, PyObject *time, Made made[],
                     int count)
{
    if ((PyObject *)Py_TYPE(record) != state->refresh.type)
        return false;
    PyObject *aor = at(record, state->refresh.aor);
    Py_hash_t hash = aor == NULL ? -1 : PyObject_Hash(aor);
    if (hash == -1)
        return false;
    PyObject *shard = PyTuple_GET_ITEM(shards, (Py_ssize_t)((size_t)hash % (size_t)PyTuple_GET_SIZE(shards)));
    PyObject *row = PyDict_CheckExact(shard) ? PyDict_GetItemWithError(shard, aor) : NULL;
    if (row == NULL)
        return false;
    for (int i = 0; i < count; i++)
        if (made[i].row == row)
            return false; /* it is about the row that is to take the place of this one */
    Made one = {shard, Py_NewRef(aor), Py_NewRef(row), NULL, NULL};
    if ((one.new = refreshed(&state->refresh, record, row, moment)) != NULL)
        one.outcome = outcome(state->registered, state->raw, one.new, time);
    if (one.outcome == NULL) {
        forget(&one, 1);
        return false;
    }
    made[count] = one;
    return true;
}

/* Make what the records from this one on make of rows, and say of how many: those that can be hashed together. */
static int make(State *state, PyObject *shards, PyObject *records, Py_ssize_t first, const Moment *moment, PyObject *time,
                Made made[LANES])
{
    int count = 0;
    while (count < LANES && first + count < PySequence_Fast_GET_SIZE(records)) {
        PyObject *record = Py_NewRef(PySequence_Fast_GET_ITEM(records, first + count));
        bool plain = make_one(state, shards, record, moment, time, made, count);
        Py_DECREF(record);
        if (!plain)
            break;
        count++;
    }
    return count;
}

/* Put what was made in the table; false with an error set if that was done in part. */
static bool replace(const Made made[], int count, PyObject *outcomes, PyObject *replaced, Sum *sum)
{
    PyObject *rows[LANES];
    for (int i = 0; i < count; i++)
        rows[i] = made[i].new;
    put_digests(rows, count);
    for (int i = 0; i < count; i++) {
        const Made *one = &made[i];
        if (replaced != Py_None) {
            PyObject *pair = PyTuple_Pack(2, one->aor, one->row);
            int failed = pair == NULL || PyList_Append(replaced, pair);
            Py_XDECREF(pair);
            if (failed)
                return false;
        }
        if (PyDict_SetItem(one->shard, one->aor, one->new) < 0 || PyList_Append(outcomes, one->outcome) < 0)
            return false;
        exchange(sum, one->row, one->new);
    }
    return true;
}

static PyObject *refresh(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 9) {
        PyErr_SetString(PyExc_TypeError, "refresh takes nine arguments");
        return NULL;
    }
    State *state = PyModule_GetState(module);
    PyObject *shards = args[0], *records = args[1], *outcomes = args[2], *replaced = args[3], *time = args[5];
    Moment moment;
    if (!PyTuple_CheckExact(shards) || (PyTuple_GET_SIZE(shards) & (PyTuple_GET_SIZE(shards) - 1)) ||
        !PyTuple_GET_SIZE(shards) || !(PyTuple_CheckExact(records) || PyList_CheckExact(records)) ||
        !PyList_CheckExact(outcomes) || !(replaced == Py_None || PyList_CheckExact(replaced)) ||
        !is_number(args[4], &moment.version) || !is_number(time, &moment.time) || !is_number(args[6], &moment.default_expires) ||
        !is_number(args[7], &moment.min_expires) || !is_number(args[8], &moment.max_expires)) {
        PyErr_SetString(PyExc_TypeError, "refresh takes shards, records, two lists and five numbers");
        return NULL;
    }
    Sum sum = {0, 0};
    if (moment.time < UINT64_C(1) << 61 && moment.default_expires <= LARGEST && moment.min_expires <= LARGEST &&
        moment.max_expires <= LARGEST)
        while (true) {
            Made made[LANES];
            int count = make(state, shards, records, PyList_GET_SIZE(outcomes), &moment, time, made);
            if (count == 0)
                break;
            PyErr_Clear(); /* the record that it is about comes first in what is made next */
            bool done = replace(made, count, outcomes, replaced, &sum);
            forget(made, count);
            if (!done)
                return NULL;
        }
    if (PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_MemoryError))
        return NULL;
    PyErr_Clear();
    return Py_BuildValue("KK", (unsigned long long)sum.high, (unsigned long long)sum.low);
}

/* -- shortened */

/* Whether a REGISTER with this contact alone says of the binding what stands there, as `registration.shortened` finds. */
static bool says_the_same(const State *state, PyObject *request, PyObject *contact, const Binding *b)
{
    const RegisterClass *in = &state->request;
    const ContactClass *of = &state->contact;
    uint64_t q = 0;
    bool has_q;
    return b->reg_id == 0 && is_equal(at(contact, of->reg_id), 0) && is_same(at(request, in->call_id), b->call_id) &&
           is_same(at(contact, of->uri), b->contact) && is_same(at(request, in->received), b->received) &&
           is_same(at(request, in->user_agent), b->user_agent) && is_same(at(request, in->aor), b->aor) &&
           is_optional_number(at(contact, of->q), &has_q, &q) && has_q == b->has_q && (!has_q || q == b->q) &&
           is_same(at(contact, of->instance), b->instance) && is_same(at(contact, of->params), b->params) &&
           is_same(at(request, in->socket), b->socket) && is_same(at(request, in->flow), b->flow) &&
           is_path(at(request, in->path), b) && is_same(at(request, in->methods), b->methods) &&
           is_equal(at(request, in->flags), b->flags) && is_equal(at(request, in->cflags), b->cflags) &&
           is_same(at(request, in->attr), b->attr) && is_same(at(request, in->kv_store), b->kv_store);
}

static PyObject *shortened(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "shortened takes a row and a REGISTER");
        return NULL;
    }
    State *state = PyModule_GetState(module);
    PyObject *request = args[1];
    const uint8_t *lead;
    Binding b;
    if ((PyObject *)Py_TYPE(request) != state->request.type || !read_row(args[0], &lead, &b))
        Py_RETURN_NONE;
    PyObject *contacts = at(request, state->request.contacts);
    if (contacts == NULL || !PyTuple_CheckExact(contacts) || PyTuple_GET_SIZE(contacts) != 1)
        Py_RETURN_NONE;
    PyObject *contact = PyTuple_GET_ITEM(contacts, 0);
    if ((PyObject *)Py_TYPE(contact) != state->contact.type)
        Py_RETURN_NONE;
    PyObject *expires = at(contact, state->contact.expires), *jitter = at(contact, state->contact.jitter);
    uint64_t cseq, seconds = 1;
    bool asks;
    if (!is_number(at(request, state->request.cseq), &cseq) || cseq <= b.cseq ||
        at(request, state->request.wildcard) != Py_False || !is_optional_number(expires, &asks, &seconds) || !seconds ||
        jitter == NULL || !says_the_same(state, request, contact, &b))
        Py_RETURN_NONE;
    PyObject *version = PyLong_FromUnsignedLongLong(b.version);
    if (version == NULL)
        return NULL;
    PyObject *arguments[] = {at(request, state->request.aor), version, at(request, state->request.cseq), expires, jitter};
    PyObject *made = PyObject_Vectorcall(state->refresh.type, arguments, 5, NULL);
    Py_DECREF(version);
    return made;
}

/* -- load */

static PyObject *load(PyObject *Py_UNUSED(module), PyObject *data)
{
    Binding b;
    if (!PyBytes_CheckExact(data))
        Py_RETURN_NONE;
    size_t size = (size_t)PyBytes_GET_SIZE(data);
    const uint8_t *bytes = (const uint8_t *)PyBytes_AS_STRING(data);
    if (!read_binding(bytes, size, &b) || b.expires_at >= LATEST)
        Py_RETURN_NONE;
    PyObject *row = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size + LEAD);
    if (row == NULL)
        return NULL;
    uint8_t *lead = (uint8_t *)PyBytes_AS_STRING(row);
    memcpy(lead + LEAD, bytes, size);
    put_times(lead, b.expires_at, b.expires_at / 1000);
    put_digests(&row, 1);
    PyObject *aor = PyUnicode_DecodeUTF8((const char *)b.aor.at, (Py_ssize_t)b.aor.size, NULL);
    if (aor == NULL) {
        Py_DECREF(row);
        return NULL;
    }
    return Py_BuildValue("NN", row, aor);
}

/* -- the module ----------------------------------------------------------------------------------------------------------- */

static int execute(PyObject *module)
{
    State *state = PyModule_GetState(module);
    if ((state->refresh.type = taken("sipha.state.entries", "Refresh")) == NULL ||
        (state->request.type = taken("sipha.state.entries", "Register")) == NULL ||
        (state->contact.type = taken("sipha.state.entries", "Contact")) == NULL ||
        (state->registered = taken("sipha.state.outcomes", "Registered")) == NULL ||
        (state->raw = taken("msgspec", "Raw")) == NULL)
        return -1;
#define PLACE(class, name)                                                                                             \
    if ((class.name = place(class.type, #name)) < 0)                                                                   \
        return -1;
#define PLACE_IN_REFRESH(name) PLACE(state->refresh, name)
#define PLACE_IN_REGISTER(name) PLACE(state->request, name)
#define PLACE_IN_CONTACT(name) PLACE(state->contact, name)
    REFRESH(PLACE_IN_REFRESH)
    REGISTER(PLACE_IN_REGISTER)
    CONTACT(PLACE_IN_CONTACT)
    return 0;
}

static int traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->refresh.type);
    Py_VISIT(state->request.type);
    Py_VISIT(state->contact.type);
    Py_VISIT(state->registered);
    Py_VISIT(state->raw);
    return 0;
}

static int clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->refresh.type);
    Py_CLEAR(state->request.type);
    Py_CLEAR(state->contact.type);
    Py_CLEAR(state->registered);
    Py_CLEAR(state->raw);
    return 0;
}

static void release(void *module) { clear(module); }

static PyMethodDef FUNCTIONS[] = {
    {"refresh", (PyCFunction)(void (*)(void))refresh, METH_FASTCALL, NULL},
    {"shortened", (PyCFunction)(void (*)(void))shortened, METH_FASTCALL, NULL},
    {"load", load, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot SLOTS[] = {{Py_mod_exec, execute}, {0, NULL}};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, "sipha.state._row", NULL, sizeof(State), FUNCTIONS, SLOTS, traverse, clear, release,
};

PyMODINIT_FUNC PyInit__row(void) { return PyModuleDef_Init(&MODULE); }
