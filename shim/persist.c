/* persist.c -- the three data types as Redis stores them: RDB in every encoding ever written, AOF, memory, digest, copies.
 *
 * 1. Bytes always load. Reading checks that a value is well formed, never that it can be used here: a model is opened later, by the
 *    loader. One model for a backend that is not installed must not keep a server from starting.
 * 2. No number that was read is used before it is bounded. A Reader remembers the first thing that was wrong and answers zeros from
 *    then on, so that each decoder reads straight down and has one way out.
 * 3. Saving and rewriting run in a forked child: they read C memory, take no lock and ask no other thread.
 * 4. `free` may run on Redis's lazy-free thread, with no Redis lock: it touches nothing of Redis but its allocator.
 * 5. What is opened when: a dump is opened in the background once it is loaded (persist_open_all), a value that RESTORE or COPY made at
 *    once, a replica's values at their first use or when it becomes a master. */
#include "ai.h"

#include <stdio.h>

RedisModuleType *ai_tensor_type, *ai_model_type, *ai_script_type;

enum {
    MAX_NAMES = 65536,     /* inputs, outputs or entry points of one program; an attacker's count ends here */
    EFFORT_UNIT = 1 << 16, /* bytes that count as one unit of work to free; Redis frees values of more than 64 units in the background */
};

/* ---- reading -------------------------------------------------------------------------------------------------------- */

typedef struct Reader {
    RedisModuleIO *io;
    const char *wrong; /* the first thing that was wrong, or NULL */
} Reader;

static const char short_read[] = "short read";

static void refuse(Reader *r, const char *why) {
    if (!r->wrong) r->wrong = why;
}

static uint64_t read_number(Reader *r, uint64_t most, const char *why) {
    if (r->wrong) return 0;
    uint64_t n = RedisModule_LoadUnsigned(r->io);
    if (RedisModule_IsIOError(r->io))
        refuse(r, short_read);
    else if (n > most)
        refuse(r, why);
    return r->wrong ? 0 : n;
}

static void skip_numbers(Reader *r, uint64_t n) {
    for (uint64_t i = 0; i < n && !r->wrong; i++) read_number(r, UINT64_MAX, "");
}

static void bytes_free(Slice s) { RedisModule_Free((char *)s.p); }

/* Bytes that the caller frees; {NULL, 0} when something is wrong. */
static Slice read_bytes(Reader *r) {
    if (r->wrong) return (Slice){0};
    size_t n = 0;
    char *p = RedisModule_LoadStringBuffer(r->io, &n);
    if (p && !RedisModule_IsIOError(r->io)) return (Slice){p, n};
    if (p) RedisModule_Free(p);
    refuse(r, short_read);
    return (Slice){0};
}

/* The same for a string that is written with its final NUL, which is not counted in the result. */
static Slice read_text(Reader *r) {
    Slice s = read_bytes(r);
    if (r->wrong) return s;
    if (s.n && !s.p[s.n - 1]) return (Slice){s.p, s.n - 1};
    refuse(r, "a text does not end in NUL");
    bytes_free(s);
    return (Slice){0};
}

static Names read_names(Reader *r) {
    int n = (int)read_number(r, MAX_NAMES, "too many names");
    Slice *items = RedisModule_Calloc(n ? n : 1, sizeof *items);
    for (int i = 0; i < n && !r->wrong; i++) items[i] = read_text(r);
    Names names = r->wrong ? (Names){0} : names_new(n, items);
    for (int i = 0; i < n; i++) bytes_free(items[i]);
    RedisModule_Free(items);
    return names;
}

static const char no_memory[] = "memory is short";

static bool loading(void) { return RedisModule_GetContextFlags(NULL) & CTX_LOADING; }

/* A server's own file and what its master sends load whatever their size; what a client restores obeys the limits of the commands. */
static size_t byte_limit(int64_t configured) { return loading() || ai_is_replica ? SIZE_MAX : (size_t)configured; }

static Blob *blob_of(Reader *r, Slice s, size_t limit) {
    if (r->wrong) return NULL;
    Blob *b = s.n > limit ? NULL : blob_new(s.n);
    if (b)
        memcpy(b->data, s.p, s.n);
    else
        refuse(r, s.n > limit ? "it is larger than allowed" : no_memory);
    return b;
}

