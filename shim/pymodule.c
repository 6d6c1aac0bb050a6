/* pymodule.c -- the extension module `_redisai`: what Python sees of the shim.
 *
 * An ordinary extension module; it reaches the shim only through the table of functions that interp.c hands over in a capsule. Few and
 * large crossings: a worker takes a whole batch, gets its inputs as buffers, and gives its outputs back in one call. Whatever may wait
 * or copy much drops the GIL first.
 *
 *   Tensor          a view of a C tensor: buffer protocol, DLPack, strings()
 *   Batch           requests that run together; dropped without an answer, it answers with an error
 *   Worker          a thread's place at a run queue: pop() waits for a batch
 *   Opening         a program to open; dropped without an answer, it answers with an error
 *   BackendRequest  a backend to import
 *   Blob            the bytes of a model or script, as a buffer
 *   ReplyError      an error inside a reply of redis.execute
 *   FlowCall        a source to execute or a trigger to answer; dropped without an answer, it answers with an error
 *   FlowEvent       a key has changed, or a stream has grown; dropped, it counts as failed
 *   FlowRun         the end of a run that a flow started
 *   FlowUser        with whose rights a flow runs */
#include "py.h"

#include "ai.h"

static const Shim *shim;

enum { COPY_WITHOUT_GIL = 64 * 1024 }; /* bytes from which dropping the GIL costs less than holding it */

static void copy_bytes(void *to, const void *from, size_t n) {
    if (n < COPY_WITHOUT_GIL) {
        memcpy(to, from, n);
        return;
    }
    Py_BEGIN_ALLOW_THREADS
    memcpy(to, from, n);
    Py_END_ALLOW_THREADS
}

static PyObject *bytes_of(Slice s) { return PyBytes_FromStringAndSize(s.p, (Py_ssize_t)s.n); }

static PyObject *list_of(const Slice *items, int n) {
    PyObject *list = PyList_New(n);
    for (int i = 0; list && i < n; i++) {
        PyObject *b = bytes_of(items[i]);
        if (!b) Py_CLEAR(list);
        else PyList_SET_ITEM(list, i, b);
    }
    return list;
}

/* Names are bytes on the wire; Python sees them as text that gives the same bytes back. */
static PyObject *text_of(Slice s) { return PyUnicode_DecodeUTF8(s.p, (Py_ssize_t)s.n, "surrogateescape"); }

static PyObject *texts_of(Names names) {
    PyObject *tuple = PyTuple_New(names.n);
    for (int i = 0; tuple && i < names.n; i++) {
        PyObject *t = text_of(names.item[i]);
        if (!t) Py_CLEAR(tuple);
        else PyTuple_SET_ITEM(tuple, i, t);
    }
    return tuple;
}

/* Of its key, for log lines; "" when not known. A RENAME frees the name that the program has: this is a copy. */
static PyObject *key_of(Program *p) {
    char *key = shim->program_key(p);
    if (!key) return PyUnicode_FromString("");
    PyObject *name = text_of((Slice){ key, strlen(key) });
    shim->free(key);
    return name;
}

/* ---- Tensor ------------------------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_VAR_HEAD
    Tensor *t;
    Py_ssize_t layout[]; /* shape, then strides, of the buffers made from it: ob_size = 2 * ndim */
} PyTensor;

static PyTypeObject PyTensor_Type;

/* Takes over the reference. */
static PyObject *tensor_wrap(Tensor *t) {
    PyTensor *self = PyObject_NewVar(PyTensor, &PyTensor_Type, 2 * t->ndim);
    if (!self) {
        shim->tensor_unref(t);
        return NULL;
    }
    self->t = t;
    Py_ssize_t stride = shim->dtypes[t->dtype].size;
    for (int i = t->ndim - 1; i >= 0; i--) {
        self->layout[i] = (Py_ssize_t)t->dims[i];
        self->layout[t->ndim + i] = stride;
        stride *= self->layout[i];
    }
    return (PyObject *)self;
}

static void tensor_dealloc(PyTensor *self) {
    shim->tensor_unref(self->t);
    PyObject_Free(self);
}

/* Aligned data; the first time a big tensor is asked for it is copied, without the GIL. */
static char *tensor_data(PyTensor *self) {
    static char nothing[64] __attribute__((aligned(64)));
    Tensor *t = self->t;
    if (t->resident) {
        PyErr_SetString(PyExc_BufferError, "the tensor is in the memory of a device: look it up by its number");
        return NULL;
    }
    if (t->nbytes == 0) return nothing;
    char *data = t->aligned;
    if (data) return data;
    Py_BEGIN_ALLOW_THREADS
    data = shim->tensor_aligned(t);
    Py_END_ALLOW_THREADS
    if (!data) PyErr_NoMemory();
    return data;
}

static int tensor_getbuffer(PyTensor *self, Py_buffer *view, int flags) {
    const DtypeRow *row = &shim->dtypes[self->t->dtype];
    view->obj = NULL;
    if (!row->format) {
        PyErr_SetString(PyExc_BufferError, "a STRING tensor has no buffer: use strings()");
        return -1;
    }
    if (flags & PyBUF_WRITABLE) {
        PyErr_SetString(PyExc_BufferError, "tensors are read-only");
        return -1;
    }
    char *data = tensor_data(self);
    if (!data) return -1;
    *view = (Py_buffer){ .buf = data, .len = (Py_ssize_t)self->t->nbytes, .itemsize = row->size, .readonly = 1, .ndim = self->t->ndim,
                         .format = flags & PyBUF_FORMAT ? (char *)row->format : NULL, .shape = self->layout, .strides = self->layout + self->t->ndim };
    view->obj = Py_NewRef((PyObject *)self);
    return 0;
}
static PyBufferProcs tensor_buffer = { (getbufferproc)tensor_getbuffer, NULL };

/* The DLPack structs, version 0 of the protocol, as every library of today takes it. */
typedef struct {
    void *data;
    struct {
        int32_t type, id;
    } device;
    int32_t ndim;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t *shape, *strides;
    uint64_t byte_offset;
} DLTensor;

typedef struct DLManagedTensor {
    DLTensor tensor;
    void *owner; /* the Tensor */
    void (*deleter)(struct DLManagedTensor *);
} DLManagedTensor;

static void managed_delete(DLManagedTensor *m) {
    shim->tensor_unref(m->owner);
    free(m);
}

static void capsule_delete(PyObject *capsule) {
    if (!PyCapsule_IsValid(capsule, "dltensor")) return; /* consumed: its taker calls the deleter */
    DLManagedTensor *m = PyCapsule_GetPointer(capsule, "dltensor");
    m->deleter(m);
}

static PyObject *tensor_dlpack(PyTensor *self, PyObject *args, PyObject *kwargs) {
    static const uint8_t codes[T_COUNT] = { 2, 2, 0, 0, 0, 0, 1, 1, 6, 0 }; /* float, int, unsigned, bool */
    const DtypeRow *row = &shim->dtypes[self->t->dtype];
    if (!row->format) {
        PyErr_SetString(PyExc_BufferError, "a STRING tensor cannot be exchanged by DLPack");
        return NULL;
    }
    char *data = tensor_data(self);
    DLManagedTensor *m = data ? malloc(sizeof(*m)) : NULL;
    if (!m) return data ? PyErr_NoMemory() : NULL;
    memset(m, 0, sizeof(*m));
    m->tensor.data = data;
    m->tensor.device.type = 1; /* CPU */
    m->tensor.ndim = self->t->ndim;
    m->tensor.dtype.code = codes[self->t->dtype];
    m->tensor.dtype.bits = row->bits;
    m->tensor.dtype.lanes = 1;
    m->tensor.shape = self->t->dims; /* no strides: C-contiguous */
    m->owner = shim->tensor_ref(self->t);
    m->deleter = managed_delete;
    PyObject *capsule = PyCapsule_New(m, "dltensor", capsule_delete);
    if (!capsule) m->deleter(m);
    return capsule;
}

static PyObject *tensor_dlpack_device(PyTensor *self, PyObject *unused) { return Py_BuildValue("(ii)", 1, 0); }

static PyObject *tensor_strings(PyTensor *self, PyObject *unused) {
    Tensor *t = self->t;
    if (t->dtype != T_STRING) {
        PyErr_SetString(PyExc_TypeError, "not a STRING tensor");
        return NULL;
    }
    PyObject *list = PyList_New((Py_ssize_t)t->length);
    for (int64_t i = 0; list && i < t->length; i++) {
        uint64_t end = i + 1 < t->length ? t->offsets[i + 1] : t->nbytes;
        PyObject *item = PyBytes_FromStringAndSize(t->bytes + t->offsets[i], (Py_ssize_t)(end - t->offsets[i] - 1));
        if (!item) Py_CLEAR(list);
        else PyList_SET_ITEM(list, i, item);
    }
    return list;
}

static PyObject *tensor_get_dtype(PyTensor *self, void *unused) { return PyUnicode_FromString(shim->dtypes[self->t->dtype].name); }
static PyObject *tensor_get_resident(PyTensor *self, void *unused) { return PyLong_FromUnsignedLongLong(self->t->resident); }
static PyObject *tensor_get_nbytes(PyTensor *self, void *unused) { return PyLong_FromSize_t(self->t->nbytes); }
static PyObject *tensor_get_shape(PyTensor *self, void *unused) {
    PyObject *shape = PyTuple_New(self->t->ndim);
    for (int i = 0; shape && i < self->t->ndim; i++) {
        PyObject *dim = PyLong_FromLongLong(self->t->dims[i]);
        if (!dim) Py_CLEAR(shape);
        else PyTuple_SET_ITEM(shape, i, dim);
    }
    return shape;
}

