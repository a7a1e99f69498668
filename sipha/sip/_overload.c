/* REGISTERs by the hundred, of which most are refused: what `sipha.sip.overload` does by `sift_by_pattern` and
 * `refusals_by_pattern`, which are the references, in one pass over the bytes of each.
 */

#include "../kernel.h"

#include <stdint.h>
#include <string.h>

#define WORDS(span, text) starts(span, "" text, sizeof(text) - 1)
#define LONGEST_TAIL 512 /* bytes of what a refusal has besides what it copies */
#define LONGEST_HOST 128 /* bytes of an address that a datagram came from */

/* Bytes of a datagram. */
typedef struct {
    const char *at;
    Py_ssize_t size;
} Span;

enum { VIA, FROM, TO, CALL_ID, CSEQ, COPIED };
static const Span NAMES[COPIED] = {{"Via: ", 5}, {"From: ", 6}, {"To: ", 4}, {"Call-ID: ", 9}, {"CSeq: ", 6}};

static inline bool starts(Span span, const char *text, Py_ssize_t size)
{
    return span.size >= size && memcmp(span.at, text, (size_t)size) == 0;
}

static inline Span from(Span span, Py_ssize_t place) { return (Span){span.at + place, span.size - place}; }

/* Where a text is in a span, or -1. */
static inline Py_ssize_t find(Span span, const char *text, Py_ssize_t size)
{
    const char *found = memmem(span.at, (size_t)span.size, text, (size_t)size);
    return found == NULL ? -1 : found - span.at;
}

/* Whether a span begins with letters, or has them anywhere, whatever their case; `letters` are small. */
static inline bool starts_with_letters(Span span, const char *letters, Py_ssize_t size)
{
    if (span.size < size)
        return false;
    for (Py_ssize_t i = 0; i < size; i++) {
        char c = span.at[i];
        if ((c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c) != letters[i])
            return false;
    }
    return true;
}

static bool has_letters(Span span, const char *letters, Py_ssize_t size)
{
    for (; span.size >= size; span = from(span, 1))
        if ((*span.at | ('a' - 'A')) == *letters && starts_with_letters(span, letters, size))
            return true;
    return false;
}

/* The rest behind the next line feed; nothing, at NULL, if there is none. */
static inline Span next_line(Span span)
{
    const char *feed = memchr(span.at, '\n', (size_t)span.size);
    return feed == NULL ? (Span){NULL, 0} : from(span, feed + 1 - span.at);
}

/* A datagram without the empty lines that it may begin with (RFC 3261 §7.5). */
static inline Span message_of(PyObject *datagram)
{
    PyObject *data = PyTuple_GET_ITEM(datagram, 0);
    Span span = {PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)};
    while (span.size > 0 && (*span.at == '\r' || *span.at == '\n'))
        span = from(span, 1);
    return span;
}

static bool has_credentials(Span span)
{
    static const char name[] = "authorization";
    const Py_ssize_t size = sizeof(name) - 1;
    for (Span line = next_line(span); line.at != NULL; line = next_line(line)) {
        if (!starts_with_letters(line, name, size))
            continue;
        Span rest = from(line, size);
        while (rest.size > 0 && (*rest.at == ' ' || *rest.at == '\t'))
            rest = from(rest, 1);
        if (rest.size > 0 && *rest.at == ':')
            return true;
    }
    return false;
}

static bool is_datagram(PyObject *item)
{
    bool is = PyTuple_Check(item) && PyTuple_GET_SIZE(item) == 2 && PyBytes_Check(PyTuple_GET_ITEM(item, 0));
    if (!is)
        PyErr_SetString(PyExc_TypeError, "this is no datagram with its flow");
    return is;
}

/* -- which are refused -------------------------------------------------------------------------------------------- */

typedef struct {
    long before; /* have waited too long, or -1 if those of this priority are all served */
    long late, refused, ignored;
} Tally;