/* A total and its chunks, however they were cut; chunks may be empty. A total that lies costs address space until the end of this
 * function, in which nobody else can see it. */
static Blob *read_chunks(Reader *r, size_t limit) {
    size_t total = read_number(r, limit, "it is larger than allowed"), have = 0;
    uint64_t chunks = read_number(r, UINT64_MAX, "");
    Blob *b = r->wrong ? NULL : blob_new(total);
    if (!b) refuse(r, no_memory);
    for (uint64_t i = 0; i < chunks && !r->wrong; i++) { /* as many as there are bytes for: each takes some of the payload */
        Slice s = read_bytes(r);
        if (s.n > total - have)
            refuse(r, "its chunks are longer than their total");
        else if (s.n)
            memcpy(b->data + have, s.p, s.n), have += s.n;
        bytes_free(s);
    }
    if (have != total) refuse(r, "its chunks are shorter than their total");
    if (!r->wrong) return b;
    blob_unref(b);
    return NULL;
}

/* `short_line` is what clients' log watchers know from the original, which writes it for every failure of a model. */
static void log_refusal(Reader *r, const char *what, bool always_short) {
    if (r->wrong != short_read) RedisModule_LogIOError(r->io, "warning", "Could not load a %s: %s", what, r->wrong);
    if (r->wrong == short_read || always_short)
        RedisModule_LogIOError(r->io, "warning", "Experienced a short read while reading a %s from RDB", what);
}

static bool from_the_future(RedisModuleIO *io, int encver, const char *what) {
    if (encver <= AI_ENCVER) return false;
    RedisModule_LogIOError(io, "warning", "Failed loading %s, RedisAI version (%d) is not forward compatible.", what, AI_VERSION);
    return true;
}

/* ---- tensors -------------------------------------------------------------------------------------------------------- */

static Dtype dtype_of(Reader *r, uint64_t code, uint64_t bits) {
    for (int i = 0; i < T_COUNT; i++)
        if (dtypes[i].code == code && dtypes[i].bits == bits) return i;
    refuse(r, "unknown data type");
    return T_FLOAT;
}

/* Code and bits of the data type changed places in encoding 4, which also dropped the device that tensors once had. */
static Dtype read_dtype(Reader *r, int encver) {
    if (encver >= 4) {
        uint64_t code = read_number(r, UINT8_MAX, "unknown data type"), bits = read_number(r, UINT8_MAX, "unknown data type");
        return dtype_of(r, code, bits);
    }
    if (read_number(r, UINT64_MAX, "") != 1) refuse(r, "it is not on the CPU");
    skip_numbers(r, 1); /* device id */
    uint64_t bits = read_number(r, UINT8_MAX, "unknown data type"), code = read_number(r, UINT8_MAX, "unknown data type");
    if (read_number(r, UINT8_MAX, "unknown data type") != 1) refuse(r, "its data type has lanes");
    Dtype dtype = dtype_of(r, code, bits);
    if (dtype == T_STRING) refuse(r, "a STRING tensor in an encoding that had none");
    return dtype;
}

/* Data and shape agree, so that what is allocated next is no larger than what has been read. */
static void check_length(Reader *r, Dtype dtype, int ndim, const int64_t *dims, Slice data, int64_t *length) {
    if (r->wrong) return;
    if (!tensor_length(dtype, ndim, dims, length))
        refuse(r, "its shape overflows");
    else if (dtype == T_STRING ? (size_t)*length > data.n : (size_t)*length * dtypes[dtype].size != data.n)
        refuse(r, "its data does not fit its shape");
}

/* A BOOL is 0 or 1 from here on: its commands take nothing else, those of a rewritten AOF among them, and libraries count on it. RedisAI did
 * not look at every byte, so another one is no reason to refuse a dump. */
static void copy_data(Tensor *t, const char *from) {
    char *to = (char *)t->bytes;
    if (t->dtype != T_BOOL && t->nbytes) memcpy(to, from, t->nbytes);
    for (size_t i = 0; t->dtype == T_BOOL && i < t->nbytes; i++) to[i] = from[i] != 0;
}