static PyMethodDef tensor_methods[] = {
    { "strings", (PyCFunction)tensor_strings, METH_NOARGS, "Elements of a STRING tensor, row-major, without their closing NUL." },
    { "__dlpack__", (PyCFunction)(void (*)(void))tensor_dlpack, METH_VARARGS | METH_KEYWORDS, "A DLPack capsule over the tensor's own memory." },
    { "__dlpack_device__", (PyCFunction)tensor_dlpack_device, METH_NOARGS, "(1, 0): the CPU." },
    { NULL, NULL, 0, NULL },
};
static PyGetSetDef tensor_fields[] = {
    { "dtype", (getter)tensor_get_dtype, NULL, "Name on the wire: FLOAT, INT64, STRING ...", NULL },
    { "shape", (getter)tensor_get_shape, NULL, "Dimensions.", NULL },
    { "nbytes", (getter)tensor_get_nbytes, NULL, "Bytes of data.", NULL },
    { "resident", (getter)tensor_get_resident, NULL, "Number under which a device holds the data; 0 = it is here.", NULL },
    { NULL, NULL, NULL, NULL, NULL },
};
static PyTypeObject PyTensor_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "redisai_py._redisai.Tensor",
    .tp_basicsize = offsetof(PyTensor, layout),
    .tp_itemsize = sizeof(Py_ssize_t),
    .tp_dealloc = (destructor)tensor_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "A read-only view of a tensor.",
    .tp_as_buffer = &tensor_buffer,
    .tp_methods = tensor_methods,
    .tp_getset = tensor_fields,
};

/* ---- outputs: Python -> C -------------------------------------------------------------------------------------------------------- */

/* 64-bit integers have two letters. numpy makes two types of them, equal but not the same, and LiteRT takes only that of 'l', numpy's int64;
 * so 'l' is what we say, and both are what we take. */
static int dtype_of_format(const char *format) {
    if (!format || !format[0] || format[1]) return -1;
    char letter = format[0] == 'q' ? 'l' : format[0];
    for (int d = 0; d < T_COUNT; d++)
        if (shim->dtypes[d].format && shim->dtypes[d].format[0] == letter) return d;
    return -1;
}

static Tensor *new_tensor(Dtype dtype, int ndim, const int64_t *dims, size_t nbytes) {
    const char *error = NULL;
    Tensor *t = shim->tensor_new(dtype, ndim, dims, nbytes, &error);
    if (!t) PyErr_SetString(PyExc_ValueError, error ? error : "ERR cannot make a tensor");
    return t;
}

/* From an object array's flat list of bytes or str. */
static Tensor *tensor_from_strings(PyObject *flat, int ndim, const int64_t *dims) {
    Py_ssize_t n = PyList_GET_SIZE(flat), len;
    size_t total = 0;
    char *p;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *item = PyList_GET_ITEM(flat, i);
        if (PyUnicode_Check(item)) {
            if (!PyUnicode_AsUTF8AndSize(item, &len)) return NULL;
        } else if (PyBytes_AsStringAndSize(item, &p, &len) < 0) {
            return NULL;
        }
        total += (size_t)len + 1;
    }
    Tensor *t = new_tensor(T_STRING, ndim, dims, total);
    if (!t) return NULL;
    char *at = t->aligned;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *item = PyList_GET_ITEM(flat, i);
        const char *bytes = PyUnicode_Check(item) ? PyUnicode_AsUTF8AndSize(item, &len) : PyBytes_AS_STRING(item);
        if (PyBytes_Check(item)) len = PyBytes_GET_SIZE(item);
        memcpy(at, bytes, (size_t)len);
        at[len] = 0;
        /* A NUL inside would split the element; what is behind it could never be read back. */
        size_t kept = strnlen(at, (size_t)len);
        memset(at + kept, 0, (size_t)len - kept);
        t->offsets[i] = (uint64_t)(at - t->aligned);
        at += len + 1;
    }
    return t;
}

static Tensor *tensor_from_object_array(PyObject *array, const Py_buffer *view) {
    int64_t dims[AI_MAX_DIMS];
    for (int i = 0; i < view->ndim; i++) dims[i] = view->shape[i];
    PyObject *ravelled = PyObject_CallMethod(array, "ravel", NULL);
    PyObject *flat = ravelled ? PyObject_CallMethod(ravelled, "tolist", NULL) : NULL;
    Tensor *t = flat ? tensor_from_strings(flat, view->ndim, dims) : NULL;
    Py_XDECREF(ravelled);
    Py_XDECREF(flat);
    return t;
}

static Tensor *tensor_from_buffer(PyObject *object, const Py_buffer *view) {
    int64_t dims[AI_MAX_DIMS];
    if (view->ndim > AI_MAX_DIMS) {
        PyErr_SetString(PyExc_ValueError, "ERR a tensor has more than 64 dimensions");
        return NULL;
    }
    if (view->format && strcmp(view->format, "O") == 0) return tensor_from_object_array(object, view);
    int dtype = dtype_of_format(view->format);
    if (dtype < 0) {
        PyErr_Format(PyExc_ValueError, "ERR a tensor of type %s has no RedisAI dtype", view->format ? view->format : "?");
        return NULL;
    }
    for (int i = 0; i < view->ndim; i++) dims[i] = view->shape[i];
    Tensor *t = new_tensor(dtype, view->ndim, dims, 0);
    if (t && t->nbytes) copy_bytes(t->aligned, view->buf, t->nbytes);
    return t;
}

/* From (number, dtype, shape): data that stays on a device. */
static Tensor *tensor_from_resident(PyObject *tuple) {
    unsigned long long id;
    const char *name;
    PyObject *shape;
    Py_ssize_t length;
    int64_t dims[AI_MAX_DIMS];
    if (!PyArg_ParseTuple(tuple, "KsO!", &id, &name, &PyTuple_Type, &shape)) return NULL;
    int dtype = 0;
    while (dtype < T_COUNT && strcmp(shim->dtypes[dtype].name, name) != 0) dtype++;
    length = PyTuple_GET_SIZE(shape);
    if (!id || dtype == T_COUNT || dtype == T_STRING || length > AI_MAX_DIMS) {
        PyErr_SetString(PyExc_ValueError, "ERR a tensor on a device needs a number, a numeric dtype and a shape");
        return NULL;
    }
    for (Py_ssize_t i = 0; i < length; i++) dims[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape, i));
    if (PyErr_Occurred()) return NULL;
    const char *error = NULL;
    Tensor *t = shim->tensor_resident(dtype, (int)length, dims, id, &error);
    if (!t) PyErr_SetString(PyExc_ValueError, error);
    return t;
}

/* A new reference in *into; NULL there for None. False with an exception. */
static bool tensor_from(PyObject *object, Tensor **into) {
    *into = NULL;
    if (object == Py_None) return true;
    if (Py_TYPE(object) == &PyTensor_Type) {
        *into = shim->tensor_ref(((PyTensor *)object)->t);
        return true;
    }
    if (PyTuple_CheckExact(object)) {
        *into = tensor_from_resident(object);
        return *into != NULL;
    }
    Py_buffer view;
    if (PyObject_GetBuffer(object, &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0) return false;
    *into = tensor_from_buffer(object, &view);
    PyBuffer_Release(&view);
    return *into != NULL;
}

/* ---- replies of redis.execute ------------------------------------------------------------------------------------------------------ */

typedef struct {
    PyObject_HEAD
    PyObject *error_text;
} PyReplyError;
static void reply_error_dealloc(PyReplyError *self) {
    Py_XDECREF(self->error_text);
    PyObject_Free(self);
}
static PyObject *reply_error_get_text(PyReplyError *self, void *unused) { return Py_NewRef(self->error_text); }
static PyGetSetDef reply_error_fields[] = {
    { "error_text", (getter)reply_error_get_text, NULL, "The error's line, without the leading '-'.", NULL },
    { NULL, NULL, NULL, NULL, NULL },
};
static PyTypeObject PyReplyError_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "redisai_py._redisai.ReplyError",
    .tp_basicsize = sizeof(PyReplyError),
    .tp_dealloc = (destructor)reply_error_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "An error in a reply of redis.execute.",
    .tp_getset = reply_error_fields,
};

static PyObject *reply_error_wrap(Slice s) {
    PyReplyError *self = PyObject_New(PyReplyError, &PyReplyError_Type);
    if (!self) return NULL;
    self->error_text = PyUnicode_DecodeUTF8(s.p, (Py_ssize_t)s.n, "replace");
    if (!self->error_text) Py_CLEAR(self);
    return (PyObject *)self;
}

static PyObject *reply_object(const ReplyNode *node) {
    switch (node->kind) {
    case NODE_INTEGER: return PyLong_FromLongLong(node->integer);
    case NODE_DOUBLE: return PyFloat_FromDouble(node->real);
    case NODE_BOOL: return PyBool_FromLong(node->integer);
    case NODE_BULK:
    case NODE_STATUS: return bytes_of(node->bytes);
    case NODE_ERROR: return reply_error_wrap(node->bytes);
    case NODE_ARRAY: {
        PyObject *list = PyList_New(node->n);
        for (int i = 0; list && i < node->n; i++) {
            PyObject *item = reply_object(&node->items[i]);
            if (!item) Py_CLEAR(list);
            else PyList_SET_ITEM(list, i, item);
        }
        return list;
    }
    default: Py_RETURN_NONE;
    }
}

/* ---- Batch -------------------------------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    Batch *b; /* NULL once it was answered */
    int64_t started_us;
} PyBatch;
static PyTypeObject PyBatch_Type;

static PyObject *batch_wrap(Batch *b) {
    PyBatch *self = PyObject_New(PyBatch, &PyBatch_Type);
    if (!self) {
        shim->batch_fail(b, "ERR not enough memory");
        return NULL;
    }
    self->b = b;
    self->started_us = b->started_us;
    return (PyObject *)self;
}

static Batch *batch_take(PyBatch *self) {
    Batch *b = self->b;
    if (!b) PyErr_SetString(PyExc_RuntimeError, "the batch was answered already");
    self->b = NULL;
    return b;
}

static Batch *batch_peek(PyBatch *self) {
    if (!self->b) PyErr_SetString(PyExc_RuntimeError, "the batch was answered already");
    return self->b;
}

static void batch_dealloc(PyBatch *self) {
    if (self->b) shim->batch_fail(self->b, "ERR the request was dropped by an internal error");
    PyObject_Free(self);
}

static PyObject *batch_inputs(PyBatch *self, PyObject *unused) {
    Batch *b = batch_peek(self);
    if (!b) return NULL;
    int n = b->ops[0]->nin;
    PyObject *list = PyList_New(n);
    for (int i = 0; list && i < n; i++) {
        Tensor *t = NULL;
        const char *error;
        if (b->n == 1) {
            error = shim->batch_gather(b, i, &t);
        } else {
            Py_BEGIN_ALLOW_THREADS
            error = shim->batch_gather(b, i, &t);
            Py_END_ALLOW_THREADS
        }
        PyObject *item = error ? NULL : tensor_wrap(t);
        if (error) PyErr_SetString(PyExc_ValueError, error);
        if (!item) Py_CLEAR(list);
        else PyList_SET_ITEM(list, i, item);
    }
    if (b->retry) shim->batch_restart(b);
    self->started_us = shim->now_us();
    return list;
}

