/* The datagrams that wait at a socket, taken at once: what `sipha.transport.udp` does by `drain_by_calls`, which is the
 * reference, without a buffer of the longest size for each, and without waking threads that wait for the interpreter.
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

static PyObject *drain(PyObject *bound, PyObject *args)
{
    PyObject *source, *local, *datagrams;
    Py_ssize_t most, left;
    char data[LONGEST];
    if (!PyArg_ParseTuple(args, "OO!O!nn", &source, &PyTuple_Type, &local, &PyList_Type, &datagrams, &most, &left))
        return NULL;
    PyObject *number = PyObject_CallMethod(source, "fileno", NULL);
    if (number == NULL)
        return NULL;
    long descriptor = PyLong_AsLong(number);
    Py_DECREF(number);
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

static PyMethodDef METHODS[] = {
    {"drainer", drainer, METH_O, "Return what takes datagrams from a socket, with their flows of this class."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot SLOTS[] = {{0, NULL}};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT,
    .m_name = "sipha.transport._drain",
    .m_doc = "The datagrams that wait at a socket, taken at once.",
    .m_size = 0,
    .m_methods = METHODS,
    .m_slots = SLOTS,
};

PyMODINIT_FUNC PyInit__drain(void) { return PyModuleDef_Init(&MODULE); }