/* The offsets of a STRING tensor follow its data. They are read past and counted again from the data, which cannot lie. */
static Tensor *read_tensor(Reader *r, int encver) {
    int64_t dims[AI_MAX_DIMS] = {0}, length = 0;
    const char *error = NULL;
    Dtype dtype = read_dtype(r, encver);
    int ndim = (int)read_number(r, AI_MAX_DIMS, "too many dimensions");
    for (int i = 0; i < ndim; i++) dims[i] = (int64_t)read_number(r, INT64_MAX, "a negative dimension");
    if (encver < 4) skip_numbers(r, (uint64_t)ndim + 1); /* strides and byte offset */
    Slice data = read_bytes(r);
    check_length(r, dtype, ndim, dims, data, &length);
    if (dtype == T_STRING) skip_numbers(r, (uint64_t)length);

    Tensor *t = NULL;
    if (!r->wrong) t = (byte_limit(0) ? tensor_load : tensor_new)(dtype, ndim, dims, data.n, &error);
    if (!t) refuse(r, error);
    if (t) copy_data(t, data.p);
    bytes_free(data);
    if (t && dtype == T_STRING && !tensor_index_strings(t)) {
        refuse(r, "its data is not as many strings as its shape says");
        tensor_unref(t);
        t = NULL;
    }
    return t;
}

static void *tensor_rdb_load(RedisModuleIO *io, int encver) {
    Reader r = {io, NULL};
    if (from_the_future(io, encver, "tensor")) return NULL;
    Tensor *t = read_tensor(&r, encver);
    if (!t) log_refusal(&r, "tensor", false);
    return t;
}

static void tensor_save(RedisModuleIO *io, void *value) {
    const Tensor *t = value;
    RedisModule_SaveUnsigned(io, dtypes[t->dtype].code);
    RedisModule_SaveUnsigned(io, dtypes[t->dtype].bits);
    RedisModule_SaveUnsigned(io, t->ndim);
    for (int i = 0; i < t->ndim; i++) RedisModule_SaveUnsigned(io, (uint64_t)t->dims[i]);
    RedisModule_SaveStringBuffer(io, t->nbytes ? t->bytes : "", t->nbytes);
    if (t->dtype == T_STRING)
        for (int64_t i = 0; i < t->length; i++) RedisModule_SaveUnsigned(io, t->offsets[i]);
}

/* ---- strings to emit: arguments of one command of a rewritten AOF ----------------------------------------------------- */

typedef struct Strings {
    RedisModuleString **item;
    size_t n;
} Strings;

static Strings strings_room(size_t n) { return (Strings){RedisModule_Alloc((n ? n : 1) * sizeof(RedisModuleString *)), 0}; }

static void strings_add(Strings *s, const char *p, size_t n) { s->item[s->n++] = RedisModule_CreateString(NULL, n ? p : "", n); }

static void strings_add_number(Strings *s, int64_t n) {
    char digits[24];
    strings_add(s, digits, (size_t)snprintf(digits, sizeof digits, "%lld", (long long)n));
}

static void strings_add_names(Strings *s, const char *word, Names names) {
    strings_add(s, word, strlen(word));
    strings_add_number(s, names.n);
    for (int i = 0; i < names.n; i++) strings_add(s, names.item[i].p, names.item[i].n);
}

static void strings_free(Strings s) {
    for (size_t i = 0; i < s.n; i++) RedisModule_FreeString(NULL, s.item[i]);
    RedisModule_Free(s.item);
}

/* A shape with a zero in it is refused from clients and taken from an AOF. */
static void tensor_rewrite(RedisModuleIO *aof, RedisModuleString *key, void *value) {
    const Tensor *t = value;
    Strings dims = strings_room(t->ndim);
    for (int i = 0; i < t->ndim; i++) strings_add_number(&dims, t->dims[i]);
    RedisModule_EmitAOF(aof, "AI.TENSORSET", "scvcb", key, dtypes[t->dtype].name, dims.item, dims.n, "BLOB", t->nbytes ? t->bytes : "",
                        t->nbytes);
    strings_free(dims);
}

