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
 *   ReplyError      an error inside a reply of redis.execute */
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

/* argv: a sequence of bytes. */
static PyObject *batch_execute(PyBatch *self, PyObject *argv) {
    Batch *b = batch_peek(self);
    PyObject *list = b ? PySequence_Fast(argv, "argv must be a sequence of bytes") : NULL;
    if (!list) return NULL;
    int n = (int)PySequence_Fast_GET_SIZE(list);
    Slice *words = PyMem_Malloc(((size_t)n + 1) * sizeof(*words));
    PyObject *result = NULL;
    Arena arena = { 0 };
    ReplyNode reply;
    bool ok = words && n > 0;
    if (!ok) PyErr_SetString(PyExc_ValueError, "a command needs a name");
    for (int i = 0; ok && i < n; i++) {
        Py_ssize_t len;
        char *p;
        ok = PyBytes_AsStringAndSize(PySequence_Fast_GET_ITEM(list, i), &p, &len) == 0;
        if (ok) words[i] = (Slice){ p, (size_t)len };
    }
    if (ok) {
        Job *job = b->ops[0]->job; /* scripts are never batched */
        Py_BEGIN_ALLOW_THREADS
        shim->redis_execute(job, words, n, &arena, &reply);
        Py_END_ALLOW_THREADS
        result = reply_object(&reply);
        shim->arena_free(&arena);
    }
    PyMem_Free(words);
    Py_DECREF(list);
    return result;
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
    Job *job = b->ops[0]->job;
    const char *error = NULL;
    Program *program;
    Py_BEGIN_ALLOW_THREADS
    program = shim->redis_model(job, (Slice){ p, (size_t)n }, &error);
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
    const char *key = b ? b->program->key : NULL;
    return b ? PyUnicode_DecodeUTF8(key ? key : "", key ? (Py_ssize_t)strlen(key) : 0, "surrogateescape") : NULL;
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
static PyObject *opening_get_blob(PyOpening *self, void *unused) {
    Program *p = opening_peek(self);
    if (!p) return NULL;
    if (self->job) {
        Py_BEGIN_ALLOW_THREADS
        shim->loader_join_blob(self->job);
        Py_END_ALLOW_THREADS
    }
    if (!p->blob) return PyErr_NoMemory();
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
OPENING_FIELD(key, p->key ? PyUnicode_DecodeUTF8(p->key, (Py_ssize_t)strlen(p->key), "surrogateescape") : PyUnicode_FromString(""))
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
    return Py_BuildValue("{s:L,s:L,s:L,s:L,s:L,s:N,s:N}", "intra_op", (long long)c->intra_op, "inter_op", (long long)c->inter_op, "workers",
                         (long long)c->threads_per_queue, "execution_timeout_ms", (long long)c->model_execution_timeout, "memory_limit",
                         (long long)c->backend_memory_limit * 1000000, "allow_file_ops", PyBool_FromLong(c->allow_file_ops), "eager", eager);
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
    { "settings", settings, METH_NOARGS, "A snapshot of the configuration, as a dict." },
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
                  { "BackendRequest", &PyBackendRequest_Type }, { "ReplyError", &PyReplyError_Type }, { "Model", &PyModel_Type } };
    PyObject *module = PyModule_Create(&definition);
    for (size_t i = 0; module && i < sizeof(types) / sizeof(types[0]); i++)
        if (PyType_Ready(types[i].type) < 0 || PyModule_AddObjectRef(module, types[i].name, (PyObject *)types[i].type) < 0) Py_CLEAR(module);
    return module;
}