static PyObject *batch_finish_(PyBatch *self, PyObject *outputs) {
    int64_t duration = shim->now_us() - self->started_us;
    if (!batch_peek(self)) return NULL;
    PyObject *list = PySequence_Fast(outputs, "outputs must be a sequence");
    if (!list) return NULL;
    Py_ssize_t n = PySequence_Fast_GET_SIZE(list), filled = 0;
    Tensor *few[8], **tensors = n <= 8 ? few : PyMem_Malloc((size_t)n * sizeof(*tensors));
    if (!tensors) {
        Py_DECREF(list);
        return PyErr_NoMemory();
    }
    while (filled < n && tensor_from(PySequence_Fast_GET_ITEM(list, filled), &tensors[filled])) filled++;
    if (filled == n) {
        Batch *b = batch_take(self);
        Py_BEGIN_ALLOW_THREADS
        shim->batch_finish(b, tensors, (int)n, duration);
        Py_END_ALLOW_THREADS
    } else {
        for (Py_ssize_t i = 0; i < filled; i++) shim->tensor_unref(tensors[i]);
    }
    if (tensors != few) PyMem_Free(tensors);
    Py_DECREF(list);
    if (filled < n) return NULL;
    Py_RETURN_NONE;
}

static PyObject *batch_fail_(PyBatch *self, PyObject *message) {
    Py_ssize_t n;
    PyObject *bytes = PyUnicode_AsEncodedString(message, "utf-8", "backslashreplace");
    if (!bytes) return NULL;
    char *line;
    Batch *b = PyBytes_AsStringAndSize(bytes, &line, &n) < 0 ? NULL : batch_take(self);
    if (b) {
        Py_BEGIN_ALLOW_THREADS
        shim->batch_fail(b, line);
        Py_END_ALLOW_THREADS
    }
    Py_DECREF(bytes);
    if (!b) return NULL;
    Py_RETURN_NONE;
}

static PyObject *batch_split_(PyBatch *self, PyObject *unused) {
    Batch *b = batch_take(self);
    if (!b) return NULL;
    int n = b->n;
    Batch **parts = PyMem_Malloc((size_t)n * sizeof(*parts));
    PyObject *list = parts ? PyList_New(n) : NULL;
    if (!list) {
        PyMem_Free(parts);
        shim->batch_fail(b, "ERR not enough memory");
        return PyErr_NoMemory();
    }
    shim->batch_split(b, parts);
    for (int i = 0; i < n; i++) {
        PyObject *item = list ? batch_wrap(parts[i]) : NULL;
        if (!list) shim->batch_fail(parts[i], "ERR not enough memory");
        else if (!item) Py_CLEAR(list);
        else PyList_SET_ITEM(list, i, item);
    }
    PyMem_Free(parts);
    return list;
}

/* Words of a command, and what keeps them alive. */
typedef struct Line {
    PyObject *list;
    Slice *words;
    int n;
} Line;

static void line_free(Line *line) {
    PyMem_Free(line->words);
    Py_CLEAR(line->list);
}

/* From a sequence of bytes, which must not be empty. False with an exception; nothing to free. */
static bool line_from(PyObject *argv, Line *line) {
    *line = (Line){ PySequence_Fast(argv, "argv must be a sequence of bytes"), NULL, 0 };
    if (!line->list) return false;
    line->n = (int)PySequence_Fast_GET_SIZE(line->list);
    line->words = PyMem_Malloc(((size_t)line->n + 1) * sizeof(*line->words));
    bool ok = line->words && line->n > 0;
    if (!ok) PyErr_SetString(PyExc_ValueError, "a command needs a name");
    for (int i = 0; ok && i < line->n; i++) {
        Py_ssize_t len;
        char *p;
        ok = PyBytes_AsStringAndSize(PySequence_Fast_GET_ITEM(line->list, i), &p, &len) == 0;
        if (ok) line->words[i] = (Slice){ p, (size_t)len };
    }
    if (!ok) line_free(line);
    return ok;
}

static PyObject *execute(const Caller *caller, PyObject *argv) {
    Arena arena = { 0 };
    ReplyNode reply;
    Line line;
    if (!line_from(argv, &line)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    shim->redis_execute(caller, line.words, line.n, &arena, &reply);
    Py_END_ALLOW_THREADS
    PyObject *result = reply_object(&reply);
    shim->arena_free(&arena);
    line_free(&line);
    return result;
}

static Caller caller_of(const Job *job) { return (Caller){ job->user, job->db, job->origin }; }

static PyObject *batch_execute(PyBatch *self, PyObject *argv) {
    Batch *b = batch_peek(self);
    if (!b) return NULL;
    Caller caller = caller_of(b->ops[0]->job); /* scripts are never batched */
    return execute(&caller, argv);
}

/* ---- redisAI.model_execute: a model found by key, held while it runs --------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    Program *p;
} PyModel;
static void model_dealloc(PyModel *self) {
    shim->program_unref(self->p);
    PyObject_Free(self);
}
static PyObject *model_get_id(PyModel *self, void *unused) { return PyLong_FromUnsignedLongLong(self->p->id); }
static PyObject *model_get_backend(PyModel *self, void *unused) { return PyUnicode_FromString(shim->backend_names[self->p->backend]); }
static PyObject *model_count(PyModel *self, PyObject *args) {
    long long duration, samples;
    int failed;
    if (!PyArg_ParseTuple(args, "LLp", &duration, &samples, &failed)) return NULL;
    shim->program_count(self->p, duration, samples, failed);
    Py_RETURN_NONE;
}
static PyGetSetDef model_fields[] = {
    { "id", (getter)model_get_id, NULL, "Names its session.", NULL },
    { "backend", (getter)model_get_backend, NULL, "TF, TFLITE, TORCH or ONNX.", NULL },
    { NULL, NULL, NULL, NULL, NULL },
};
static PyMethodDef model_methods[] = {
    { "count", (PyCFunction)model_count, METH_VARARGS, "count(duration_us, samples, failed): one call in AI.INFO." },
    { NULL, NULL, 0, NULL },
};
static PyTypeObject PyModel_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "redisai_py._redisai.Model",
    .tp_basicsize = sizeof(PyModel),
    .tp_dealloc = (destructor)model_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "A reference to a stored model.",
    .tp_getset = model_fields,
    .tp_methods = model_methods,
};

static PyObject *batch_model(PyBatch *self, PyObject *key) {
    Batch *b = batch_peek(self);
    Py_ssize_t n;
    char *p;
    if (!b || PyBytes_AsStringAndSize(key, &p, &n) < 0) return NULL;
    Caller caller = caller_of(b->ops[0]->job);
    const char *error = NULL;
    Program *program;
    Py_BEGIN_ALLOW_THREADS
    program = shim->redis_model(&caller, (Slice){ p, (size_t)n }, &error);
    if (program) error = shim->program_wait_open(program);
    Py_END_ALLOW_THREADS
    PyModel *model = error || !program ? NULL : PyObject_New(PyModel, &PyModel_Type);
    if (error) PyErr_SetString(PyExc_LookupError, error);
    if (model) model->p = program;
    else if (program) shim->program_unref(program);
    return (PyObject *)model;
}

static PyObject *batch_get_program(PyBatch *self, void *unused) {
    Batch *b = batch_peek(self);
    return b ? PyLong_FromUnsignedLongLong(b->program->id) : NULL;
}
static PyObject *batch_get_key(PyBatch *self, void *unused) {
    Batch *b = batch_peek(self);
    return b ? key_of(b->program) : NULL;
}
static PyObject *batch_get_size(PyBatch *self, void *unused) {
    Batch *b = batch_peek(self);
    return b ? PyLong_FromLong(b->n) : NULL;
}
static PyObject *batch_get_rows(PyBatch *self, void *unused) {
    Batch *b = batch_peek(self);
    return b ? PyLong_FromLongLong(b->rows) : NULL;
}
static PyObject *batch_get_n_outputs(PyBatch *self, void *unused) {
    Batch *b = batch_peek(self);
    return b ? PyLong_FromLong(b->ops[0]->nout) : NULL;
}
/* Whether each output may stay on the device. None unless an input or an output of this op concerns a device's memory. */
static PyObject *batch_get_keep(PyBatch *self, void *unused) {
    Batch *b = batch_peek(self);
    if (!b) return NULL;
    const Op *op = b->ops[0];
    const bool *resident = b->n == 1 ? op->job->plan.resident : NULL;
    bool concerned = false;
    for (int i = 0; resident && i < op->nin; i++) concerned |= resident[op->in[i]];
    for (int i = 0; resident && i < op->nout; i++) concerned |= resident[op->out[i]];
    if (!concerned) Py_RETURN_NONE;
    PyObject *keep = PyTuple_New(op->nout);
    for (int i = 0; keep && i < op->nout; i++) PyTuple_SET_ITEM(keep, i, PyBool_FromLong(resident[op->out[i]]));
    return keep;
}
static PyObject *batch_get_function(PyBatch *self, void *unused) {
    Batch *b = batch_peek(self);
    if (!b) return NULL;
    if (b->ops[0]->kind != OP_SCRIPT) Py_RETURN_NONE;
    return text_of(b->ops[0]->function);
}
static PyObject *batch_get_keys(PyBatch *self, void *unused) {
    Batch *b = batch_peek(self);
    return b ? list_of(b->ops[0]->keys, b->ops[0]->nkeys) : NULL;
}
static PyObject *batch_get_args(PyBatch *self, void *unused) {
    Batch *b = batch_peek(self);
    return b ? list_of(b->ops[0]->args, b->ops[0]->nargs) : NULL;
}

static PyMethodDef batch_methods[] = {
    { "inputs", (PyCFunction)batch_inputs, METH_NOARGS, "One Tensor per input, gathered along dim 0. The run's clock starts here." },
    { "finish", (PyCFunction)batch_finish_, METH_O, "finish(outputs): gives every request its rows and answers it." },
    { "fail", (PyCFunction)batch_fail_, METH_O, "fail(text): answers every request with an error." },
    { "split", (PyCFunction)batch_split_, METH_NOARGS, "Batches of one request each; this one is done with." },
    { "execute", (PyCFunction)batch_execute, METH_O, "execute(argv): one Redis command with the caller's rights." },
    { "model", (PyCFunction)batch_model, METH_O, "model(key): the Model under a key, opened. Raises LookupError with the client's text." },
    { NULL, NULL, 0, NULL },
};
static PyGetSetDef batch_fields[] = {
    { "program", (getter)batch_get_program, NULL, "Id of the model or script.", NULL },
    { "key", (getter)batch_get_key, NULL, "Key it was stored under, for log lines.", NULL },
    { "size", (getter)batch_get_size, NULL, "Requests in the batch.", NULL },
    { "rows", (getter)batch_get_rows, NULL, "Rows of dim 0 of all requests; 0 when they are not batched.", NULL },
    { "n_outputs", (getter)batch_get_n_outputs, NULL, "Outputs asked for.", NULL },
    { "keep", (getter)batch_get_keep, NULL, "Which outputs may stay in the device's memory, as (number, dtype, shape); None: nothing to consider.", NULL },
    { "function", (getter)batch_get_function, NULL, "Script function, None for models.", NULL },
    { "keys", (getter)batch_get_keys, NULL, "KEYS of a script call, bytes.", NULL },
    { "args", (getter)batch_get_args, NULL, "ARGS of a script call, bytes.", NULL },
    { NULL, NULL, NULL, NULL, NULL },
};
static PyTypeObject PyBatch_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "redisai_py._redisai.Batch",
    .tp_basicsize = sizeof(PyBatch),
    .tp_dealloc = (destructor)batch_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Requests that run together.",
    .tp_methods = batch_methods,
    .tp_getset = batch_fields,
};

