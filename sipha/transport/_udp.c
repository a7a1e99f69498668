/* Datagrams by the hundred, without waking threads that wait for the interpreter: those that wait at a socket, taken as
 * `drain_by_calls` does, which is the reference, without a buffer of the longest size for each; and those that go out,
 * as far as nothing is amiss.
 */

#include "../kernel.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <sys/socket.h>

#define LONGEST 65535 /* bytes of a datagram */
#define LONGEST_HOST (INET6_ADDRSTRLEN + 12) /* with a scope */

enum { FLOW, UDP, NO_CONNECTION };
enum { FLOW_FIELDS = 4 };
enum { MOST_TOGETHER = 64 };

typedef union {
    struct sockaddr any;
    struct sockaddr_in ipv4;
    struct sockaddr_in6 ipv6;
} Peer;

/* Host and port as in `flow_address`. */
static PyObject *remote(const Peer *peer)
{
    char host[LONGEST_HOST];
    in_port_t port;
    if (peer->any.sa_family == AF_INET) {
        inet_ntop(AF_INET, &peer->ipv4.sin_addr, host, sizeof(host));
        port = peer->ipv4.sin_port;
    }
    else {
        inet_ntop(AF_INET6, &peer->ipv6.sin6_addr, host, sizeof(host));
        port = peer->ipv6.sin6_port;
        if (peer->ipv6.sin6_scope_id != 0) {
            size_t size = strlen(host);
            PyOS_snprintf(host + size, sizeof(host) - size, "%%%lu", (unsigned long)peer->ipv6.sin6_scope_id);
        }
    }
    PyObject *address = PyTuple_New(2);
    return filled(
        address,
        address != NULL && put(address, 0, PyUnicode_FromString(host)) && put(address, 1, PyLong_FromLong(ntohs(port))));
}

static PyObject *flow(PyObject *bound, PyObject *local, const Peer *peer)
{
    PyObject *made = blank(PyTuple_GET_ITEM(bound, FLOW), FLOW_FIELDS);
    return filled(
        made,
        made != NULL && put(made, 0, Py_NewRef(PyTuple_GET_ITEM(bound, UDP))) && put(made, 1, Py_NewRef(local))
            && put(made, 2, remote(peer)) && put(made, 3, Py_NewRef(PyTuple_GET_ITEM(bound, NO_CONNECTION))));
}

static bool append(PyObject *datagrams, PyObject *bound, PyObject *local, const char *data, Py_ssize_t size, const Peer *peer)
{
    PyObject *pair = PyTuple_New(2);
    pair = filled(
        pair,
        pair != NULL && put(pair, 0, PyBytes_FromStringAndSize(data, size)) && put(pair, 1, flow(bound, local, peer)));
    bool appended = pair != NULL && PyList_Append(datagrams, pair) == 0;
    Py_XDECREF(pair);
    return appended;
}

static long descriptor_of(PyObject *source)
{
    PyObject *number = PyObject_CallMethod(source, "fileno", NULL);
    long descriptor = number == NULL ? -1 : PyLong_AsLong(number);
    Py_XDECREF(number);
    return descriptor;
}

static PyObject *drain(PyObject *bound, PyObject *args)
{
    PyObject *source, *local, *datagrams;
    Py_ssize_t most, left;
    char data[LONGEST];
    if (!PyArg_ParseTuple(args, "OO!O!nn", &source, &PyTuple_Type, &local, &PyList_Type, &datagrams, &most, &left))
        return NULL;
    long descriptor = descriptor_of(source);
    if (descriptor == -1 && PyErr_Occurred())
        return NULL;
    int error = 0;
    while (PyList_GET_SIZE(datagrams) < most && left > 0) {
        Peer peer;
        socklen_t room = sizeof(peer);
        ssize_t size = recvfrom((int)descriptor, data, sizeof(data), MSG_DONTWAIT, &peer.any, &room);
        if (size < 0) {
            if (errno == EINTR)
                continue;
            error = errno;
            break;
        }
        if (peer.any.sa_family != AF_INET && peer.any.sa_family != AF_INET6) {
            error = EAFNOSUPPORT;
            break;
        }
        if (!append(datagrams, bound, local, data, size, &peer))
            return NULL;
        left -= size;
    }
    return Py_BuildValue("in", error, left);
}

static PyMethodDef DRAIN = {"drain", drain, METH_VARARGS, "Take datagrams from a socket."};

static PyObject *drainer(PyObject *Py_UNUSED(module), PyObject *type)
{
    if (!is_named_tuple(type, FLOW_FIELDS)) {
        PyErr_SetString(PyExc_TypeError, "this isn't the class of flows");
        return NULL;
    }
    PyObject *bound = Py_BuildValue("(Osi)", type, "UDP", 0);
    if (bound == NULL)
        return NULL;
    PyObject *function = PyCFunction_New(&DRAIN, bound);
    Py_DECREF(bound);
    return function;
}

/* -- going out ---------------------------------------------------------------------------------------------------- */