static size_t tensor_size(const Tensor *t) {
    size_t offsets = t->offsets ? (size_t)t->length * sizeof(uint64_t) : 0;
    size_t copy = t->source && t->aligned ? t->nbytes : 0; /* a worker's aligned copy of the client's string */
    return sizeof(Tensor) + t->ndim * sizeof(int64_t) + offsets + t->nbytes + copy;
}

static size_t tensor_memory(const void *value) { return tensor_size(value); }
static size_t tensor_memory2(RedisModuleKeyOptCtx *ctx, const void *value, size_t samples) { return tensor_size(value); }

static void tensor_digest(RedisModuleDigest *digest, void *value) {
    const Tensor *t = value;
    RedisModule_DigestAddLongLong(digest, t->dtype);
    RedisModule_DigestAddLongLong(digest, t->ndim);
    for (int i = 0; i < t->ndim; i++) RedisModule_DigestAddLongLong(digest, t->dims[i]);
    RedisModule_DigestAddStringBuffer(digest, t->nbytes ? t->bytes : "", t->nbytes);
    RedisModule_DigestEndSequence(digest);
}

static void tensor_free(void *value) { tensor_unref(value); }

static size_t tensor_effort(RedisModuleString *key, const void *value) { return ((const Tensor *)value)->nbytes / EFFORT_UNIT + 1; }
static size_t tensor_effort2(RedisModuleKeyOptCtx *ctx, const void *value) { return tensor_effort(NULL, value); }

static void *tensor_copy(RedisModuleString *from, RedisModuleString *to, const void *value) { return tensor_ref((Tensor *)value); }
static void *tensor_copy2(RedisModuleKeyOptCtx *ctx, const void *value) { return tensor_ref((Tensor *)value); }

/* ---- models and scripts --------------------------------------------------------------------------------------------- */

static void want_open(Program *p) {
    pthread_mutex_lock(&ai_lock);
    loader_want(p);
    pthread_mutex_unlock(&ai_lock);
}

/* Takes over nothing of `device` and `tag`. */
static Program *make_program(Reader *r, ProgramKind kind, Backend backend, Slice device, Slice tag) {
    if (r->wrong) return NULL;
    Program *p = program_new(kind, backend, device);
    if (p)
        p->tag = (Slice){slice_dup(tag), tag.n};
    else
        refuse(r, "unusable device");
    return p;
}

/* The key's name is not known to every server inside RESTORE. */
static void list_loaded(RedisModuleIO *io, Program *p) {
    const RedisModuleString *key = RedisModule_GetKeyNameFromIO ? RedisModule_GetKeyNameFromIO(io) : NULL;
    int db = RedisModule_GetDbIdFromIO ? RedisModule_GetDbIdFromIO(io) : 0;
    program_list(p, (RedisModuleString *)key, db < 0 ? 0 : db);
    if (!loading() && !ai_is_replica) want_open(p);
}

static int64_t read_size(Reader *r) { return (int64_t)read_number(r, INT64_MAX, "a negative size or timeout"); }

/* Names are known when the dump has them. Before encoding 2 only TensorFlow's were written; the others are found when the model is opened. */
static bool carries_names(const Program *p, int encver) {
    return (p->backend == BACKEND_TF || encver >= 2) && p->inputs.n + p->outputs.n > 0;
}

static Program *read_model(Reader *r, int encver) {
    size_t limit = byte_limit(config.max_model_bytes);
    Backend backend = (Backend)read_number(r, BACKEND_COUNT - 1, "unknown backend");
    Slice device = read_text(r), tag = encver == 0 ? read_text(r) : read_bytes(r);
    int64_t batchsize = read_size(r), minbatchsize = read_size(r), minbatchtimeout = encver >= 2 ? read_size(r) : 0;
    Names inputs = read_names(r), outputs = read_names(r);
    Slice whole = encver == 0 ? read_bytes(r) : (Slice){0};
    Blob *blob = encver == 0 ? blob_of(r, whole, limit) : read_chunks(r, limit);

    Program *p = make_program(r, PROGRAM_MODEL, backend, device, tag);
    if (p) {
        p->batchsize = batchsize, p->minbatchsize = minbatchsize, p->minbatchtimeout = minbatchtimeout;
        p->inputs = inputs, p->outputs = outputs, p->blob = blob;
        p->names_known = carries_names(p, encver);
    } else {
        names_free(&inputs);
        names_free(&outputs);
        blob_unref(blob);
    }
    bytes_free(device);
    bytes_free(tag);
    bytes_free(whole);
    return p;
}