/* ---- Worker ---------------------------------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    RunQueue *q;
    Worker *w;
} PyWorker;

static PyObject *worker_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    unsigned long long queue;
    if (!PyArg_ParseTuple(args, "K", &queue)) return NULL;
    PyWorker *self = (PyWorker *)type->tp_alloc(type, 0);
    if (!self) return NULL;
    pthread_setname_np(pthread_self(), "ai-worker"); /* Python 3.11 names threads for itself only; this is for top and crash reports */
    self->q = (RunQueue *)(uintptr_t)queue;
    self->w = shim->runqueue_attach(self->q, PyThread_get_thread_ident());
    return (PyObject *)self;
}

static PyObject *worker_pop(PyWorker *self, PyObject *unused) {
    Batch *b;
    while (!(b = shim->runqueue_try(self->q, self->w))) {
        bool open;
        Py_BEGIN_ALLOW_THREADS
        open = shim->runqueue_wait(self->q);
        Py_END_ALLOW_THREADS
        if (!open) Py_RETURN_NONE;
    }
    return batch_wrap(b);
}

static PyMethodDef worker_methods[] = {
    { "pop", (PyCFunction)worker_pop, METH_NOARGS, "Waits for a batch; None when the server stops." },
    { NULL, NULL, 0, NULL },
};
static PyTypeObject PyWorker_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "redisai_py._redisai.Worker",
    .tp_basicsize = sizeof(PyWorker),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Worker(queue): this thread's place at a run queue. Make it on the thread that will pop.",
    .tp_new = worker_new,
    .tp_methods = worker_methods,
};

/* ---- Blob --------------------------------------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    Blob *blob; /* a reference */
} PyBlob;
static PyTypeObject PyBlob_Type;

static PyObject *blob_wrap(Blob *b) {
    PyBlob *self = PyObject_New(PyBlob, &PyBlob_Type);
    if (self) self->blob = shim->blob_ref(b);
    return (PyObject *)self;
}

static void blob_dealloc(PyBlob *self) {
    shim->blob_unref(self->blob);
    PyObject_Free(self);
}

static int blob_getbuffer(PyBlob *self, Py_buffer *view, int flags) {
    return PyBuffer_FillInfo(view, (PyObject *)self, self->blob->data, (Py_ssize_t)self->blob->len, 1, flags);
}
static PyBufferProcs blob_buffer = { (getbufferproc)blob_getbuffer, NULL };
static PyTypeObject PyBlob_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "redisai_py._redisai.Blob",
    .tp_basicsize = sizeof(PyBlob),
    .tp_dealloc = (destructor)blob_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "Bytes of a model or script: a read-only buffer, no copy of them.",
    .tp_as_buffer = &blob_buffer,
};

/* ---- Opening, BackendRequest ------------------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    Program *p; /* a reference; NULL once answered */
    Job *job;   /* of a store, or NULL */
} PyOpening;
static PyTypeObject PyOpening_Type;

static PyObject *opening_wrap(Program *p, Job *job) {
    PyOpening *self = PyObject_New(PyOpening, &PyOpening_Type);
    if (!self) {
        shim->loader_failed(p, job, "ERR not enough memory");
        shim->program_unref(p);
        return NULL;
    }
    self->p = p;
    self->job = job;
    return (PyObject *)self;
}

static void opening_answer(PyOpening *self, const char *error, Names inputs, Names outputs) {
    Program *p = self->p;
    self->p = NULL;
    Py_BEGIN_ALLOW_THREADS
    if (error) shim->loader_failed(p, self->job, error);
    else shim->loader_opened(p, self->job, inputs, outputs);
    shim->program_unref(p);
    Py_END_ALLOW_THREADS
}

static void opening_dealloc(PyOpening *self) {
    if (self->p) opening_answer(self, "ERR the value could not be opened by an internal error", (Names){ 0, NULL }, (Names){ 0, NULL });
    PyObject_Free(self);
}

static Program *opening_peek(PyOpening *self) {
    if (!self->p) PyErr_SetString(PyExc_RuntimeError, "the opening was answered already");
    return self->p;
}

static bool names_from(PyObject *sequence, Names *names) {
    PyObject *list = PySequence_Fast(sequence, "names must be a sequence of str");
    if (!list) return false;
    Py_ssize_t n = PySequence_Fast_GET_SIZE(list), done = 0;
    Slice *items = PyMem_Malloc(((size_t)n + 1) * sizeof(*items));
    PyObject *encoded = PyList_New(0);
    for (; items && encoded && done < n; done++) {
        PyObject *b = PyUnicode_AsEncodedString(PySequence_Fast_GET_ITEM(list, done), "utf-8", "surrogateescape");
        if (!b || PyList_Append(encoded, b) < 0) break;
        items[done] = (Slice){ PyBytes_AS_STRING(b), (size_t)PyBytes_GET_SIZE(b) };
        Py_DECREF(b);
    }
    bool ok = items && encoded && done == n;
    if (ok) *names = shim->names_new((int)n, items);
    Py_XDECREF(encoded);
    PyMem_Free(items);
    Py_DECREF(list);
    return ok;
}

static PyObject *opening_opened(PyOpening *self, PyObject *args) {
    PyObject *inputs, *outputs;
    Names in = { 0, NULL }, out = { 0, NULL };
    if (!opening_peek(self) || !PyArg_ParseTuple(args, "OO", &inputs, &outputs)) return NULL;
    if (!names_from(inputs, &in) || !names_from(outputs, &out)) return NULL;
    opening_answer(self, NULL, in, out);
    Py_RETURN_NONE;
}

static PyObject *opening_failed(PyOpening *self, PyObject *message) {
    if (!opening_peek(self)) return NULL;
    PyObject *bytes = PyUnicode_AsEncodedString(message, "utf-8", "backslashreplace");
    if (!bytes) return NULL;
    opening_answer(self, PyBytes_AS_STRING(bytes), (Names){ 0, NULL }, (Names){ 0, NULL });
    Py_DECREF(bytes);
    Py_RETURN_NONE;
}

/* The program's bytes. A store's argument strings are joined here first, without the GIL. */
static Program *opening_with_blob(PyOpening *self) {
    Program *p = opening_peek(self);
    if (!p) return NULL;
    if (self->job) {
        Py_BEGIN_ALLOW_THREADS
        shim->loader_join_blob(self->job);
        Py_END_ALLOW_THREADS
    }
    if (!p->blob) PyErr_NoMemory();
    return p->blob ? p : NULL;
}

static PyObject *opening_get_data(PyOpening *self, void *unused) {
    Program *p = opening_with_blob(self);
    return p ? blob_wrap(p->blob) : NULL;
}

static PyObject *opening_get_blob(PyOpening *self, void *unused) {
    Program *p = opening_with_blob(self);
    if (!p) return NULL;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)p->blob->len);
    if (bytes) copy_bytes(PyBytes_AS_STRING(bytes), p->blob->data, p->blob->len);
    return bytes;
}

#define OPENING_FIELD(field, expression) \
    static PyObject *opening_get_##field(PyOpening *self, void *unused) { \
        Program *p = opening_peek(self); \
        return p ? (expression) : NULL; \
    }
OPENING_FIELD(id, PyLong_FromUnsignedLongLong(p->id))
OPENING_FIELD(is_script, PyBool_FromLong(p->kind == PROGRAM_SCRIPT))
OPENING_FIELD(backend, PyUnicode_FromString(shim->backend_names[p->backend]))
OPENING_FIELD(device, PyUnicode_DecodeUTF8(p->device, (Py_ssize_t)strlen(p->device), "surrogateescape"))
OPENING_FIELD(queue, PyLong_FromUnsignedLongLong((uintptr_t)p->queue))
OPENING_FIELD(key, key_of(p))
OPENING_FIELD(batchsize, PyLong_FromLongLong(p->batchsize))
OPENING_FIELD(inputs, texts_of(p->inputs))
OPENING_FIELD(outputs, texts_of(p->outputs))
OPENING_FIELD(entry_points, texts_of(p->entry_points))