static PyObject *sift(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *datagrams;
    Tally first = {0}, known = {0};
    double credit, earned, most;
    long of, admitted, served = 0;
    if (!PyArg_ParseTuple(args, "O!lld(dd)(ll)", &PyList_Type, &datagrams, &first.before, &known.before, &credit, &earned,
                          &most, &admitted, &of))
        return NULL;
    if (of < 1) {
        PyErr_SetString(PyExc_ValueError, "of none can any be admitted");
        return NULL;
    }
    PyObject *rest = PyList_New(0), *refused = PyList_New(0);
    if (rest == NULL || refused == NULL)
        goto failed;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(datagrams); i++) {
        PyObject *datagram = PyList_GET_ITEM(datagrams, i);
        if (!is_datagram(datagram))
            goto failed;
        Span message = message_of(datagram);
        if (WORDS(message, "REGISTER ")) {
            Tally *tally = has_credentials(message) ? &known : &first;
            if (tally->before >= 0 && (tally->before + ++tally->late) % of >= admitted) {
                if (credit < 1) {
                    tally->ignored++;
                    continue;
                }
                credit -= 1;
                tally->refused++;
                if (PyList_Append(refused, datagram) < 0)
                    goto failed;
                continue;
            }
            served++;
            credit = credit + earned < most ? credit + earned : most;
        }
        if (PyList_Append(rest, datagram) < 0)
            goto failed;
    }
    return Py_BuildValue("NNld(lll)(lll)", rest, refused, served, credit, first.late, first.refused, first.ignored,
                         known.late, known.refused, known.ignored);
failed:
    Py_XDECREF(rest);
    Py_XDECREF(refused);
    return NULL;
}

/* -- how they are refused ----------------------------------------------------------------------------------------- */

static uint32_t CRC[256];

static void prepare_crc(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        CRC[byte] = byte;
        for (int bit = 0; bit < 8; bit++)
            CRC[byte] = (CRC[byte] >> 1) ^ (CRC[byte] & 1 ? 0xEDB88320U : 0);
    }
}

static uint32_t crc(uint32_t sum, Span span)
{
    for (Py_ssize_t i = 0; i < span.size; i++)
        sum = (sum >> 8) ^ CRC[(sum ^ (unsigned char)span.at[i]) & 0xFF];
    return sum;
}

/* The value of a line: up to its end. */
static Span value_of(Span line, Py_ssize_t name)
{
    Span value = from(line, name);
    Py_ssize_t size = 0;
    while (size < value.size && value.at[size] != '\r' && value.at[size] != '\n')
        size++;
    return (Span){value.at, size};
}

/* The lines that a response copies, of a request in which each is once, and none goes on in the next one. */
static bool copied(Span message, Span fields[COPIED])
{
    Py_ssize_t end = find(message, "\r\n\r\n", 4);
    if (!WORDS(message, "REGISTER ") || end < 0)
        return false;
    memset(fields, 0, COPIED * sizeof(Span));
    int found = 0;
    for (Span line = next_line((Span){message.at, end}); line.at != NULL; line = next_line(line)) {
        if (line.size > 0 && (*line.at == ' ' || *line.at == '\t'))
            return false;
        for (int i = 0; i < COPIED; i++) {
            if (!starts(line, NAMES[i].at, NAMES[i].size))
                continue;
            if (fields[i].at != NULL)
                return false;
            fields[i] = value_of(line, NAMES[i].size);
            found++;
            break;
        }
    }
    return found == COPIED;
}

static inline char *put_text(char *to, const char *text, Py_ssize_t size)
{
    memcpy(to, text, (size_t)size);
    return to + size;
}

static char *put_number(char *to, unsigned long number)
{
    char digits[20];
    int size = 0;
    do
        digits[sizeof(digits) - ++size] = (char)('0' + number % 10);
    while ((number /= 10) > 0);
    return put_text(to, digits + sizeof(digits) - size, size);
}

/* Eight digits of the base 16. */
static char *put_mark(char *to, uint32_t mark)
{
    for (int shift = 28; shift >= 0; shift -= 4)
        *to++ = "0123456789abcdef"[mark >> shift & 0xF];
    return to;
}

#define PUT(to, text) put_text(to, "" text, sizeof(text) - 1)

