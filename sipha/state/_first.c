/* What the first REGISTERs of phones do to the table, in place of what `sipha.state.registration.first` and
 * `sipha.state.row` do, which are the reference: a row is written of what the record says, without making a Binding.
 *
 * Only an AOR is touched that has no row, nor a tombstone of this Call-ID, by a REGISTER of one contact without reg-id.
 * Of anything else nothing is said, and the reference is asked.
 */

#include "row.h"

/* Of each class what is read of its objects: where in them that stands. */
#define REGISTER(_)                                                                                                    \
    _(aor) _(call_id) _(cseq) _(contacts) _(wildcard) _(received) _(socket) _(flow) _(path) _(user_agent) _(methods)     \
    _(flags) _(cflags) _(attr) _(kv_store)
#define CONTACT(_) _(uri) _(expires) _(q) _(instance) _(reg_id) _(params) _(jitter)

typedef struct {
    PyObject *type;
    REGISTER(MEMBER)
} RegisterClass;

typedef struct {
    PyObject *type;
    CONTACT(MEMBER)
} ContactClass;

typedef struct {
    RegisterClass request;
    ContactClass contact;
    PyObject *registered, *raw;
} State;

/* -- a row of a record -------------------------------------------------------------------------------------------------- */

/* What a record says of a binding. The texts are borrowed from it. */
typedef struct {
    Text aor, contact, call_id, instance, params, received, socket, flow, user_agent, methods, attr, kv_store;
    PyObject *path;
    uint64_t cseq, q, flags, cflags, seconds, jitter;
    bool has_q;
} Said;

static bool is_text(PyObject *object, Text *text)
{
    if (object == NULL || !PyUnicode_CheckExact(object))
        return false;
    Py_ssize_t size;
    const char *data = PyUnicode_AsUTF8AndSize(object, &size);
    if (data == NULL) {
        PyErr_Clear(); /* a lone surrogate */
        return false;
    }
    *text = (Text){(const uint8_t *)data, (size_t)size};
    return (uint64_t)size <= LARGEST;
}

static bool is_path(PyObject *object)
{
    if (object == NULL || !PyTuple_CheckExact(object) || PyTuple_GET_SIZE(object) > 0xffff)
        return false;
    Text hop;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(object); i++)
        if (!is_text(PyTuple_GET_ITEM(object, i), &hop))
            return false;
    return true;
}

/* Whether a REGISTER makes one binding where there is none: what of. */
static bool read_request(const State *state, PyObject *request, const Moment *moment, Said *said)
{
    const RegisterClass *in = &state->request;
    const ContactClass *of = &state->contact;
    PyObject *contacts = at(request, in->contacts);
    if (contacts == NULL || !PyTuple_CheckExact(contacts) || PyTuple_GET_SIZE(contacts) != 1 ||
        at(request, in->wildcard) != Py_False)
        return false;
    PyObject *contact = PyTuple_GET_ITEM(contacts, 0);
    uint64_t reg_id;
    bool asks;
    said->seconds = moment->default_expires;
    said->path = at(request, in->path);
    return (PyObject *)Py_TYPE(contact) == of->type && is_text(at(request, in->aor), &said->aor) &&
           is_text(at(request, in->call_id), &said->call_id) && is_number(at(request, in->cseq), &said->cseq) &&
           is_text(at(request, in->received), &said->received) && is_text(at(request, in->socket), &said->socket) &&
           is_text(at(request, in->flow), &said->flow) && is_path(said->path) &&
           is_text(at(request, in->user_agent), &said->user_agent) && is_text(at(request, in->methods), &said->methods) &&
           is_number(at(request, in->flags), &said->flags) && is_number(at(request, in->cflags), &said->cflags) &&
           is_text(at(request, in->attr), &said->attr) && is_text(at(request, in->kv_store), &said->kv_store) &&
           is_text(at(contact, of->uri), &said->contact) &&
           is_optional_number(at(contact, of->expires), &asks, &said->seconds) && said->seconds &&
           said->seconds <= LARGEST && is_optional_number(at(contact, of->q), &said->has_q, &said->q) &&
           is_text(at(contact, of->instance), &said->instance) && is_number(at(contact, of->reg_id), &reg_id) &&
           reg_id == 0 && is_text(at(contact, of->params), &said->params) &&
           is_number(at(contact, of->jitter), &said->jitter) && said->jitter <= LARGEST;
}