#define OPENING_ROW(field, doc) { #field, (getter)opening_get_##field, NULL, doc, NULL }
static PyGetSetDef opening_fields[] = {
    OPENING_ROW(id, "Names the session; never reused."),
    OPENING_ROW(is_script, "A script, not a model."),
    OPENING_ROW(backend, "TF, TFLITE, TORCH or ONNX."),
    OPENING_ROW(device, "As the client gave it."),
    OPENING_ROW(queue, "Its run queue, for Worker()."),
    OPENING_ROW(key, "Key, for log lines; may be empty."),
    OPENING_ROW(blob, "Model bytes or script source."),
    OPENING_ROW(batchsize, "Rows that run together at most; 0 = no batching."),
    OPENING_ROW(data, "The same as a Blob, which shares the shim's memory."),
    OPENING_ROW(inputs, "Declared input names (TF)."),
    OPENING_ROW(outputs, "Declared output names (TF)."),
    OPENING_ROW(entry_points, "Of a script."),
    { NULL, NULL, NULL, NULL, NULL },
};
static PyMethodDef opening_methods[] = {
    { "opened", (PyCFunction)opening_opened, METH_VARARGS, "opened(inputs, outputs): it runs from now on." },
    { "failed", (PyCFunction)opening_failed, METH_O, "failed(text): what its clients read." },
    { NULL, NULL, 0, NULL },
};
static PyTypeObject PyOpening_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "redisai_py._redisai.Opening",
    .tp_basicsize = sizeof(PyOpening),
    .tp_dealloc = (destructor)opening_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "A model or script to open.",
    .tp_methods = opening_methods,
    .tp_getset = opening_fields,
};

typedef struct {
    PyObject_HEAD
    Backend backend;
    Job *job;
    bool answered;
} PyBackendRequest;
static PyTypeObject PyBackendRequest_Type;

static void backend_answer(PyBackendRequest *self, const char *version) {
    self->answered = true;
    Py_BEGIN_ALLOW_THREADS
    shim->loader_backend_done(self->backend, version, self->job);
    Py_END_ALLOW_THREADS
}
static void backend_dealloc(PyBackendRequest *self) {
    if (!self->answered) backend_answer(self, NULL);
    PyObject_Free(self);
}
static PyObject *backend_done(PyBackendRequest *self, PyObject *version) {
    const char *text_version = version == Py_None ? NULL : PyUnicode_AsUTF8(version);
    if (PyErr_Occurred()) return NULL;
    if (self->answered) {
        PyErr_SetString(PyExc_RuntimeError, "the request was answered already");
        return NULL;
    }
    backend_answer(self, text_version);
    Py_RETURN_NONE;
}
static PyObject *backend_get_name(PyBackendRequest *self, void *unused) { return PyUnicode_FromString(shim->backend_names[self->backend]); }
static PyObject *backend_get_asked(PyBackendRequest *self, void *unused) { return PyBool_FromLong(self->job != NULL); }
static PyGetSetDef backend_fields[] = {
    { "name", (getter)backend_get_name, NULL, "TF, TFLITE, TORCH or ONNX.", NULL },
    { "asked", (getter)backend_get_asked, NULL, "A client waits for the answer.", NULL },
    { NULL, NULL, NULL, NULL, NULL },
};
static PyMethodDef backend_methods[] = {
    { "done", (PyCFunction)backend_done, METH_O, "done(version): it is loaded; done(None): it cannot be." },
    { NULL, NULL, 0, NULL },
};
static PyTypeObject PyBackendRequest_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "redisai_py._redisai.BackendRequest",
    .tp_basicsize = sizeof(PyBackendRequest),
    .tp_dealloc = (destructor)backend_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "A backend to import.",
    .tp_methods = backend_methods,
    .tp_getset = backend_fields,
};

/* ---- flows: users ------------------------------------------------------------------------------------------------------------------------ */

typedef struct {
    PyObject_HEAD
    User *user; /* a reference; NULL = not known */
} PyFlowUser;
static PyTypeObject PyFlowUser_Type;

static PyObject *flow_user_wrap(User *user) {
    PyFlowUser *self = PyObject_New(PyFlowUser, &PyFlowUser_Type);
    if (self) self->user = shim->user_ref(user);
    return (PyObject *)self;
}
static void flow_user_dealloc(PyFlowUser *self) {
    shim->user_unref(self->user);
    PyObject_Free(self);
}
static PyObject *flow_user_get_name(PyFlowUser *self, void *unused) {
    if (!self->user) Py_RETURN_NONE;
    return text_of(self->user->name);
}
static PyGetSetDef flow_user_fields[] = {
    { "name", (getter)flow_user_get_name, NULL, "For log lines; None when the server could not tell.", NULL },
    { NULL, NULL, NULL, NULL, NULL },
};
static PyTypeObject PyFlowUser_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "redisai_py._redisai.FlowUser",
    .tp_basicsize = sizeof(PyFlowUser),
    .tp_dealloc = (destructor)flow_user_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "An ACL user, with whose rights a flow runs. Rights are looked up at each command.",
    .tp_getset = flow_user_fields,
};

/* ---- flows: answers, Python -> C ---------------------------------------------------------------------------------------------------------- */

enum { ANSWER_DEPTH = 32 };

static bool node_from(PyObject *value, Arena *arena, ReplyNode *node, int depth);

static bool node_from_text(PyObject *value, Arena *arena, ReplyNode *node, NodeKind kind) {
    PyObject *bytes = PyUnicode_Check(value) ? PyUnicode_AsEncodedString(value, "utf-8", "surrogateescape") : Py_NewRef(value);
    if (!bytes) { /* a lone surrogate that stands for no byte */
        PyErr_Clear();
        bytes = PyUnicode_AsEncodedString(value, "utf-8", "backslashreplace");
    }
    char *p;
    Py_ssize_t n;
    bool ok = bytes && PyBytes_AsStringAndSize(bytes, &p, &n) == 0;
    if (ok) *node = (ReplyNode){ .kind = kind, .bytes = shim->arena_copy(arena, (Slice){ p, (size_t)n }) };
    Py_XDECREF(bytes);
    if (ok && kind == NODE_STATUS)
        for (char *c = (char *)node->bytes.p; *c; c++)
            if (*c == '\r' || *c == '\n') *c = ' ';
    return ok;
}

static bool node_from_str_of(PyObject *value, Arena *arena, ReplyNode *node) {
    PyObject *line = PyObject_Str(value);
    bool ok = line && node_from_text(line, arena, node, NODE_BULK);
    Py_XDECREF(line);
    return ok;
}

static bool node_from_int(PyObject *value, Arena *arena, ReplyNode *node) {
    int overflow;
    node->integer = PyLong_AsLongLongAndOverflow(value, &overflow);
    if (overflow) return node_from_str_of(value, arena, node);
    node->kind = NODE_INTEGER;
    return !PyErr_Occurred();
}

/* ("+", text), ("-", text) */
static bool node_from_pair(PyObject *pair, Arena *arena, ReplyNode *node) {
    const char *sign;
    PyObject *line;
    if (!PyArg_ParseTuple(pair, "sO", &sign, &line)) return false;
    NodeKind kind = strcmp(sign, "+") == 0 ? NODE_STATUS : strcmp(sign, "-") == 0 ? NODE_ERROR : NODE_NULL;
    if (kind != NODE_NULL) return node_from_text(line, arena, node, kind);
    PyErr_SetString(PyExc_ValueError, "a pair in an answer begins with '+' or '-'");
    return false;
}

static bool node_from_list(PyObject *list, Arena *arena, ReplyNode *node, int depth) {
    Py_ssize_t n = PyList_GET_SIZE(list);
    if (depth == ANSWER_DEPTH || n > INT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "an answer nests too deep");
        return false;
    }
    node->kind = NODE_ARRAY;
    node->n = (int)n;
    node->items = shim->arena_alloc(arena, (size_t)n * sizeof(*node->items));
    for (Py_ssize_t i = 0; i < n; i++) { /* str() of an element may shorten the list */
        PyObject *item = PyList_GetItem(list, i);
        if (!item) return false;
        Py_INCREF(item);
        bool ok = node_from(item, arena, &node->items[i], depth + 1);
        Py_DECREF(item);
        if (!ok) return false;
    }
    return true;
}

static bool node_from(PyObject *value, Arena *arena, ReplyNode *node, int depth) {
    *node = (ReplyNode){ .kind = NODE_NULL };
    if (value == Py_None) return true;
    if (PyLong_Check(value)) return node_from_int(value, arena, node);
    if (PyFloat_Check(value)) return node_from_str_of(value, arena, node);
    if (PyUnicode_Check(value) || PyBytes_Check(value)) return node_from_text(value, arena, node, NODE_BULK);
    if (PyTuple_Check(value)) return node_from_pair(value, arena, node);
    if (PyList_Check(value)) return node_from_list(value, arena, node, depth);
    PyErr_Format(PyExc_TypeError, "an answer cannot hold %.100s", Py_TYPE(value)->tp_name);
    return false;
}

/* ---- flows: FlowCall ------------------------------------------------------------------------------------------------------------------------ */

typedef struct {
    PyObject_HEAD
    FlowItem *item; /* NULL once answered */
    PyObject *id;   /* readable also then */
} PyFlowCall;
static PyTypeObject PyFlowCall_Type;

static FlowItem *flow_call_peek(PyFlowCall *self) {
    if (!self->item) PyErr_SetString(PyExc_RuntimeError, "the call was answered already");
    return self->item;
}

static FlowItem *flow_call_take(PyFlowCall *self) {
    FlowItem *item = flow_call_peek(self);
    self->item = NULL;
    return item;
}

static void flow_item_fail(FlowItem *item, const char *error) {
    Py_BEGIN_ALLOW_THREADS
    if (item->kind == ITEM_SOURCE || item->kind == ITEM_TRIGGER) shim->flow_fail(item, error);
    else shim->flow_done(item, error);
    Py_END_ALLOW_THREADS
}

static void flow_call_dealloc(PyFlowCall *self) {
    if (self->item) flow_item_fail(self->item, "ERR the flow was dropped by an internal error");
    Py_XDECREF(self->id);
    PyObject_Free(self);
}

static PyObject *flow_call_reply(PyFlowCall *self, PyObject *value) {
    Arena arena = { 0 };
    FlowItem *item = flow_call_peek(self);
    if (!item) return NULL;
    if (item->kind == ITEM_DROP) Py_RETURN_TRUE;
    ReplyNode *node = shim->arena_alloc(&arena, sizeof(*node));
    if (!node_from(value, &arena, node, 0)) {
        shim->arena_free(&arena);
        return NULL;
    }
    if (!(item = flow_call_take(self))) { /* answered by another thread meanwhile, in str() of an element */
        shim->arena_free(&arena);
        return NULL;
    }
    bool counts;
    Py_BEGIN_ALLOW_THREADS
    counts = shim->flow_reply(item, arena, node);
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(counts);
}