/* The kernel's form of a remote address; its size, or 0 if it isn't a literal without a scope, and a port. */
static socklen_t address(PyObject *remote, Peer *peer)
{
    if (!PyTuple_Check(remote) || PyTuple_GET_SIZE(remote) != 2 || !PyUnicode_Check(PyTuple_GET_ITEM(remote, 0))
        || !PyLong_Check(PyTuple_GET_ITEM(remote, 1)))
        return 0;
    Py_ssize_t size;
    const char *host = PyUnicode_AsUTF8AndSize(PyTuple_GET_ITEM(remote, 0), &size);
    if (host == NULL && PyErr_ExceptionMatches(PyExc_UnicodeError))
        PyErr_Clear(); /* it has bytes of a zone that are no text */
    int overflow;
    long port = PyLong_AsLongAndOverflow(PyTuple_GET_ITEM(remote, 1), &overflow);
    if (host == NULL || overflow || strlen(host) != (size_t)size || port < 0 || port > 65535)
        return 0;
    memset(peer, 0, sizeof(*peer));
    if (inet_pton(AF_INET, host, &peer->ipv4.sin_addr) == 1) {
        peer->ipv4.sin_family = AF_INET;
        peer->ipv4.sin_port = htons((in_port_t)port);
        return sizeof(peer->ipv4);
    }
    if (inet_pton(AF_INET6, host, &peer->ipv6.sin6_addr) == 1) {
        peer->ipv6.sin6_family = AF_INET6;
        peer->ipv6.sin6_port = htons((in_port_t)port);
        return sizeof(peer->ipv6);
    }
    return 0;
}

/* Whether it is time yet; true, too, with an exception if that can't be known. */
static bool is_over(PyObject *clock, double until)
{
    PyObject *now = PyObject_CallNoArgs(clock);
    double seconds = now == NULL ? -1.0 : PyFloat_AsDouble(now);
    Py_XDECREF(now);
    return seconds >= until || PyErr_Occurred() != NULL;
}

/* Whether a message goes by a socket of UDP with this address. */
static bool goes_by(PyObject *flow, PyObject *local)
{
    if (!PyTuple_Check(flow) || PyTuple_GET_SIZE(flow) != FLOW_FIELDS)
        return false;
    PyObject *transport = PyTuple_GET_ITEM(flow, 0), *own = PyTuple_GET_ITEM(flow, 1);
    return PyUnicode_Check(transport) && PyUnicode_CompareWithASCIIString(transport, "UDP") == 0
        && (own == local || PyObject_RichCompareBool(own, local, Py_EQ) == 1);
}

/* What is sent by one call of the kernel. */
typedef struct {
    struct mmsghdr messages[MOST_TOGETHER];
    struct iovec parts[MOST_TOGETHER];
    Peer peers[MOST_TOGETHER];
    int count;
} Group;

/* Put some messages from a place on in a group, as far as they can be sent just so; false with an exception if one isn't
 * a message.
 */
static bool gather(Group *group, int together, PyObject *messages, Py_ssize_t place, PyObject *local)
{
    for (group->count = 0; group->count < together && place < PyList_GET_SIZE(messages); group->count++, place++) {
        PyObject *message = PyList_GET_ITEM(messages, place);
        if (!PyTuple_Check(message) || PyTuple_GET_SIZE(message) != 2 || !PyBytes_Check(PyTuple_GET_ITEM(message, 0))) {
            PyErr_SetString(PyExc_TypeError, "this is no message with its flow");
            return false;
        }
        PyObject *data = PyTuple_GET_ITEM(message, 0), *flow = PyTuple_GET_ITEM(message, 1);
        Peer *peer = &group->peers[group->count];
        socklen_t size = goes_by(flow, local) ? address(PyTuple_GET_ITEM(flow, 2), peer) : 0;
        if (PyErr_Occurred())
            return false;
        if (size == 0)
            break;
        struct iovec *part = &group->parts[group->count];
        *part = (struct iovec){PyBytes_AS_STRING(data), (size_t)PyBytes_GET_SIZE(data)};
        group->messages[group->count] = (struct mmsghdr){
            .msg_hdr = {.msg_name = peer, .msg_namelen = size, .msg_iov = part, .msg_iovlen = 1},
        };
    }
    return true;
}

/* Send messages, from a place on, until one of them can't be sent just so; return the place of that one. */
static PyObject *send_many(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *source, *local, *messages, *clock;
    Py_ssize_t place;
    double until;
    int together;
    Group group;
    if (!PyArg_ParseTuple(args, "OO!O!ndOi", &source, &PyTuple_Type, &local, &PyList_Type, &messages, &place, &until,
                          &clock, &together))
        return NULL;
    long descriptor = descriptor_of(source);
    if (descriptor == -1 && PyErr_Occurred())
        return NULL;
    if (place < 0 || together < 1 || together > MOST_TOGETHER) {
        PyErr_SetString(PyExc_ValueError, "no place is before the first, and so many are never sent together");
        return NULL;
    }
    while (place < PyList_GET_SIZE(messages)) {
        bool over = is_over(clock, until);
        if (PyErr_Occurred() || !gather(&group, together, messages, place, local))
            return NULL;
        if (over || group.count == 0)
            break;
        int sent = sendmmsg((int)descriptor, group.messages, (unsigned)group.count, MSG_DONTWAIT);
        if (sent > 0)
            place += sent;
        if (sent < group.count)
            break;
    }
    return PyLong_FromSsize_t(place);
}

static PyMethodDef METHODS[] = {
    {"drainer", drainer, METH_O, "Return what takes datagrams from a socket, with their flows of this class."},
    {"send_many", send_many, METH_VARARGS, "Send messages until one of them can't be sent just so."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot SLOTS[] = {{0, NULL}};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT,
    .m_name = "sipha.transport._udp",
    .m_doc = "Datagrams by the hundred.",
    .m_size = 0,
    .m_methods = METHODS,
    .m_slots = SLOTS,
};

PyMODINIT_FUNC PyInit__udp(void) { return PyModuleDef_Init(&MODULE); }