static size_t size_of(Text text)
{
    return text.size + (text.size < 0x20 ? 1 : text.size <= 0xff ? 2 : text.size <= 0xffff ? 3 : 5);
}

static uint8_t *put_text(uint8_t *at, Text text)
{
    size_t head = size_of(text) - text.size;
    if (head == 1)
        *at = (uint8_t)(0xa0 | text.size);
    else {
        *at = head == 2 ? 0xd9 : head == 3 ? 0xda : 0xdb;
        put_big(at + 1, text.size, head - 1);
    }
    memcpy(at + head, text.at, text.size);
    return at + head + text.size;
}

static size_t size_of_path(PyObject *path)
{
    size_t size = PyTuple_GET_SIZE(path) < 0x10 ? 1 : 3;
    Text hop;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(path); i++)
        size += is_text(PyTuple_GET_ITEM(path, i), &hop) ? size_of(hop) : 0;
    return size;
}

static uint8_t *put_path(uint8_t *at, PyObject *path)
{
    Py_ssize_t hops = PyTuple_GET_SIZE(path);
    if (hops < 0x10)
        *at++ = (uint8_t)(0x90 | hops);
    else {
        *at = 0xdc;
        at = put_big(at + 1, (uint64_t)hops, 2);
    }
    Text hop;
    for (Py_ssize_t i = 0; i < hops; i++)
        if (is_text(PyTuple_GET_ITEM(path, i), &hop))
            at = put_text(at, hop);
    return at;
}

/* The row with the binding that is made now, without its digest; NULL with an error set. */
static PyObject *written(const Said *said, uint64_t contact_id, const Moment *moment)
{
    uint64_t expires_at = moment->time + granted(said->seconds, said->jitter, moment) * 1000;
    size_t q = said->has_q ? width_of(said->q) : 1;
    size_t size = 4 + size_of(said->aor) + size_of(said->contact) + width_of(contact_id) + width_of(moment->version) +
                  width_of(expires_at) + size_of(said->call_id) + width_of(said->cseq) + q + size_of(said->instance) + 1 +
                  size_of(said->params) + size_of(said->received) + size_of(said->socket) + size_of(said->flow) +
                  size_of_path(said->path) + size_of(said->user_agent) + size_of(said->methods) + width_of(said->flags) +
                  width_of(said->cflags) + size_of(said->attr) + width_of(moment->time) + size_of(said->kv_store);
    if (size > PY_SSIZE_T_MAX - LEAD)
        return PyErr_NoMemory();
    PyObject *row = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size + LEAD);
    if (row == NULL)
        return NULL;
    uint8_t *lead = (uint8_t *)PyBytes_AS_STRING(row), *at = lead + LEAD;
    *at++ = 0x91; /* one binding */
    *at = 0xdc;
    at = put_big(at + 1, FIELDS, 2);
    at = put_number(put_text(put_text(at, said->aor), said->contact), contact_id);
    at = put_number(put_number(at, moment->version), expires_at);
    at = put_number(put_text(at, said->call_id), said->cseq);
    if (said->has_q)
        at = put_number(at, said->q);
    else
        *at++ = 0xc0;
    at = put_number(put_text(at, said->instance), 0);
    at = put_text(put_text(put_text(put_text(at, said->params), said->received), said->socket), said->flow);
    at = put_text(put_text(put_path(at, said->path), said->user_agent), said->methods);
    at = put_number(put_number(at, said->flags), said->cflags);
    put_text(put_number(put_text(at, said->attr), moment->time), said->kv_store);
    put_times(lead, expires_at, expires_at / 1000);
    return row;
}

/* -- what Python asks for ------------------------------------------------------------------------------------------------- */

/* The dict among shards in which a key is, if it is anywhere: borrowed, NULL with an error set. */
static PyObject *shard_of(PyObject *shards, PyObject *key)
{
    Py_hash_t hash = PyObject_Hash(key);
    if (hash == -1)
        return NULL;
    PyObject *shard = PyTuple_GET_ITEM(shards, (Py_ssize_t)((size_t)hash % (size_t)PyTuple_GET_SIZE(shards)));
    if (!PyDict_CheckExact(shard)) {
        PyErr_SetString(PyExc_TypeError, "a shard is a dict");
        return NULL;
    }
    return shard;
}