static void *model_load(RedisModuleIO *io, int encver) {
    Reader r = {io, NULL};
    if (from_the_future(io, encver, "model")) return NULL;
    Program *p = read_model(&r, encver);
    if (p)
        list_loaded(io, p);
    else
        log_refusal(&r, "model", true);
    return p;
}

static Program *read_script(Reader *r, int encver) {
    Slice device = read_text(r), tag = encver == 0 ? read_text(r) : read_bytes(r), source = read_text(r);
    Names entry_points = encver >= 3 ? read_names(r) : (Names){0};
    Blob *blob = blob_of(r, source, byte_limit(config.max_script_bytes));

    Program *p = make_program(r, PROGRAM_SCRIPT, BACKEND_TORCH, device, tag);
    if (p) {
        p->blob = blob, p->entry_points = entry_points;
    } else {
        names_free(&entry_points);
        blob_unref(blob);
    }
    bytes_free(device);
    bytes_free(tag);
    bytes_free(source);
    return p;
}

static void *script_load(RedisModuleIO *io, int encver) {
    Reader r = {io, NULL};
    if (from_the_future(io, encver, "script")) return NULL;
    Program *p = read_script(&r, encver);
    if (p)
        list_loaded(io, p);
    else
        log_refusal(&r, "script", false);
    return p;
}

static void save_text(RedisModuleIO *io, const char *p, size_t n) { RedisModule_SaveStringBuffer(io, p, n + 1); }

static void save_names(RedisModuleIO *io, Names names) {
    RedisModule_SaveUnsigned(io, names.n);
    for (int i = 0; i < names.n; i++) save_text(io, names.item[i].p, names.item[i].n);
}

/* Names that are not known yet may be in the middle of being written by the loader: read them only when they are. */
static Names known(const Program *p, Names names) { return p->names_known ? names : (Names){0}; }

/* A blob is cut into this many chunks, the last of which is empty when the size divides the length: readers count on the rule. */
static size_t chunk_count(size_t len, size_t size) { return len / size + 1; }
static Slice chunk(const Blob *b, size_t size, size_t i) {
    return (Slice){b->data + i * size, i == b->len / size ? b->len % size : size};
}

static void model_save(RedisModuleIO *io, void *value) {
    const Program *p = value;
    size_t size = (size_t)config.model_chunk_size, chunks = chunk_count(p->blob->len, size);
    RedisModule_SaveUnsigned(io, p->backend);
    save_text(io, p->device, strlen(p->device));
    RedisModule_SaveStringBuffer(io, p->tag.n ? p->tag.p : "", p->tag.n);
    RedisModule_SaveUnsigned(io, (uint64_t)p->batchsize);
    RedisModule_SaveUnsigned(io, (uint64_t)p->minbatchsize);
    RedisModule_SaveUnsigned(io, (uint64_t)p->minbatchtimeout);
    save_names(io, known(p, p->inputs));
    save_names(io, known(p, p->outputs));
    RedisModule_SaveUnsigned(io, p->blob->len);
    RedisModule_SaveUnsigned(io, chunks);
    for (size_t i = 0; i < chunks; i++) {
        Slice c = chunk(p->blob, size, i);
        RedisModule_SaveStringBuffer(io, c.p, c.n);
    }
}

static void script_save(RedisModuleIO *io, void *value) {
    const Program *p = value;
    char *source = slice_dup((Slice){p->blob->data, p->blob->len}); /* with the final NUL */
    save_text(io, p->device, strlen(p->device));
    RedisModule_SaveStringBuffer(io, p->tag.n ? p->tag.p : "", p->tag.n);
    save_text(io, source, p->blob->len);
    save_names(io, p->entry_points);
    RedisModule_Free(source);
}

