/* Bytes written to a file and synced by a thread that never waits for the interpreter's lock: what
 * `sipha.cluster.recorder` does by a thread of the interpreter, which is the reference.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

typedef struct {
    PyObject_HEAD
    PyObject *data; /* of the record under way; NULL if there is none */
    pthread_t thread;
    bool started;
    int bell; /* an eventfd that can be read when the record has ended */
    sem_t given, ended; /* between them what follows is the thread's, else the caller's */
    bool last; /* there will be no more */
    int file;
    off_t offset;
    const char *bytes;
    size_t size;
    int error; /* errno of what failed, or 0 */
    double seconds; /* that the sync took */
} Recorder;

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

/* Write all and sync; errno of what failed, or 0. No signal comes to this thread, and nothing is tried again. */
static int record(int file, off_t offset, const char *bytes, size_t size, double *seconds)
{
    *seconds = 0;
    while (size > 0) {
        ssize_t written = pwrite(file, bytes, size, offset);
        if (written < 0)
            return errno;
        offset += written;
        bytes += written;
        size -= (size_t)written;
    }
    double began = now();
    if (fdatasync(file) != 0)
        return errno;
    *seconds = now() - began;
    return 0;
}

static void *work(void *argument)
{
    Recorder *self = argument;
    for (;;) {
        while (sem_wait(&self->given) != 0)
            continue;
        if (self->last)
            return NULL;
        self->error = record(self->file, self->offset, self->bytes, self->size, &self->seconds);
        eventfd_write(self->bell, 1); /* first: nobody must hear it ring for the next record */
        sem_post(&self->ended);
    }
}

/* Start the thread, to which no signal comes: they are for the one that waits for all else. */
static bool start(Recorder *self)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    int error = pthread_create(&self->thread, NULL, work, self);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    self->started = error == 0;
    if (error != 0) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
    }
    return self->started;
}

static PyObject *begin(PyObject *object, PyObject *args)
{
    Recorder *self = (Recorder *)object;
    PyObject *data;
    int file;
    long long offset;
    if (!PyArg_ParseTuple(args, "iLS", &file, &offset, &data))
        return NULL;
    if (self->data != NULL || self->bell < 0) {
        PyErr_SetString(PyExc_RuntimeError, "another record is under way, or the recorder is closed");
        return NULL;
    }
    if (!self->started && !start(self))
        return NULL;
    self->data = Py_NewRef(data);
    self->file = file;
    self->offset = (off_t)offset;
    self->bytes = PyBytes_AS_STRING(data);
    self->size = (size_t)PyBytes_GET_SIZE(data);
    sem_post(&self->given);
    Py_RETURN_NONE;
}

/* Wait until the record under way has ended, and silence the bell. */
static void await_end(Recorder *self)
{
    if (sem_trywait(&self->ended) != 0) {
        Py_BEGIN_ALLOW_THREADS
        while (sem_wait(&self->ended) != 0)
            continue;
        Py_END_ALLOW_THREADS
    }
    eventfd_t rung;
    eventfd_read(self->bell, &rung);
    Py_CLEAR(self->data);
}

static PyObject *take(PyObject *object, PyObject *Py_UNUSED(none))
{
    Recorder *self = (Recorder *)object;
    if (self->data == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "no record is under way");
        return NULL;
    }
    await_end(self);
    return Py_BuildValue("id", self->error, self->seconds);
}

static PyObject *fileno_(PyObject *object, PyObject *Py_UNUSED(none))
{
    return PyLong_FromLong(((Recorder *)object)->bell);
}

static void end(Recorder *self)
{
    if (self->data != NULL)
        await_end(self);
    if (self->started) {
        self->last = true;
        sem_post(&self->given);
        pthread_join(self->thread, NULL);
        self->started = false;
    }
    if (self->bell >= 0)
        close(self->bell);
    self->bell = -1;
}

static PyObject *close_(PyObject *object, PyObject *Py_UNUSED(none))
{
    end((Recorder *)object);
    Py_RETURN_NONE;
}

static PyObject *make(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "", names))
        return NULL;
    Recorder *self = (Recorder *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    sem_init(&self->given, 0, 0); /* which fails for larger values alone */
    sem_init(&self->ended, 0, 0);
    self->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (self->bell < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static void dealloc(PyObject *object)
{
    Recorder *self = (Recorder *)object;
    PyTypeObject *type = Py_TYPE(object);
    end(self);
    sem_destroy(&self->ended);
    sem_destroy(&self->given);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyMethodDef RECORDER_METHODS[] = {
    {"begin", begin, METH_VARARGS, "Write bytes at an offset of a file and sync it; no other record may be under way."},
    {"take", take, METH_NOARGS, "Wait until the record has ended: errno or 0, and the seconds that the sync took."},
    {"fileno", fileno_, METH_NOARGS, "What can be read when the record has ended."},
    {"close", close_, METH_NOARGS, "End, after the record under way."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot RECORDER_SLOTS[] = {
    {Py_tp_new, make},
    {Py_tp_dealloc, dealloc},
    {Py_tp_methods, RECORDER_METHODS},
    {0, NULL},
};

static PyType_Spec RECORDER = {
    .name = "sipha.cluster._recorder.Recorder",
    .basicsize = sizeof(Recorder),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = RECORDER_SLOTS,
};

static int fill(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&RECORDER);
    int failed = type == NULL ? -1 : PyModule_AddObjectRef(module, "Recorder", type);
    Py_XDECREF(type);
    return failed;
}

static PyModuleDef_Slot SLOTS[] = {{Py_mod_exec, fill}, {0, NULL}};

static struct PyModuleDef MODULE = {
    PyModuleDef_HEAD_INIT,
    .m_name = "sipha.cluster._recorder",
    .m_doc = "Bytes written to a file and synced by a thread that never waits for the interpreter's lock.",
    .m_size = 0,
    .m_slots = SLOTS,
};

PyMODINIT_FUNC PyInit__recorder(void) { return PyModuleDef_Init(&MODULE); }