/* Whether an AOR has a tombstone of a Call-ID; -1 with an error set. */
static int is_buried(PyObject *tombstones, PyObject *aor, PyObject *call_id)
{
    if (tombstones == Py_None)
        return 0;
    PyObject *key = PyTuple_Pack(2, aor, call_id);
    if (key == NULL)
        return -1;
    PyObject *shard = shard_of(tombstones, key);
    int found = shard == NULL ? -1 : PyDict_Contains(shard, key);
    Py_DECREF(key);
    return found;
}

/* A row that is made, the REGISTER of which it is, and the shard in which it is to be: until then without its digest. */
typedef struct {
    PyObject *shard, *request, *contact_id, *row, *outcome;
} Made;

static void forget(const Made rows[], int count)
{
    for (int i = 0; i < count; i++) {
        Py_DECREF(rows[i].request);
        Py_XDECREF(rows[i].contact_id);
        Py_XDECREF(rows[i].row);
        Py_XDECREF(rows[i].outcome);
    }
}

/* Make one row, behind those made: 1 if that is done, 0 if the record isn't plain, or not yet; -1 with an error set. */
static int make_one(State *state, PyObject *shards, PyObject *tombstones, PyObject *request, PyObject *contact_ids,
                    const Moment *moment, PyObject *time, Made rows[], int count)
{
    Said said;
    if ((PyObject *)Py_TYPE(request) != state->request.type || !read_request(state, request, moment, &said))
        return 0;
    PyObject *aor = at(request, state->request.aor), *shard = shard_of(shards, aor);
    if (shard == NULL)
        return -1;
    for (int i = 0; i < count; i++)
        if (PyUnicode_Compare(at(rows[i].request, state->request.aor), aor) == 0)
            return 0; /* it has a row that isn't in the table yet */
    int known = PyDict_Contains(shard, aor);
    if (known == 0)
        known = is_buried(tombstones, aor, at(request, state->request.call_id));
    if (known)
        return known < 0 ? -1 : 0;
    uint64_t number;
    Made one = {shard, Py_NewRef(request), PyIter_Next(contact_ids), NULL, NULL};
    if (one.contact_id != NULL && is_number(one.contact_id, &number)) {
        if ((one.row = written(&said, number, moment)) != NULL)
            one.outcome = outcome(state->registered, state->raw, one.row, time);
    } else if (!PyErr_Occurred())
        PyErr_SetString(PyExc_TypeError, "an id is a number of 64 bits");
    if (one.outcome == NULL) {
        forget(&one, 1);
        return -1;
    }
    rows[count] = one;
    return 1;
}

/* Make rows of the records from this one on, and say how many: those that are hashed together. An error may be set. */
static int make(State *state, PyObject *shards, PyObject *tombstones, PyObject *records, Py_ssize_t first,
                PyObject *contact_ids, const Moment *moment, PyObject *time, Made rows[LANES])
{
    int count = 0, done = 1;
    while (done == 1 && count < LANES && first + count < PySequence_Fast_GET_SIZE(records)) {
        PyObject *record = Py_NewRef(PySequence_Fast_GET_ITEM(records, first + count));
        done = make_one(state, shards, tombstones, record, contact_ids, moment, time, rows, count);
        Py_DECREF(record);
        count += done == 1;
    }
    return count;
}

/* Put rows in the table; false with an error set if that was done in part. */
static bool add(const Made rows[], int count, Py_ssize_t aor, PyObject *outcomes, PyObject *made, Sum *sum)
{
    PyObject *each[LANES];
    for (int i = 0; i < count; i++)
        each[i] = rows[i].row;
    put_digests(each, count);
    for (int i = 0; i < count; i++) {
        const Made *one = &rows[i];
        PyObject *told = PyTuple_Pack(3, one->request, one->contact_id, one->row);
        int failed = told == NULL || PyDict_SetItem(one->shard, at(one->request, aor), one->row) < 0 ||
                     PyList_Append(made, told) < 0 || PyList_Append(outcomes, one->outcome) < 0;
        Py_XDECREF(told);
        if (failed)
            return false;
        const uint8_t *lead = (const uint8_t *)PyBytes_AS_STRING(one->row);
        uint64_t low = big(lead + 8, 8);
        sum->low += low;
        sum->high += big(lead, 8) + (sum->low < low);
    }
    return true;
}