static Strings chunk_strings(const Blob *b) {
    size_t size = (size_t)config.model_chunk_size, chunks = chunk_count(b->len, size);
    Strings s = strings_room(chunks);
    for (size_t i = 0; i < chunks; i++) {
        Slice c = chunk(b, size, i);
        strings_add(&s, c.p, c.n);
    }
    return s;
}

/* INPUTS and OUTPUTS, which only TensorFlow's models are stored with. A frozen graph that RESTORE brought may have none (encoding 0): it
 * is rewritten without them, in a form that is refused from clients and taken from an AOF. */
static Strings signature_strings(const Program *p) {
    Strings s = strings_room((size_t)p->inputs.n + (size_t)p->outputs.n + 4);
    if (p->backend != BACKEND_TF || !p->names_known || p->inputs.n + p->outputs.n == 0) return s;
    strings_add_names(&s, "INPUTS", p->inputs);
    strings_add_names(&s, "OUTPUTS", p->outputs);
    return s;
}

static void model_rewrite(RedisModuleIO *aof, RedisModuleString *key, void *value) {
    const Program *p = value;
    Strings signature = signature_strings(p), chunks = chunk_strings(p->blob);
    RedisModule_EmitAOF(aof, "AI.MODELSTORE", "scccbclclclvcv", key, backend_names[p->backend], p->device, "TAG", p->tag.n ? p->tag.p : "",
                        p->tag.n, "BATCHSIZE", (long long)p->batchsize, "MINBATCHSIZE", (long long)p->minbatchsize, "MINBATCHTIMEOUT",
                        (long long)p->minbatchtimeout, signature.item, signature.n, "BLOB", chunks.item, chunks.n);
    strings_free(signature);
    strings_free(chunks);
}

/* A script without entry points, which SCRIPTSTORE does not accept, is one that SCRIPTSET made. */
static void script_rewrite(RedisModuleIO *aof, RedisModuleString *key, void *value) {
    const Program *p = value;
    Strings entries = strings_room((size_t)p->entry_points.n + 2);
    if (p->entry_points.n) strings_add_names(&entries, "ENTRY_POINTS", p->entry_points);
    RedisModule_EmitAOF(aof, p->entry_points.n ? "AI.SCRIPTSTORE" : "AI.SCRIPTSET", "sccbvcb", key, p->device, "TAG",
                        p->tag.n ? p->tag.p : "", p->tag.n, entries.item, entries.n, "SOURCE", p->blob->data, p->blob->len);
    strings_free(entries);
}

static size_t names_size(Names names) {
    size_t n = 0;
    for (int i = 0; i < names.n; i++) n += sizeof(Slice) + names.item[i].n + 1;
    return n;
}

/* What the value itself holds. The session made of it belongs to its library, and INFO tells of that. */
static size_t program_size(const Program *p) {
    size_t names = names_size(known(p, p->inputs)) + names_size(known(p, p->outputs)) + names_size(p->entry_points);
    return sizeof(Program) + strlen(p->device) + 1 + p->tag.n + 1 + names + sizeof(Blob) + p->blob->len;
}

static size_t program_memory(const void *value) { return program_size(value); }
static size_t program_memory2(RedisModuleKeyOptCtx *ctx, const void *value, size_t samples) { return program_size(value); }

static void digest_names(RedisModuleDigest *digest, Names names) {
    RedisModule_DigestAddLongLong(digest, names.n);
    for (int i = 0; i < names.n; i++) RedisModule_DigestAddStringBuffer(digest, names.item[i].p, names.item[i].n);
}

/* A SavedModel, whose names may come from the archive: found where it was opened, unknown where it was not. */
static bool is_archive(const Blob *b) { return b->len >= 4 && memcmp(b->data, "PK\3\4", 4) == 0; }