static PyObject *flow_call_fail(PyFlowCall *self, PyObject *message) {
    if (!flow_call_peek(self)) return NULL;
    if (self->item->kind == ITEM_DROP) Py_RETURN_NONE;
    PyObject *bytes = PyUnicode_AsEncodedString(message, "utf-8", "backslashreplace");
    if (!bytes) return NULL;
    flow_item_fail(flow_call_take(self), PyBytes_AS_STRING(bytes));
    Py_DECREF(bytes);
    Py_RETURN_NONE;
}

static PyObject *flow_call_get_kind(PyFlowCall *self, void *unused) {
    static const char *const kinds[] = { [ITEM_SOURCE] = "source", [ITEM_TRIGGER] = "trigger", [ITEM_DROP] = "drop" };
    const FlowItem *item = flow_call_peek(self);
    return item ? PyUnicode_FromString(kinds[item->kind]) : NULL;
}
static PyObject *flow_call_get_id(PyFlowCall *self, void *unused) { return Py_NewRef(self->id); }
static PyObject *flow_call_get_source(PyFlowCall *self, void *unused) {
    const FlowItem *item = flow_call_peek(self);
    if (!item) return NULL;
    return item->source ? bytes_of((Slice){ item->source->text->data, item->source->text->len }) : bytes_of((Slice){ "", 0 });
}
static PyObject *flow_call_get_restoring(PyFlowCall *self, void *unused) {
    const FlowItem *item = flow_call_peek(self);
    return item ? PyBool_FromLong(item->restoring) : NULL;
}
static PyObject *flow_call_get_unblocking(PyFlowCall *self, void *unused) {
    const FlowItem *item = flow_call_peek(self);
    return item ? PyBool_FromLong(item->unblocking) : NULL;
}
static PyObject *flow_call_get_argv(PyFlowCall *self, void *unused) {
    const FlowItem *item = flow_call_peek(self);
    if (!item) return NULL;
    return item->source ? list_of(item->source->requirements.item, item->source->requirements.n) : list_of(item->args, item->nargs);
}
static PyObject *flow_call_get_user(PyFlowCall *self, void *unused) {
    const FlowItem *item = flow_call_peek(self);
    return item ? flow_user_wrap(item->source ? item->source->user : item->flow->user) : NULL;
}
static PyObject *flow_call_get_db(PyFlowCall *self, void *unused) {
    const FlowItem *item = flow_call_peek(self);
    return item ? PyLong_FromLong(item->db) : NULL;
}
static PyGetSetDef flow_call_fields[] = {
    { "kind", (getter)flow_call_get_kind, NULL, "source, trigger or drop.", NULL },
    { "id", (getter)flow_call_get_id, NULL, "Of the source (source) or of the registration (trigger, drop).", NULL },
    { "source", (getter)flow_call_get_source, NULL, "Python to execute (source).", NULL },
    { "restoring", (getter)flow_call_get_restoring, NULL, "It was executed before: it registers again and runs nothing.", NULL },
    { "unblocking", (getter)flow_call_get_unblocking, NULL, "Its client has its answer already.", NULL },
    { "argv", (getter)flow_call_get_argv, NULL, "The trigger and its arguments; of a source, its requirements.", NULL },
    { "user", (getter)flow_call_get_user, NULL, "With whose rights it runs.", NULL },
    { "db", (getter)flow_call_get_db, NULL, "The database that its client selected.", NULL },
    { NULL, NULL, NULL, NULL, NULL },
};
static PyMethodDef flow_call_methods[] = {
    { "reply", (PyCFunction)flow_call_reply, METH_O,
      "reply(value): answers, after what a source registered has been entered. False when that was refused, of which the client reads." },
    { "fail", (PyCFunction)flow_call_fail, METH_O, "fail(text): answers with an error; what a source registered is forgotten." },
    { NULL, NULL, 0, NULL },
};
static PyTypeObject PyFlowCall_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "redisai_py._redisai.FlowCall",
    .tp_basicsize = sizeof(PyFlowCall),
    .tp_dealloc = (destructor)flow_call_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "A source to execute, a trigger to answer, or a registration that is gone.",
    .tp_methods = flow_call_methods,
    .tp_getset = flow_call_fields,
};

/* ---- flows: FlowEvent ------------------------------------------------------------------------------------------------------------------------ */

typedef struct {
    PyObject_HEAD
    FlowItem *item; /* NULL once done */
    int db;
    PyObject *kind, *id, *key, *event, *user; /* readable also when it is done */
} PyFlowEvent;
static PyTypeObject PyFlowEvent_Type;

static void flow_event_dealloc(PyFlowEvent *self) {
    if (self->item) flow_item_fail(self->item, "ERR the event was dropped by an internal error");
    Py_XDECREF(self->kind);
    Py_XDECREF(self->id);
    Py_XDECREF(self->key);
    Py_XDECREF(self->event);
    Py_XDECREF(self->user);
    PyObject_Free(self);
}

/* Takes over the item. */
static PyObject *flow_event_wrap(FlowItem *item) {
    PyFlowEvent *self = PyObject_New(PyFlowEvent, &PyFlowEvent_Type);
    if (!self) {
        flow_item_fail(item, "ERR not enough memory");
        return NULL;
    }
    self->item = item;
    self->db = item->db;
    self->kind = PyUnicode_FromString(item->kind == ITEM_STREAM ? "stream" : "event");
    self->id = PyUnicode_FromString(item->flow->id);
    self->key = bytes_of(item->key);
    self->event = text_of(item->event);
    self->user = flow_user_wrap(item->flow->user);
    if (!PyErr_Occurred()) return (PyObject *)self;
    Py_DECREF(self);
    return NULL;
}

static FlowItem *flow_event_peek(PyFlowEvent *self) {
    if (!self->item) PyErr_SetString(PyExc_RuntimeError, "the event was answered already");
    return self->item;
}

static PyObject *flow_event_done(PyFlowEvent *self, PyObject *error) {
    FlowItem *item = flow_event_peek(self);
    if (!item) return NULL;
    PyObject *bytes = error == Py_None ? NULL : PyUnicode_AsEncodedString(error, "utf-8", "backslashreplace");
    if (!bytes && error != Py_None) return NULL;
    self->item = NULL;
    flow_item_fail(item, bytes ? PyBytes_AS_STRING(bytes) : NULL);
    Py_XDECREF(bytes);
    Py_RETURN_NONE;
}

static PyObject *flow_event_get_kind(PyFlowEvent *self, void *unused) { return Py_NewRef(self->kind); }
static PyObject *flow_event_get_id(PyFlowEvent *self, void *unused) { return Py_NewRef(self->id); }
static PyObject *flow_event_get_key(PyFlowEvent *self, void *unused) { return Py_NewRef(self->key); }
static PyObject *flow_event_get_event(PyFlowEvent *self, void *unused) { return Py_NewRef(self->event); }
static PyObject *flow_event_get_db(PyFlowEvent *self, void *unused) { return PyLong_FromLong(self->db); }
static PyObject *flow_event_get_user(PyFlowEvent *self, void *unused) { return Py_NewRef(self->user); }
static PyGetSetDef flow_event_fields[] = {
    { "kind", (getter)flow_event_get_kind, NULL, "event or stream.", NULL },
    { "id", (getter)flow_event_get_id, NULL, "Of the registration.", NULL },
    { "key", (getter)flow_event_get_key, NULL, "What has changed.", NULL },
    { "event", (getter)flow_event_get_event, NULL, "How, in the server's words: hset, del, expired ...", NULL },
    { "db", (getter)flow_event_get_db, NULL, "Where.", NULL },
    { "user", (getter)flow_event_get_user, NULL, "With whose rights the flow runs.", NULL },
    { NULL, NULL, NULL, NULL, NULL },
};
static PyMethodDef flow_event_methods[] = {
    { "done", (PyCFunction)flow_event_done, METH_O, "done(None): it went well; done(text): it failed. Frees its place in the queue." },
    { NULL, NULL, 0, NULL },
};
static PyTypeObject PyFlowEvent_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "redisai_py._redisai.FlowEvent",
    .tp_basicsize = sizeof(PyFlowEvent),
    .tp_dealloc = (destructor)flow_event_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "A key has changed, or a stream has grown.",
    .tp_methods = flow_event_methods,
    .tp_getset = flow_event_fields,
};

/* ---- flows: FlowRun --------------------------------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    unsigned long long token;
    PyObject *error, *outputs;
} PyFlowRun;
static PyTypeObject PyFlowRun_Type;

static void flow_run_dealloc(PyFlowRun *self) {
    Py_XDECREF(self->error);
    Py_XDECREF(self->outputs);
    PyObject_Free(self);
}

static const char *run_error(const Job *job) {
    if (job->timed_out) return "TIMEDOUT";
    for (int i = 0; i < job->plan.nops; i++)
        if (job->plan.ops[i].state == OP_FAILED) return job->plan.ops[i].error;
    return NULL;
}

/* One tensor, or None, for each TENSORGET. */
static PyObject *run_outputs(const Job *job, bool failed) {
    PyObject *list = PyList_New(0);
    for (int i = 0; list && !failed && i < job->plan.nops; i++) {
        const Op *op = &job->plan.ops[i];
        if (op->kind != OP_TENSORGET) continue;
        Tensor *t = job->plan.slots[op->in[0]];
        PyObject *item = t ? tensor_wrap(shim->tensor_ref(t)) : Py_NewRef(Py_None);
        if (!item || PyList_Append(list, item) < 0) Py_CLEAR(list);
        Py_XDECREF(item);
    }
    return list;
}

/* Takes over the item, and its job with it. */
static PyObject *flow_run_wrap(FlowItem *item) {
    Job *job = item->job;
    PyFlowRun *self = PyObject_New(PyFlowRun, &PyFlowRun_Type);
    if (self) {
        const char *error = run_error(job);
        self->token = item->token;
        self->error = error ? PyUnicode_DecodeUTF8(error, (Py_ssize_t)strlen(error), "replace") : Py_NewRef(Py_None);
        self->outputs = run_outputs(job, error != NULL);
        if (!self->error || !self->outputs) Py_CLEAR(self);
    }
    Py_BEGIN_ALLOW_THREADS
    shim->job_free(job);
    shim->flow_item_free(item);
    Py_END_ALLOW_THREADS
    return (PyObject *)self;
}