/* The 503; None if a request isn't written as most are; NULL and an exception if that can't be had. */
static PyObject *refusal(Span message, Span host, unsigned long port, unsigned long least, unsigned long spread)
{
    Span fields[COPIED], via;
    if (!copied(message, fields))
        Py_RETURN_NONE;
    via = fields[VIA];
    Py_ssize_t rport = find(via, ";rport", 6), behind = rport + 6;
    if (rport < 0 || (behind < via.size && via.at[behind] != ';') || !WORDS(via, "SIP/2.0/UDP ")
        || memchr(via.at, ',', (size_t)via.size) != NULL || has_letters(via, "received", 8))
        Py_RETURN_NONE;
    uint32_t mark = ~crc(crc(~0U, fields[CALL_ID]), fields[CSEQ]);
    Py_ssize_t room = LONGEST_TAIL + host.size;
    for (int i = 0; i < COPIED; i++)
        room += fields[i].size;
    PyObject *answer = PyBytes_FromStringAndSize(NULL, room);
    if (answer == NULL)
        return NULL;
    char *begin = PyBytes_AS_STRING(answer), *to = begin;
    to = PUT(to, "SIP/2.0 503 Service Unavailable\r\nVia: ");
    to = put_text(to, via.at, rport);
    to = put_number(PUT(to, ";rport="), port);
    to = put_text(to, via.at + behind, via.size - behind);
    to = PUT(to, ";received=");
    to = put_text(to, host.at, host.size);
    to = PUT(to, "\r\nFrom: ");
    to = put_text(to, fields[FROM].at, fields[FROM].size);
    to = PUT(to, "\r\nTo: ");
    to = put_text(to, fields[TO].at, fields[TO].size);
    if (!has_letters(fields[TO], "tag=", 4))
        to = put_mark(PUT(to, ";tag="), mark);
    to = PUT(to, "\r\nCall-ID: ");
    to = put_text(to, fields[CALL_ID].at, fields[CALL_ID].size);
    to = PUT(to, "\r\nCSeq: ");
    to = put_text(to, fields[CSEQ].at, fields[CSEQ].size);
    if (spread > 0)
        to = put_number(PUT(to, "\r\nRetry-After: "), least + mark % spread);
    to = PUT(to, "\r\nContent-Length: 0\r\n\r\n");
    _PyBytes_Resize(&answer, to - begin);
    return answer;
}

static PyObject *refuse(PyObject *datagram, unsigned long least, unsigned long spread)
{
    PyObject *flow, *remote;
    if (!is_datagram(datagram))
        return NULL;
    flow = PyTuple_GET_ITEM(datagram, 1);
    remote = PyTuple_Check(flow) && PyTuple_GET_SIZE(flow) > 2 ? PyTuple_GET_ITEM(flow, 2) : NULL;
    if (remote == NULL || !PyTuple_Check(remote) || PyTuple_GET_SIZE(remote) != 2
        || !PyUnicode_Check(PyTuple_GET_ITEM(remote, 0)) || !PyLong_Check(PyTuple_GET_ITEM(remote, 1))) {
        PyErr_SetString(PyExc_TypeError, "this is no datagram with its flow");
        return NULL;
    }
    Span host;
    host.at = PyUnicode_AsUTF8AndSize(PyTuple_GET_ITEM(remote, 0), &host.size);
    unsigned long port = PyLong_AsUnsignedLong(PyTuple_GET_ITEM(remote, 1));
    if (host.at == NULL || PyErr_Occurred())
        return NULL;
    if (host.size > LONGEST_HOST)
        Py_RETURN_NONE;
    return refusal(message_of(datagram), host, port, least, spread);
}

static PyObject *refusals(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *datagrams;
    long least, spread;
    if (!PyArg_ParseTuple(args, "O!ll", &PyList_Type, &datagrams, &least, &spread))
        return NULL;
    if (least < 0 || spread < 0) {
        PyErr_SetString(PyExc_ValueError, "nobody can come back before now");
        return NULL;
    }
    PyObject *answers = PyList_New(0);
    for (Py_ssize_t i = 0; answers != NULL && i < PyList_GET_SIZE(datagrams); i++) {
        PyObject *answer = refuse(PyList_GET_ITEM(datagrams, i), (unsigned long)least, (unsigned long)spread);
        if (answer == NULL || PyList_Append(answers, answer) < 0)
            Py_CLEAR(answers);
        Py_XDECREF(answer);
    }
    return answers;
}

static PyMethodDef METHODS[] = {
    {"sift", sift, METH_VARARGS, "Part datagrams into those that go on and the REGISTERs that are to be refused."},
    {"refusals", refusals, METH_VARARGS, "Return the 503 to each REGISTER that is written as most are."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot SLOTS[] = {{0, NULL}};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT,
    .m_name = "sipha.sip._overload",
    .m_doc = "REGISTERs by the hundred, of which most are refused.",
    .m_size = 0,
    .m_methods = METHODS,
    .m_slots = SLOTS,
};

PyMODINIT_FUNC PyInit__overload(void)
{
    prepare_crc();
    return PyModuleDef_Init(&MODULE);
}