/* Only what a client stored: names that are found by opening a model are known on a master before they are on its replica. */
static void program_digest(RedisModuleDigest *digest, void *value) {
    const Program *p = value;
    RedisModule_DigestAddLongLong(digest, p->kind);
    RedisModule_DigestAddLongLong(digest, p->backend);
    RedisModule_DigestAddStringBuffer(digest, p->device, strlen(p->device));
    RedisModule_DigestAddStringBuffer(digest, p->tag.n ? p->tag.p : "", p->tag.n);
    RedisModule_DigestAddLongLong(digest, p->batchsize);
    RedisModule_DigestAddLongLong(digest, p->minbatchsize);
    RedisModule_DigestAddLongLong(digest, p->minbatchtimeout);
    RedisModule_DigestAddStringBuffer(digest, p->blob->data, p->blob->len);
    digest_names(digest, p->entry_points);
    if (p->kind == PROGRAM_MODEL && p->backend == BACKEND_TF && !is_archive(p->blob)) {
        digest_names(digest, known(p, p->inputs));
        digest_names(digest, known(p, p->outputs));
    }
    RedisModule_DigestEndSequence(digest);
}

static void program_free(void *value) {
    program_unlist(value);
    program_unref(value);
}

static size_t program_effort(RedisModuleString *key, const void *value) { return ((const Program *)value)->blob->len / EFFORT_UNIT + 1; }
static size_t program_effort2(RedisModuleKeyOptCtx *ctx, const void *value) { return program_effort(NULL, value); }

/* The scans must not show a key that is gone while its value waits for the lazy-free thread. */
static void program_unlink(RedisModuleString *key, const void *value) { program_unlist((Program *)value); }
static void program_unlink2(RedisModuleKeyOptCtx *ctx, const void *value) { program_unlist((Program *)value); }

/* The copy shares the bytes and has a session, statistics and a place in the scans of its own. */
static Program *program_copy_to(const Program *from, const RedisModuleString *key, int db) {
    Program *p = program_new(from->kind, from->backend, (Slice){from->device, strlen(from->device)});
    if (!p) return NULL;
    p->tag = (Slice){slice_dup(from->tag), from->tag.n};
    p->batchsize = from->batchsize, p->minbatchsize = from->minbatchsize, p->minbatchtimeout = from->minbatchtimeout;
    p->blob = blob_ref(from->blob);
    p->entry_points = names_new(from->entry_points.n, from->entry_points.item);
    if (from->names_known) {
        p->inputs = names_new(from->inputs.n, from->inputs.item);
        p->outputs = names_new(from->outputs.n, from->outputs.item);
        p->names_known = true;
    }
    program_list(p, (RedisModuleString *)key, db);
    if (!loading() && !ai_is_replica) want_open(p);
    return p;
}

static void *program_copy(RedisModuleString *from, RedisModuleString *to, const void *value) { return program_copy_to(value, to, 0); }

static void *program_copy2(RedisModuleKeyOptCtx *ctx, const void *value) {
    return program_copy_to(value, RedisModule_GetToKeyNameFromOptCtx(ctx), RedisModule_GetToDbIdFromOptCtx(ctx));
}

/* Redis moves a value to another name by unlinking it from the first, so it has left the list: here it returns under its new name. */
static int program_moved(RedisModuleCtx *ctx, int type, const char *event, RedisModuleString *keyname) {
    if (strcmp(event, "rename_to") && strcmp(event, "move_to")) return REDISMODULE_OK;
    RedisModuleKey *key = RedisModule_OpenKey(ctx, keyname, REDISMODULE_READ | REDISMODULE_OPEN_KEY_NOTOUCH);
    if (!key) return REDISMODULE_OK;
    if (RedisModule_KeyType(key) == REDISMODULE_KEYTYPE_MODULE) {
        RedisModuleType *t = RedisModule_ModuleTypeGetType(key);
        if (t == ai_model_type || t == ai_script_type)
            program_list(RedisModule_ModuleTypeGetValue(key), keyname, RedisModule_GetSelectedDb(ctx));
    }
    RedisModule_CloseKey(key);
    return REDISMODULE_OK;
}

/* ---- all programs at once --------------------------------------------------------------------------------------------- */

typedef struct Listed {
    Program **item;
    size_t n, room;
} Listed;

static void collect(Program *p, void *u) {
    Listed *l = u;
    if (l->n == l->room) {
        l->room = l->room ? l->room * 2 : 64;
        l->item = RedisModule_Realloc(l->item, l->room * sizeof *l->item);
    }
    l->item[l->n++] = program_ref(p);
}