static PyObject *flow_run_get_token(PyFlowRun *self, void *unused) { return PyLong_FromUnsignedLongLong(self->token); }
static PyObject *flow_run_get_error(PyFlowRun *self, void *unused) { return Py_NewRef(self->error); }
static PyObject *flow_run_get_outputs(PyFlowRun *self, void *unused) { return Py_NewRef(self->outputs); }
static PyGetSetDef flow_run_fields[] = {
    { "token", (getter)flow_run_get_token, NULL, "What flow_start returned.", NULL },
    { "error", (getter)flow_run_get_error, NULL, "What went wrong; None: nothing.", NULL },
    { "outputs", (getter)flow_run_get_outputs, NULL, "A Tensor for each TENSORGET, None where there is none; empty after an error.", NULL },
    { NULL, NULL, NULL, NULL, NULL },
};
static PyTypeObject PyFlowRun_Type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "redisai_py._redisai.FlowRun",
    .tp_basicsize = sizeof(PyFlowRun),
    .tp_dealloc = (destructor)flow_run_dealloc,
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "The end of a run that a flow started.",
    .tp_getset = flow_run_fields,
};

/* ---- flows: functions ------------------------------------------------------------------------------------------------------------------------- */

/* Takes over the item. */
static PyObject *flow_item_wrap(FlowItem *item) {
    if (item->kind == ITEM_RUN) return flow_run_wrap(item);
    if (item->kind == ITEM_EVENT || item->kind == ITEM_STREAM) return flow_event_wrap(item);
    PyFlowCall *self = PyObject_New(PyFlowCall, &PyFlowCall_Type);
    PyObject *id = PyUnicode_FromString(item->source ? item->source->id : item->flow->id);
    if (self) *self = (PyFlowCall){ .ob_base = self->ob_base, .item = item, .id = id };
    else flow_item_fail(item, "ERR not enough memory");
    if (self && id) return (PyObject *)self;
    Py_XDECREF(self);
    return NULL;
}

static PyObject *next_flow(PyObject *self, PyObject *unused) {
    static bool named;
    FlowItem *item;
    if (!named) pthread_setname_np(pthread_self(), "ai-flows");
    named = true;
    Py_BEGIN_ALLOW_THREADS
    item = shim->flow_next();
    Py_END_ALLOW_THREADS
    if (!item) Py_RETURN_NONE;
    return flow_item_wrap(item);
}

/* Bytes of a value in a registration's arguments: text as it is, everything else as str() has it. */
static PyObject *argument_bytes(PyObject *value) {
    if (PyBytes_Check(value)) return Py_NewRef(value);
    PyObject *line = PyObject_Str(value);
    PyObject *bytes = line ? PyUnicode_AsEncodedString(line, "utf-8", "surrogateescape") : NULL;
    Py_XDECREF(line);
    return bytes;
}

static bool append_argument(PyObject *words, PyObject *name, PyObject *value) {
    PyObject *bytes[] = { argument_bytes(name), argument_bytes(value) };
    bool ok = bytes[0] && bytes[1] && PyList_Append(words, bytes[0]) == 0 && PyList_Append(words, bytes[1]) == 0;
    Py_XDECREF(bytes[0]);
    Py_XDECREF(bytes[1]);
    return ok;
}

/* name, value, name, value ...: a list repeats its name, None is left out, as is the reader. */
static PyObject *argument_words(PyObject *spec) {
    PyObject *words = PyList_New(0), *name, *value;
    Py_ssize_t at = 0;
    while (words && PyDict_Next(spec, &at, &name, &value)) {
        if (value == Py_None || (PyUnicode_Check(name) && PyUnicode_CompareWithASCIIString(name, "reader") == 0)) continue;
        bool ok = true;
        if (PyList_Check(value))
            for (Py_ssize_t i = 0; ok && i < PyList_GET_SIZE(value); i++) ok = append_argument(words, name, PyList_GET_ITEM(value, i));
        else
            ok = append_argument(words, name, value);
        if (!ok) Py_CLEAR(words);
    }
    return words;
}

static Slice slice_of_bytes(PyObject *bytes) { return (Slice){ PyBytes_AS_STRING(bytes), (size_t)PyBytes_GET_SIZE(bytes) }; }

static bool argument_names(PyObject *words, Names *names) {
    Py_ssize_t n = PyList_GET_SIZE(words);
    Slice *items = PyMem_Malloc(((size_t)n + 1) * sizeof(*items));
    if (!items) return PyErr_NoMemory() != NULL;
    for (Py_ssize_t i = 0; i < n; i++) items[i] = slice_of_bytes(PyList_GET_ITEM(words, i));
    *names = shim->names_new((int)n, items);
    PyMem_Free(items);
    return true;
}

static PyObject *flow_register_(PyObject *self, PyObject *args) {
    PyFlowCall *call;
    PyObject *spec;
    if (!PyArg_ParseTuple(args, "O!O!", &PyFlowCall_Type, &call, &PyDict_Type, &spec)) return NULL;
    PyObject *reader = PyDict_GetItemString(spec, "reader");
    Py_ssize_t n;
    const char *reader_name = reader && PyUnicode_Check(reader) ? PyUnicode_AsUTF8AndSize(reader, &n) : NULL;
    if (!reader_name) {
        if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "a registration needs a reader");
        return NULL;
    }
    Names names = { 0, NULL };
    PyObject *words = argument_words(spec), *id = NULL;
    FlowItem *item = words && argument_names(words, &names) ? flow_call_peek(call) : NULL;
    if (item && item->kind != ITEM_SOURCE) {
        PyErr_SetString(PyExc_RuntimeError, "only a source registers flows");
        item = NULL;
    }
    if (item) {
        const char *error = NULL;
        char *made;
        call->item = NULL; /* ours while the GIL is free: nobody answers meanwhile */
        Py_BEGIN_ALLOW_THREADS
        made = shim->flow_register(item, (Slice){ reader_name, (size_t)n }, names, &error);
        Py_END_ALLOW_THREADS
        call->item = item;
        if (made) id = PyUnicode_FromString(made);
        else PyErr_SetString(PyExc_ValueError, error);
        shim->free(made);
    } else {
        shim->names_free(&names);
    }
    Py_XDECREF(words);
    return id;
}

/* (user, db, argv or commands, ..., origin) */
static Caller caller_from(PyFlowUser *user, int db, const char *origin) { return (Caller){ user->user, db, origin }; }

static PyObject *flow_unregister_(PyObject *self, PyObject *args) {
    const char *id;
    Py_ssize_t n;
    PyFlowUser *user;
    if (!PyArg_ParseTuple(args, "s#O!", &id, &n, &PyFlowUser_Type, &user)) return NULL;
    Caller caller = caller_from(user, 0, NULL);
    const char *error;
    Py_BEGIN_ALLOW_THREADS
    error = shim->flow_unregister(&caller, (Slice){ id, (size_t)n });
    Py_END_ALLOW_THREADS
    if (!error) Py_RETURN_NONE;
    PyErr_SetString(PyExc_ValueError, error);
    return NULL;
}

static PyObject *flow_execute_(PyObject *self, PyObject *args) {
    PyFlowUser *user;
    int db;
    PyObject *argv;
    const char *origin;
    if (!PyArg_ParseTuple(args, "O!iOz", &PyFlowUser_Type, &user, &db, &argv, &origin)) return NULL;
    Caller caller = caller_from(user, db, origin);
    return execute(&caller, argv);
}

static PyObject *transaction(const Caller *caller, const Line *lines, int n) {
    Arena arena = { 0 };
    CommandLine *commands = PyMem_Malloc(((size_t)n + 1) * sizeof(*commands));
    ReplyNode *replies = PyMem_Malloc(((size_t)n + 1) * sizeof(*replies));
    PyObject *list = commands && replies ? PyList_New(n) : PyErr_NoMemory();
    if (list) {
        for (int i = 0; i < n; i++) commands[i] = (CommandLine){ lines[i].words, lines[i].n };
        Py_BEGIN_ALLOW_THREADS
        shim->redis_transaction(caller, commands, n, &arena, replies);
        Py_END_ALLOW_THREADS
    }
    for (int i = 0; list && i < n; i++) {
        PyObject *reply = reply_object(&replies[i]);
        if (!reply) Py_CLEAR(list);
        else PyList_SET_ITEM(list, i, reply);
    }
    shim->arena_free(&arena);
    PyMem_Free(commands);
    PyMem_Free(replies);
    return list;
}

static PyObject *flow_transaction_(PyObject *self, PyObject *args) {
    PyFlowUser *user;
    int db, done = 0;
    PyObject *commands, *result = NULL;
    const char *origin;
    if (!PyArg_ParseTuple(args, "O!iOz", &PyFlowUser_Type, &user, &db, &commands, &origin)) return NULL;
    PyObject *list = PySequence_Fast(commands, "commands must be a sequence");
    if (!list) return NULL;
    int n = (int)PySequence_Fast_GET_SIZE(list);
    Line *lines = PyMem_Malloc(((size_t)n + 1) * sizeof(*lines));
    while (lines && done < n && line_from(PySequence_Fast_GET_ITEM(list, done), &lines[done])) done++;
    Caller caller = caller_from(user, db, origin);
    if (!lines) PyErr_NoMemory();
    else if (done == n) result = transaction(&caller, lines, n);
    for (int i = 0; i < done; i++) line_free(&lines[i]);
    PyMem_Free(lines);
    Py_DECREF(list);
    return result;
}

static PyObject *start(const Caller *caller, const Line *line, Tensor *const *tensors, int n) {
    Arena arena = { 0 };
    const char *error = NULL;
    uint64_t token;
    Py_BEGIN_ALLOW_THREADS
    token = shim->flow_start(caller, line->words, line->n, tensors, n, &arena, &error);
    Py_END_ALLOW_THREADS
    if (!token) PyErr_Format(PyExc_ValueError, "%s", error);
    shim->arena_free(&arena);
    return token ? PyLong_FromUnsignedLongLong(token) : NULL;
}