static bool are_shards(PyObject *object)
{
    return PyTuple_CheckExact(object) && PyTuple_GET_SIZE(object) &&
           !(PyTuple_GET_SIZE(object) & (PyTuple_GET_SIZE(object) - 1));
}

static PyObject *first(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 11) {
        PyErr_SetString(PyExc_TypeError, "first takes eleven arguments");
        return NULL;
    }
    State *state = PyModule_GetState(module);
    PyObject *shards = args[0], *tombstones = args[1], *records = args[2], *outcomes = args[3], *made = args[4],
             *contact_ids = args[5], *time = args[7];
    Moment moment;
    if (!are_shards(shards) || !(tombstones == Py_None || are_shards(tombstones)) ||
        !(PyTuple_CheckExact(records) || PyList_CheckExact(records)) || !PyList_CheckExact(outcomes) ||
        !PyList_CheckExact(made) || !PyIter_Check(contact_ids) || !is_number(args[6], &moment.version) ||
        !is_number(time, &moment.time) || !is_number(args[8], &moment.default_expires) ||
        !is_number(args[9], &moment.min_expires) || !is_number(args[10], &moment.max_expires)) {
        PyErr_SetString(PyExc_TypeError, "first takes shards, records, two lists, ids and five numbers");
        return NULL;
    }
    Sum sum = {0, 0};
    /* An id is the version shifted by 20 bits, and more. */
    if (moment.version < UINT64_C(1) << 43 && moment.time < UINT64_C(1) << 61 && moment.default_expires <= LARGEST &&
        moment.min_expires <= LARGEST && moment.max_expires <= LARGEST)
        while (!PyErr_Occurred()) {
            Made rows[LANES];
            Py_ssize_t next = PyList_GET_SIZE(outcomes);
            int count = make(state, shards, tombstones, records, next, contact_ids, &moment, time, rows);
            if (count == 0)
                break;
            PyObject *type, *value, *traceback; /* of an error about the record after those */
            PyErr_Fetch(&type, &value, &traceback);
            bool done = add(rows, count, state->request.aor, outcomes, made, &sum);
            forget(rows, count);
            if (done)
                PyErr_Restore(type, value, traceback);
            else { /* what is in the table in part counts for more */
                Py_XDECREF(type);
                Py_XDECREF(value);
                Py_XDECREF(traceback);
            }
        }
    if (PyErr_Occurred())
        return NULL;
    return Py_BuildValue("KK", (unsigned long long)sum.high, (unsigned long long)sum.low);
}

/* -- the module ----------------------------------------------------------------------------------------------------------- */

static int execute(PyObject *module)
{
    State *state = PyModule_GetState(module);
    if ((state->request.type = taken("sipha.state.entries", "Register")) == NULL ||
        (state->contact.type = taken("sipha.state.entries", "Contact")) == NULL ||
        (state->registered = taken("sipha.state.outcomes", "Registered")) == NULL ||
        (state->raw = taken("msgspec", "Raw")) == NULL)
        return -1;
#define PLACE(class, name)                                                                                             \
    if ((class.name = place(class.type, #name)) < 0)                                                                   \
        return -1;
#define PLACE_IN_REGISTER(name) PLACE(state->request, name)
#define PLACE_IN_CONTACT(name) PLACE(state->contact, name)
    REGISTER(PLACE_IN_REGISTER)
    CONTACT(PLACE_IN_CONTACT)
    return 0;
}

static int traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->request.type);
    Py_VISIT(state->contact.type);
    Py_VISIT(state->registered);
    Py_VISIT(state->raw);
    return 0;
}

static int clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->request.type);
    Py_CLEAR(state->contact.type);
    Py_CLEAR(state->registered);
    Py_CLEAR(state->raw);
    return 0;
}

static void release(void *module) { clear(module); }

static PyMethodDef FUNCTIONS[] = {
    {"first", (PyCFunction)(void (*)(void))first, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot SLOTS[] = {{Py_mod_exec, execute}, {0, NULL}};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT, "sipha.state._first", NULL, sizeof(State), FUNCTIONS, SLOTS, traverse, clear, release,
};

PyMODINIT_FUNC PyInit__first(void) { return PyModuleDef_Init(&MODULE); }