/* Oldest first. References come first, because nothing may be called inside the list's lock. */
static void for_all_programs(void (*fn)(Program *)) {
    Listed l = {0};
    programs_each(collect, &l);
    while (l.n) {
        Program *p = l.item[--l.n];
        fn(p);
        program_unref(p);
    }
    RedisModule_Free(l.item);
}

void persist_open_all(void) { for_all_programs(want_open); }

/* FLUSHALL unlinks no key, and ASYNC leaves the values to the lazy-free thread. Of FLUSHDB's programs the scans may tell until then:
 * SWAPDB renumbers databases without a word to their values. */
static void on_flush(RedisModuleCtx *ctx, RedisModuleEvent e, uint64_t sub, void *data) {
    const RedisModuleFlushInfo *flush = data;
    if (sub == FLUSHDB_START && flush->dbnum < 0) for_all_programs(program_unlist);
}

/* ---- the three types ------------------------------------------------------------------------------------------------ */

/* Options. I/O errors: without it a short read inside RESTORE ends the server. Asynchronous loading: a replica goes on serving old values
 * while new ones load, and neither knows of the other. Atomic slot migration: the slot arrives as the commands of a rewritten AOF over a
 * link that may not be blocked, as stores reach a replica.
 *
 * Absent on purpose:
 *   aux_load, aux_save   nothing is stored outside of keys
 *   defrag               a value is shared by pointer with jobs and sessions on other threads, and tensor data must keep its alignment */
static RedisModuleTypeMethods tensor_methods = {
    .version = 5,
    .rdb_load = tensor_rdb_load,
    .rdb_save = tensor_save,
    .aof_rewrite = tensor_rewrite,
    .mem_usage = tensor_memory,
    .mem_usage2 = tensor_memory2,
    .digest = tensor_digest,
    .free = tensor_free,
    .free_effort = tensor_effort,
    .free_effort2 = tensor_effort2,
    .copy = tensor_copy,
    .copy2 = tensor_copy2,
};

#define PROGRAM_METHODS(kind) \
    { \
        .version = 5, \
        .rdb_load = kind##_load, \
        .rdb_save = kind##_save, \
        .aof_rewrite = kind##_rewrite, \
        .mem_usage = program_memory, \
        .mem_usage2 = program_memory2, \
        .digest = program_digest, \
        .free = program_free, \
        .free_effort = program_effort, \
        .free_effort2 = program_effort2, \
        .unlink = program_unlink, \
        .unlink2 = program_unlink2, \
        .copy = program_copy, \
        .copy2 = program_copy2, \
    }
static RedisModuleTypeMethods model_methods = PROGRAM_METHODS(model);
static RedisModuleTypeMethods script_methods = PROGRAM_METHODS(script);

int persist_register(RedisModuleCtx *ctx) {
    static const struct {
        const char *name, *what;
        RedisModuleTypeMethods *methods;
        RedisModuleType **type;
    } types[] = {
        {"AI_TENSOR", "tensor", &tensor_methods, &ai_tensor_type},
        {"AI__MODEL", "model", &model_methods, &ai_model_type},
        {"AI_SCRIPT", "script", &script_methods, &ai_script_type},
    };
    int options = OPTION_HANDLE_IO_ERRORS | OPTION_HANDLE_REPL_ASYNC_LOAD | OPTION_NO_IMPLICIT_SIGNAL_MODIFIED;
    RedisModule_SetModuleOptions(ctx, ai_valkey ? options | OPTION_HANDLE_ATOMIC_SLOT_MIGRATION : options);
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        *types[i].type = RedisModule_CreateDataType(ctx, types[i].name, AI_ENCVER, types[i].methods);
        if (*types[i].type) continue;
        ai_log("warning", "can not initialize %s dt", types[i].what);
        return REDISMODULE_ERR;
    }
    return REDISMODULE_OK;
}

void persist_subscribe(RedisModuleCtx *ctx) {
    RedisModule_SubscribeToServerEvent(ctx, (RedisModuleEvent){EVENT_FLUSHDB, 1}, on_flush);
    RedisModule_SubscribeToKeyspaceEvents(ctx, NOTIFY_GENERIC, program_moved);
}