static PyObject *flow_start_(PyObject *self, PyObject *args) {
    PyFlowUser *user;
    int db, filled = 0;
    PyObject *argv, *given, *token = NULL;
    const char *origin;
    Line line;
    if (!PyArg_ParseTuple(args, "O!iOOz", &PyFlowUser_Type, &user, &db, &argv, &given, &origin)) return NULL;
    PyObject *list = PySequence_Fast(given, "tensors must be a sequence");
    if (!list) return NULL;
    int n = (int)PySequence_Fast_GET_SIZE(list);
    Tensor **tensors = PyMem_Malloc(((size_t)n + 1) * sizeof(*tensors));
    while (tensors && filled < n && tensor_from(PySequence_Fast_GET_ITEM(list, filled), &tensors[filled])) {
        if (!tensors[filled]) break; /* None */
        filled++;
    }
    if (!tensors) PyErr_NoMemory();
    else if (filled < n && !PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "a tensor is missing");
    Caller caller = caller_from(user, db, origin);
    if (!PyErr_Occurred() && line_from(argv, &line)) {
        token = start(&caller, &line, tensors, n);
        line_free(&line);
    }
    for (int i = 0; i < filled; i++) shim->tensor_unref(tensors[i]);
    PyMem_Free(tensors);
    Py_DECREF(list);
    return token;
}

static PyObject *flow_count_(PyObject *self, PyObject *args) {
    const char *id, *error;
    Py_ssize_t n;
    int ok;
    if (!PyArg_ParseTuple(args, "s#pz", &id, &n, &ok, &error)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    shim->flow_count((Slice){ id, (size_t)n }, ok ? NULL : error ? error : "");
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

/* ---- module functions ------------------------------------------------------------------------------------------------------------------- */

static PyObject *attach(PyObject *self, PyObject *capsule) {
    const Shim *table = PyCapsule_GetPointer(capsule, "redisai_py.shim");
    if (!table) return NULL;
    if (table->size != (int)sizeof(Shim)) {
        PyErr_SetString(PyExc_ImportError, "redisai.so and _redisai were not built together: install the package again");
        return NULL;
    }
    shim = table;
    Py_RETURN_NONE;
}

static PyObject *message_object(Message *m) {
    switch (m->kind) {
    case MSG_OPEN: return opening_wrap(m->program, m->job);
    case MSG_CLOSE: return PyLong_FromUnsignedLongLong(m->id);
    case MSG_BACKEND: {
        PyBackendRequest *r = PyObject_New(PyBackendRequest, &PyBackendRequest_Type);
        if (r) {
            r->backend = m->backend;
            r->job = m->job;
            r->answered = false;
        }
        return (PyObject *)r;
    }
    default: Py_RETURN_NONE;
    }
}

static PyObject *next_message(PyObject *self, PyObject *unused) {
    Message *m;
    pthread_setname_np(pthread_self(), "ai-loader");
    Py_BEGIN_ALLOW_THREADS
    m = shim->inbox_pop();
    Py_END_ALLOW_THREADS
    PyObject *object = message_object(m);
    shim->free(m);
    return object;
}

static PyObject *next_overdue(PyObject *self, PyObject *unused) {
    Overdue run;
    pthread_setname_np(pthread_self(), "ai-watchdog");
    for (;;) {
        bool found;
        Py_BEGIN_ALLOW_THREADS
        found = shim->watch_overdue(&run);
        Py_END_ALLOW_THREADS
        if (!found) Py_RETURN_NONE;
        if (shim->watch_still_runs(&run)) break;
        shim->free(run.key); /* it ended while we waited for the GIL */
    }
    PyObject *result = Py_BuildValue("(kKN)", run.thread, (unsigned long long)run.program,
                                     PyUnicode_DecodeUTF8(run.key, (Py_ssize_t)strlen(run.key), "replace"));
    shim->free(run.key);
    return result;
}

static PyObject *released(PyObject *self, PyObject *unused) {
    uint64_t ids[64];
    PyObject *list = PyList_New(0);
    for (int n; list && (n = shim->resident_released(ids, 64));)
        for (int i = 0; list && i < n; i++) {
            PyObject *id = PyLong_FromUnsignedLongLong(ids[i]);
            if (!id || PyList_Append(list, id) < 0) Py_CLEAR(list);
            Py_XDECREF(id);
        }
    return list;
}

static PyObject *queues(PyObject *self, PyObject *unused) {
    PyObject *list = PyList_New(0);
    for (RunQueue *q = shim->runqueue_first(); list && q; q = q->next) {
        PyObject *row = Py_BuildValue("(Ks)", (unsigned long long)(uintptr_t)q, q->device);
        if (!row || PyList_Append(list, row) < 0) Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return list;
}

static PyObject *log_line(PyObject *self, PyObject *args) {
    const char *level, *line;
    if (!PyArg_ParseTuple(args, "ss", &level, &line)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    shim->log(level, line);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *backend_loaded(PyObject *self, PyObject *args) {
    const char *name, *version;
    if (!PyArg_ParseTuple(args, "ss", &name, &version)) return NULL;
    for (int b = 0; b < BACKEND_COUNT; b++)
        if (strcmp(shim->backend_names[b], name) == 0) shim->loader_backend_done(b, version, NULL);
    Py_RETURN_NONE;
}

static PyObject *meter(PyObject *self, PyObject *args) {
    long long bytes, accesses;
    if (!PyArg_ParseTuple(args, "LL", &bytes, &accesses)) return NULL;
    shim->meter(bytes, accesses);
    Py_RETURN_NONE;
}

static PyObject *helpers(PyObject *self, PyObject *args) {
    long long live, started, ended;
    if (!PyArg_ParseTuple(args, "LLL", &live, &started, &ended)) return NULL;
    shim->helpers(live, started, ended);
    Py_RETURN_NONE;
}

static PyObject *sandbox(PyObject *self, PyObject *args) {
    const char *state;
    if (!PyArg_ParseTuple(args, "s", &state)) return NULL;
    shim->sandbox(state);
    Py_RETURN_NONE;
}

static PyObject *settings(PyObject *self, PyObject *unused) {
    const Config *c = shim->config;
    PyObject *eager = PyList_New(0);
    for (int b = 0; eager && b < BACKEND_COUNT; b++) {
        if (!c->eager[b]) continue;
        PyObject *name = PyUnicode_FromString(shim->backend_names[b]);
        if (!name || PyList_Append(eager, name) < 0) Py_CLEAR(eager);
        Py_XDECREF(name);
    }
    if (!eager) return NULL;
    return Py_BuildValue("{s:L,s:L,s:L,s:L,s:L,s:N,s:N,s:N,s:L,s:s,s:s}", "intra_op", (long long)c->intra_op, "inter_op", (long long)c->inter_op, "workers",
                         (long long)c->threads_per_queue, "execution_timeout_ms", (long long)c->model_execution_timeout, "memory_limit",
                         (long long)c->backend_memory_limit * 1000000, "allow_file_ops", PyBool_FromLong(c->allow_file_ops), "eager", eager,
                         "flows", PyBool_FromLong(c->flows), "flows_timeout_ms", (long long)c->flows_timeout, "isolation",
                         shim->isolation_names[c->isolation], "sandbox", shim->sandbox_names[c->sandbox]);
}

static PyMethodDef functions[] = {
    { "attach", attach, METH_O, "attach(capsule): connects this module to the shim. Called once, first." },
    { "next_message", next_message, METH_NOARGS, "Waits for the loader's next task: Opening, BackendRequest, the id of a session to close, or None: stop." },
    { "next_overdue", next_overdue, METH_NOARGS, "Waits for a run past its limit: (thread, program, key), or None when the server stops." },
    { "released", released, METH_NOARGS, "Numbers of tensors on devices that nobody refers to any more." },
    { "queues", queues, METH_NOARGS, "Run queues: [(queue, device)]." },
    { "log", log_line, METH_VARARGS, "log(level, line): a line in the server's log. Levels: debug, verbose, notice, warning." },
    { "backend_loaded", backend_loaded, METH_VARARGS, "backend_loaded(name, version): INFO shows it from now on." },
    { "meter", meter, METH_VARARGS, "meter(bytes, accesses): counts memory of ONNX Runtime." },
    { "helpers", helpers, METH_VARARGS, "helpers(live, started, ended): helper processes, for INFO." },
    { "sandbox", sandbox, METH_VARARGS, "sandbox(state): what INFO says of it." },
    { "settings", settings, METH_NOARGS, "A snapshot of the configuration, as a dict." },
    { "next_flow", next_flow, METH_NOARGS, "Waits for what flows have to do: FlowCall, FlowEvent, FlowRun, or None when the server stops." },
    { "flow_register", flow_register_, METH_VARARGS, "flow_register(call, spec): a flow of the source that `call` executes; its id." },
    { "flow_unregister", flow_unregister_, METH_VARARGS, "flow_unregister(id, user): removes a registration." },
    { "flow_execute", flow_execute_, METH_VARARGS, "flow_execute(user, db, argv, origin): one Redis command with the user's rights." },
    { "flow_transaction", flow_transaction_, METH_VARARGS, "flow_transaction(user, db, commands, origin): commands in one hold of the Redis lock." },
    { "flow_start", flow_start_, METH_VARARGS, "flow_start(user, db, argv, tensors, origin): starts a DAG; the token of its FlowRun." },
    { "flow_count", flow_count_, METH_VARARGS, "flow_count(id, ok, error): how a trigger's run ended." },
    { NULL, NULL, 0, NULL },
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_redisai", .m_doc = "The shim, as Python sees it.", .m_size = -1, .m_methods = functions,
};

PyMODINIT_FUNC PyInit__redisai(void) {
    static struct {
        const char *name;
        PyTypeObject *type;
    } types[] = { { "Tensor", &PyTensor_Type }, { "Batch", &PyBatch_Type }, { "Worker", &PyWorker_Type }, { "Opening", &PyOpening_Type },
                  { "BackendRequest", &PyBackendRequest_Type }, { "Blob", &PyBlob_Type }, { "ReplyError", &PyReplyError_Type }, { "Model", &PyModel_Type },
                  { "FlowCall", &PyFlowCall_Type }, { "FlowEvent", &PyFlowEvent_Type }, { "FlowRun", &PyFlowRun_Type },
                  { "FlowUser", &PyFlowUser_Type } };
    PyObject *module = PyModule_Create(&definition);
    for (size_t i = 0; module && i < sizeof(types) / sizeof(types[0]); i++)
        if (PyType_Ready(types[i].type) < 0 || PyModule_AddObjectRef(module, types[i].name, (PyObject *)types[i].type) < 0) Py_CLEAR(module);
    return module;
}
