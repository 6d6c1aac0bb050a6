/* program.c -- models and scripts: their values, the commands that store, show, delete and list them.
 *
 * 1. A program is bytes and fields. The session made from the bytes lives on the Python side under the program's id, and is closed when
 *    the last reference goes: a run in progress keeps it alive after its key is gone.
 * 2. A client that stores one waits while the loader opens it, and reads the library's error if it cannot be opened: the key is written
 *    in the reply phase (reply.c). Where a client may not wait (MULTI, a Lua script, the AOF, the master's link) the bytes are written at
 *    once and opened later; then a program that cannot be opened says so when it is run.
 * 3. The chunks of a waiting client's blob are not copied: the argument strings are kept, and the loader joins them. Redis trims kept
 *    arguments when the command returns, which would move them under the loader, so they are trimmed here first.
 * 4. The list of all programs serves the scans. It has a lock of its own, innermost but for the server's allocator, because the lazy-free
 *    thread takes programs out of it. */
#include "ai.h"

const char *const backend_names[BACKEND_COUNT] = {
    [BACKEND_TF] = "TF", [BACKEND_TFLITE] = "TFLITE", [BACKEND_TORCH] = "TORCH", [BACKEND_ONNX] = "ONNX"};

enum { MAX_DEVICE = 63 };

/* ---- the value ----------------------------------------------------------------------------------------------------- */

static _Atomic uint64_t last_id;

static bool starts_with(Slice s, const char *word) { return s.n >= 3 && slice_is((Slice){s.p, 3}, word); }

/* No backend runs on a device of another name, so that such a name makes no queue: there is no end to them. */
static RunQueue *queue_for(Slice device) {
    return runqueue_of(starts_with(device, "CPU") || starts_with(device, "GPU") ? device : (Slice){"CPU", 3});
}

Program *program_new(ProgramKind kind, Backend backend, Slice device) {
    if (device.n > MAX_DEVICE || memchr(device.p, '\0', device.n)) return NULL;
    Program *p = RedisModule_Calloc(1, sizeof(*p));
    atomic_init(&p->refs, 1);
    p->kind = (uint8_t)kind;
    p->backend = (uint8_t)backend;
    p->id = atomic_fetch_add(&last_id, 1) + 1;
    p->device = slice_dup(device);
    p->queue = queue_for(device);
    p->waiting_tail = &p->waiting;
    return p;
}

Program *program_ref(Program *p) {
    atomic_fetch_add_explicit(&p->refs, 1, memory_order_relaxed);
    return p;
}

static void program_free(Program *p) {
    RedisModule_Free(p->device);
    RedisModule_Free((char *)p->tag.p);
    RedisModule_Free(p->key);
    RedisModule_Free(p->open_error);
    names_free(&p->entry_points);
    names_free(&p->inputs);
    names_free(&p->outputs);
    blob_unref(p->blob);
    RedisModule_Free(p);
}

void program_unref(Program *p) {
    if (atomic_fetch_sub_explicit(&p->refs, 1, memory_order_acq_rel) != 1) return;
    if (p->state == PROGRAM_OPEN) session_count(p, -1);
    if (p->state != PROGRAM_UNOPENED) inbox_post((Message){.kind = MSG_CLOSE, .id = p->id});
    program_free(p);
}

/* ---- the list of programs in the keyspace -------------------------------------------------------------------------- */

static pthread_mutex_t programs_lock = PTHREAD_MUTEX_INITIALIZER;
static Program *newest, *oldest;

static void list_insert(Program *p) {
    p->prev = NULL;
    p->next = newest;
    *(newest ? &newest->prev : &oldest) = p;
    newest = p;
}

static void list_remove(Program *p) {
    *(p->prev ? &p->prev->next : &newest) = p->next;
    *(p->next ? &p->next->prev : &oldest) = p->prev;
}

static void set_listed(Program *p, bool listed) {
    pthread_mutex_lock(&programs_lock);
    if (p->listed != listed) (listed ? list_insert : list_remove)(p);
    p->listed = listed;
    pthread_mutex_unlock(&programs_lock);
}

/* Requests that wait for a fuller batch of a program without a key wait in vain: its workers look again. */
static void set_dropped(Program *p, bool dropped) {
    pthread_mutex_lock(&ai_lock);
    p->dropped = dropped;
    if (dropped) runqueue_release(p);
    pthread_mutex_unlock(&ai_lock);
}

static void set_key(Program *p, Slice name) {
    if (p->key && p->key_len == name.n && memcmp(p->key, name.p, name.n) == 0) return;
    char *copy = slice_dup(name);
    pthread_mutex_lock(&ai_lock);
    char *old = atomic_exchange(&p->key, copy);
    p->key_len = name.n;
    pthread_mutex_unlock(&ai_lock);
    RedisModule_Free(old);
}

char *program_key(Program *p) {
    pthread_mutex_lock(&ai_lock);
    char *copy = p->key ? slice_dup((Slice){p->key, p->key_len}) : NULL;
    pthread_mutex_unlock(&ai_lock);
    return copy;
}

void program_list(Program *p, RedisModuleString *key, int db) {
    if (key) set_key(p, slice_of(key));
    p->db = db;
    set_dropped(p, false);
    set_listed(p, true);
}

void program_unlist(Program *p) {
    set_listed(p, false);
    set_dropped(p, true);
}

void programs_each(void (*fn)(Program *, void *), void *u) {
    pthread_mutex_lock(&programs_lock);
    for (Program *p = newest; p; p = p->next) fn(p, u);
    pthread_mutex_unlock(&programs_lock);
}

/* ---- keys ---------------------------------------------------------------------------------------------------------- */

static RedisModuleType *type_of(ProgramKind kind) { return kind == PROGRAM_MODEL ? ai_model_type : ai_script_type; }

Program *program_lookup(RedisModuleCtx *ctx, RedisModuleString *name, ProgramKind kind, const char **error) {
    RedisModuleKey *key = RedisModule_OpenKey(ctx, name, REDISMODULE_READ);
    *error = kind == PROGRAM_MODEL ? "ERR model key is empty" : "ERR script key is empty";
    if (!key) return NULL;
    bool found = RedisModule_ModuleTypeGetType(key) == type_of(kind);
    Program *p = found ? RedisModule_ModuleTypeGetValue(key) : NULL;
    *error = found ? NULL : REDISMODULE_ERRORMSG_WRONGTYPE;
    RedisModule_CloseKey(key);
    return p;
}

static int replace_value(RedisModuleKey *key, Program *p) {
    void *old = NULL;
    if (RedisModule_ModuleTypeReplaceValue(key, type_of(p->kind), p, &old) != REDISMODULE_OK) return REDISMODULE_ERR;
    if (RedisModule_GetExpire(key) != REDISMODULE_NO_EXPIRE) RedisModule_SetExpire(key, REDISMODULE_NO_EXPIRE);
    program_unlist(old);
    program_unref(old);
    return REDISMODULE_OK;
}

int program_store(RedisModuleCtx *ctx, RedisModuleString *keyname, RedisModuleKey *key, Program *p) {
    bool replaces = RedisModule_ModuleTypeGetType(key) == type_of(p->kind);
    int done = replaces ? replace_value(key, p) : RedisModule_ModuleTypeSetValue(key, type_of(p->kind), p);
    if (done == REDISMODULE_OK) program_list(p, keyname, RedisModule_GetSelectedDb(ctx));
    else program_unref(p);
    return done;
}

void program_announce(RedisModuleCtx *ctx, RedisModuleString *name, ProgramKind kind) {
    announce(ctx, name, kind == PROGRAM_MODEL ? "ai.modelstore" : "ai.scriptstore");
}

static bool holds_other(RedisModuleCtx *ctx, RedisModuleString *name, ProgramKind kind) {
    RedisModuleKey *key = RedisModule_OpenKey(ctx, name, REDISMODULE_READ | REDISMODULE_OPEN_KEY_NOTOUCH);
    bool other = key && RedisModule_ModuleTypeGetType(key) != type_of(kind);
    if (key) RedisModule_CloseKey(key);
    return other;
}

/* ---- reading arguments --------------------------------------------------------------------------------------------- */

typedef struct Words { /* argv, of which argv[at] comes next */
    RedisModuleString **argv;
    int argc, at;
    bool replay; /* from the AOF or the master. What they send was a value already, which may be one that no client may store: RESTORE, a
                  * release with other rules or a higher limit made it. Refused here it would be lost without a word. */
} Words;

typedef struct Span { /* arguments argv[at .. at + n) */
    int at, n;
} Span;

typedef struct Store { /* what a store command says */
    ProgramKind kind;
    Backend backend;
    Slice device, tag;
    int64_t batchsize, minbatchsize, minbatchtimeout;
    Span inputs, outputs, entry_points, blob;
} Store;

static int left(const Words *w) { return w->argc - w->at; }
static Slice peek(const Words *w) { return slice_of(w->argv[w->at]); }
static Slice take(Words *w) { return slice_of(w->argv[w->at++]); }
static bool next_is(const Words *w, const char *word) { return left(w) && slice_is(peek(w), word); }

static bool take_word(Words *w, const char *word) {
    bool found = next_is(w, word);
    w->at += found;
    return found;
}

/* An integer, or a double that is one (3.0): clients of 1.2.7 may send either. */
static bool loose_int(Slice s, int64_t *out) {
    double v;
    if (slice_to_int(s, out)) return true;
    if (!slice_to_double(s, &v) || !(v >= -0x1p63 && v < 0x1p63)) return false;
    *out = (int64_t)v;
    return (double)*out == v;
}

static bool take_int(Words *w, int64_t *out) { return left(w) && loose_int(take(w), out); }
static bool take_size(Words *w, int64_t *out) { return take_int(w, out) && *out >= 0; }

static bool take_span(Words *w, int64_t n, Span *out) {
    if (n < 0 || n > left(w)) return false;
    *out = (Span){w->at, (int)n};
    w->at += (int)n;
    return true;
}

static bool backend_parse(Slice s, Backend *out) {
    int b = 0;
    while (b < BACKEND_COUNT && !slice_is(s, backend_names[b])) b++;
    *out = (Backend)b;
    return b < BACKEND_COUNT;
}

static const char NO_BLOB[] = "ERR Insufficient arguments, missing model BLOB";
static const char MIN_WITHOUT_SIZE[] = "ERR MINBATCHSIZE specified without BATCHSIZE";
static const char TIMEOUT_WITHOUT_SIZE[] = "ERR MINBATCHTIMEOUT specified without BATCHSIZE";
static const char TIMEOUT_WITHOUT_MIN[] = "ERR MINBATCHTIMEOUT specified without MINBATCHSIZE";

/* A SavedModel is a zip archive, where a frozen graph is a protobuf message: it names its own inputs and outputs. */
static bool is_archive(const Words *w) {
    if (!next_is(w, "BLOB") || left(w) < 2) return false;
    Slice first = slice_of(w->argv[w->at + 1]);
    return first.n >= 4 && memcmp(first.p, "PK\3\4", 4) == 0;
}

/* ---- AI.MODELSTORE ------------------------------------------------------------------------------------------------- */

/* CPU, GPU, or either with a colon and digits; at most nine characters. */
static bool is_plain_device(Slice d) {
    if (d.n >= 10 || !(starts_with(d, "CPU") || starts_with(d, "GPU"))) return false;
    if (d.n > 3 && d.p[3] != ':') return false;
    for (size_t i = 4; i < d.n; i++)
        if (d.p[i] < '0' || d.p[i] > '9') return false;
    return true;
}

static const char *modelstore_batching(Words *w, Store *s) {
    if (take_word(w, "BATCHSIZE") && !take_size(w, &s->batchsize)) return "ERR Invalid argument for BATCHSIZE";
    if (take_word(w, "MINBATCHSIZE") && !take_size(w, &s->minbatchsize)) return "ERR Invalid argument for MINBATCHSIZE";
    if (s->minbatchsize > 0 && s->batchsize == 0 && !w->replay) return MIN_WITHOUT_SIZE;
    if (take_word(w, "MINBATCHTIMEOUT") && !take_size(w, &s->minbatchtimeout)) return "ERR Invalid argument for MINBATCHTIMEOUT";
    if (s->minbatchtimeout > 0 && s->minbatchsize == 0 && !w->replay) return TIMEOUT_WITHOUT_MIN;
    return NULL;
}

static const char *modelstore_names(Words *w, Store *s) {
    int64_t n;
    if (s->backend != BACKEND_TF)
        return next_is(w, "INPUTS") ? "ERR INPUTS argument should not be specified for this backend" : NULL;
    if (is_archive(w) || (w->replay && next_is(w, "BLOB"))) return NULL;
    if (!take_word(w, "INPUTS")) return "ERR INPUTS not specified for TF";
    if (!take_size(w, &n) || (n == 0 && !w->replay)) return "ERR Invalid argument for input_count";
    if (!take_span(w, n, &s->inputs)) return "ERR number of model inputs does not match the number of given arguments";
    if (!take_word(w, "OUTPUTS")) return "ERR OUTPUTS not specified for TF";
    if (!take_size(w, &n) || (n == 0 && !w->replay)) return "ERR Invalid argument for output_count";
    if (!take_span(w, n, &s->outputs)) return "ERR number of model outputs does not match the number of given arguments";
    return NULL;
}

static const char *modelstore_parse(Words *w, Store *s) {
    const char *error;
    if (!backend_parse(take(w), &s->backend)) return "ERR unsupported backend";
    s->device = take(w);
    if (!is_plain_device(s->device) && !w->replay) return "ERR Invalid DEVICE";
    if (take_word(w, "TAG") && left(w)) s->tag = take(w);
    if ((error = modelstore_batching(w, s))) return error;
    if (!left(w)) return NO_BLOB;
    if ((error = modelstore_names(w, s))) return error;
    if (!take_word(w, "BLOB")) return "ERR Invalid argument, expected BLOB";
    take_span(w, left(w), &s->blob);
    return s->blob.n ? NULL : NO_BLOB;
}

/* ---- AI.MODELSET (deprecated) -------------------------------------------------------------------------------------- */

static bool is_keyword(Slice s) {
    static const char *const words[] = {"INPUTS", "OUTPUTS", "TAG", "BATCHSIZE", "MINBATCHSIZE", "MINBATCHTIMEOUT", "BLOB"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (slice_is(s, words[i])) return true;
    return false;
}

static const char *modelset_batching(Words *w, Store *s) {
    if (take_word(w, "BATCHSIZE")) {
        if (s->backend == BACKEND_TFLITE) return "ERR Auto-batching not supported by the TFLITE backend";
        if (!take_size(w, &s->batchsize)) return "ERR Invalid argument for BATCHSIZE";
    }
    if (take_word(w, "MINBATCHSIZE")) {
        if (s->batchsize == 0) return MIN_WITHOUT_SIZE;
        if (!take_size(w, &s->minbatchsize)) return "ERR Invalid argument for MINBATCHSIZE";
    }
    if (take_word(w, "MINBATCHTIMEOUT")) {
        if (s->batchsize == 0) return TIMEOUT_WITHOUT_SIZE;
        if (s->minbatchsize == 0) return TIMEOUT_WITHOUT_MIN;
        if (!take_size(w, &s->minbatchtimeout)) return "ERR Invalid argument for MINBATCHTIMEOUT";
    }
    return NULL;
}

/* Names without a count: up to the next keyword. */
static Span take_names(Words *w) {
    Span names = {w->at, 0};
    while (left(w) && !is_keyword(peek(w))) w->at++;
    names.n = w->at - names.at;
    return names;
}

static const char *modelset_names(Words *w, Store *s) {
    if (is_archive(w)) return NULL;
    if (!left(w) || next_is(w, "BLOB")) return "ERR Insufficient arguments, INPUTS and OUTPUTS not specified";
    if (!take_word(w, "INPUTS")) return "ERR INPUTS not specified";
    s->inputs = take_names(w);
    if (!take_word(w, "OUTPUTS")) return "ERR OUTPUTS not specified";
    s->outputs = take_names(w);
    return NULL;
}

static const char *modelset_parse(Words *w, Store *s) {
    const char *error;
    if (!backend_parse(take(w), &s->backend)) return "ERR unsupported backend";
    s->device = take(w);
    if (s->device.n > 10 || is_keyword(s->device)) return "ERR Invalid DEVICE";
    if (take_word(w, "TAG") && left(w)) s->tag = take(w);
    if ((error = modelset_batching(w, s))) return error;
    if (!left(w)) return NO_BLOB;
    if (s->backend == BACKEND_TF && (error = modelset_names(w, s))) return error;
    while (left(w) && !next_is(w, "BLOB")) w->at++; /* what stands before BLOB is ignored, as in 1.2.7 */
    if (!take_word(w, "BLOB")) return NO_BLOB;
    take_span(w, left(w), &s->blob);
    return s->blob.n ? NULL : NO_BLOB;
}

/* ---- AI.SCRIPTSTORE and AI.SCRIPTSET ------------------------------------------------------------------------------- */

static const char *script_source(Words *w, Store *s) {
    if (!take_word(w, "SOURCE") || !take_span(w, 1, &s->blob)) return "ERR Insufficient arguments, missing script SOURCE";
    return NULL; /* what follows is ignored, as in 1.2.7 */
}

static void script_device(Words *w, Store *s) {
    s->backend = BACKEND_TORCH;
    s->device = take(w);
    if (take_word(w, "TAG") && left(w)) s->tag = take(w);
}

static const char *scriptstore_parse(Words *w, Store *s) {
    static const char missing[] = "ERR Insufficient arguments, missing script entry points";
    int64_t n;
    script_device(w, s);
    if (!take_word(w, "ENTRY_POINTS")) return missing;
    if (!take_int(w, &n)) return "ERR Non numeric entry points number provided to AI.SCRIPTSTORE command";
    if (!take_span(w, n, &s->entry_points)) return missing;
    return script_source(w, s);
}

static const char *scriptset_parse(Words *w, Store *s) {
    script_device(w, s);
    return script_source(w, s);
}

/* ---- storing ------------------------------------------------------------------------------------------------------- */

static Names names_of(RedisModuleString **argv, Span span) {
    if (!span.n) return (Names){0, NULL};
    Slice *items = RedisModule_Alloc((size_t)span.n * sizeof *items);
    for (int i = 0; i < span.n; i++) items[i] = slice_of(argv[span.at + i]);
    Names names = names_new(span.n, items);
    RedisModule_Free(items);
    return names;
}

/* Everything but the blob. */
static Program *program_from(const Store *s, RedisModuleString **argv) {
    Program *p = program_new(s->kind, s->backend, s->device);
    if (!p) return NULL;
    p->tag = (Slice){slice_dup(s->tag), s->tag.n};
    p->batchsize = s->batchsize;
    p->minbatchsize = s->minbatchsize;
    p->minbatchtimeout = s->minbatchtimeout;
    p->entry_points = names_of(argv, s->entry_points);
    p->inputs = names_of(argv, s->inputs);
    p->outputs = names_of(argv, s->outputs);
    p->names_known = s->kind == PROGRAM_SCRIPT || s->inputs.n + s->outputs.n > 0; /* other models find theirs when they are opened */
    set_key(p, slice_of(argv[1]));
    return p;
}

static size_t blob_length(RedisModuleString **argv, Span blob) {
    size_t n = 0;
    for (int i = 0; i < blob.n; i++) n += slice_of(argv[blob.at + i]).n;
    return n;
}

static Blob *join(RedisModuleString **argv, Span blob) {
    Blob *b = blob_new(blob_length(argv, blob));
    size_t at = 0;
    for (int i = 0; b && i < blob.n; i++) {
        Slice chunk = slice_of(argv[blob.at + i]);
        if (chunk.n) memcpy(b->data + at, chunk.p, chunk.n);
        at += chunk.n;
    }
    return b;
}

static void hold(Job *job, RedisModuleString **argv, Span blob) {
    job->held = arena_alloc(&job->arena, (size_t)blob.n * sizeof *job->held);
    job->nheld = blob.n;
    for (int i = 0; i < blob.n; i++) {
        RedisModule_TrimStringAllocation(argv[blob.at + i]);
        job->held[i] = strings_keep(argv[blob.at + i]);
    }
}

static const char NO_MEMORY[] = "ERR not enough memory for the blob";

/* Takes over `p`. The client waits until the loader has opened it. */
static const char *store_when_open(RedisModuleCtx *ctx, RedisModuleString **argv, const Store *s, Program *p) {
    Job *job = job_new(JOB_STORE);
    job->program = p;
    if (ai_can_trim) hold(job, argv, s->blob);
    else if (!(p->blob = join(argv, s->blob))) {
        job_free(job);
        return NO_MEMORY;
    }
    job_block(ctx, job);
    pthread_mutex_lock(&ai_lock);
    p->state = PROGRAM_OPENING;
    inbox_post_locked((Message){.kind = MSG_OPEN, .program = program_ref(p), .job = job});
    pthread_mutex_unlock(&ai_lock);
    return NULL;
}

static void want_open(Program *p) {
    pthread_mutex_lock(&ai_lock);
    loader_want(p);
    pthread_mutex_unlock(&ai_lock);
}

/* Takes over `p`. A server that is loading opens everything afterwards; a replica opens at the first use. */
static const char *store_now(RedisModuleCtx *ctx, RedisModuleString **argv, const Store *s, Program *p) {
    if (!(p->blob = join(argv, s->blob))) {
        program_unref(p);
        return NO_MEMORY;
    }
    RedisModuleKey *key = RedisModule_OpenKey(ctx, argv[1], REDISMODULE_READ | REDISMODULE_WRITE);
    int done = program_store(ctx, argv[1], key, p);
    RedisModule_CloseKey(key);
    if (done != REDISMODULE_OK) return "ERR could not save the value";
    program_announce(ctx, argv[1], s->kind);
    if (!(RedisModule_GetContextFlags(ctx) & (CTX_LOADING | CTX_SLAVE))) want_open(p);
    RedisModule_ReplicateVerbatim(ctx);
    RedisModule_ReplyWithSimpleString(ctx, "OK");
    return NULL;
}

/* NULL when the client was answered or waits; else the error to send. */
static const char *store(RedisModuleCtx *ctx, RedisModuleString **argv, const Store *s, bool replay) {
    bool model = s->kind == PROGRAM_MODEL;
    if (blob_length(argv, s->blob) > (size_t)(model ? config.max_model_bytes : config.max_script_bytes) && !replay)
        return model ? "ERR model is larger than MAX_MODEL_BYTES" : "ERR script is larger than MAX_SCRIPT_BYTES";
    if (holds_other(ctx, argv[1], s->kind)) return REDISMODULE_ERRORMSG_WRONGTYPE;
    Program *p = program_from(s, argv);
    if (!p) return "ERR unsupported device";
    return (may_block(ctx) ? store_when_open : store_now)(ctx, argv, s, p);
}

static int cmd_store(RedisModuleCtx *ctx, RedisModuleString **argv, int argc, ProgramKind kind, const char *(*parse)(Words *, Store *)) {
    Words w = {argv, argc, 2, is_replay(ctx)};
    Store s = {.kind = kind};
    strings_drain();
    const char *error = parse(&w, &s);
    if (!error) error = store(ctx, argv, &s, w.replay);
    return error ? RedisModule_ReplyWithError(ctx, error) : REDISMODULE_OK;
}

int cmd_modelstore(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    if (argc < 6) return RedisModule_WrongArity(ctx);
    return cmd_store(ctx, argv, argc, PROGRAM_MODEL, modelstore_parse);
}

int cmd_modelset(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    if (argc < 4) return RedisModule_WrongArity(ctx);
    return cmd_store(ctx, argv, argc, PROGRAM_MODEL, modelset_parse);
}

int cmd_scriptstore(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    if (argc < 8) return RedisModule_WrongArity(ctx);
    return cmd_store(ctx, argv, argc, PROGRAM_SCRIPT, scriptstore_parse);
}

int cmd_scriptset(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    if (argc != 5 && argc != 7) return RedisModule_WrongArity(ctx);
    return cmd_store(ctx, argv, argc, PROGRAM_SCRIPT, scriptset_parse);
}

/* ---- AI.MODELGET and AI.SCRIPTGET ---------------------------------------------------------------------------------- */

static void reply_bytes(RedisModuleCtx *ctx, const char *p, size_t n) { RedisModule_ReplyWithStringBuffer(ctx, n ? p : "", n); }
static void reply_word(RedisModuleCtx *ctx, const char *word) { reply_bytes(ctx, word, strlen(word)); }
static void reply_slice(RedisModuleCtx *ctx, Slice s) { reply_bytes(ctx, s.p, s.n); }

static void reply_number(RedisModuleCtx *ctx, const char *field, int64_t n) {
    reply_word(ctx, field);
    RedisModule_ReplyWithLongLong(ctx, n);
}

static void reply_names(RedisModuleCtx *ctx, const char *field, Names names) {
    reply_word(ctx, field);
    RedisModule_ReplyWithArray(ctx, names.n);
    for (int i = 0; i < names.n; i++) reply_slice(ctx, names.item[i]);
}

/* Above MODEL_CHUNK_SIZE an array of chunks, the last of which is empty when the size divides the length: clients join what they get. */
static void reply_model_blob(RedisModuleCtx *ctx, const Blob *b) {
    size_t size = (size_t)config.model_chunk_size, whole = b->len / size;
    if (whole) RedisModule_ReplyWithArray(ctx, (long)whole + 1);
    for (size_t i = 0; i < whole; i++) reply_bytes(ctx, b->data + i * size, size);
    reply_bytes(ctx, b->data + whole * size, b->len % size);
}

static void reply_model(RedisModuleCtx *ctx, const Program *p, bool meta, bool blob) {
    Names none = {0, NULL};
    bool known = p->names_known;
    if (meta) {
        RedisModule_ReplyWithArray(ctx, blob ? 18 : 16);
        reply_word(ctx, "backend");
        reply_word(ctx, backend_names[p->backend]);
        reply_word(ctx, "device");
        reply_word(ctx, p->device);
        reply_word(ctx, "tag");
        reply_slice(ctx, p->tag);
        reply_number(ctx, "batchsize", p->batchsize);
        reply_number(ctx, "minbatchsize", p->minbatchsize);
        reply_names(ctx, "inputs", known ? p->inputs : none);
        reply_names(ctx, "outputs", known ? p->outputs : none);
        reply_number(ctx, "minbatchtimeout", p->minbatchtimeout);
        if (blob) reply_word(ctx, "blob");
    }
    if (blob) reply_model_blob(ctx, p->blob);
}

static void reply_script(RedisModuleCtx *ctx, const Program *p, bool meta, bool source) {
    if (meta) {
        RedisModule_ReplyWithArray(ctx, source ? 8 : 6);
        reply_word(ctx, "device");
        reply_word(ctx, p->device);
        reply_word(ctx, "tag");
        reply_slice(ctx, p->tag);
        reply_names(ctx, "Entry Points", p->entry_points);
        if (source) reply_word(ctx, "source");
    }
    if (source) reply_bytes(ctx, p->blob->data, p->blob->len);
}

void program_reply(RedisModuleCtx *ctx, Program *p, bool meta, bool blob) {
    (p->kind == PROGRAM_MODEL ? reply_model : reply_script)(ctx, p, meta, blob);
}

/* A model's names are found by opening it. */
static bool names_may_come(Program *p) {
    if (p->names_known) return false;
    pthread_mutex_lock(&ai_lock);
    bool may_come = p->state != PROGRAM_FAILED;
    pthread_mutex_unlock(&ai_lock);
    return may_come;
}

static void reply_when_open(RedisModuleCtx *ctx, Program *p, bool meta, bool blob) {
    Job *job = job_new(JOB_GET);
    job->program = program_ref(p);
    job->meta = meta;
    job->blob = blob;
    job_wait_open(ctx, job);
}

static bool has_option(RedisModuleString **argv, int argc, const char *word) {
    for (int i = 2; i < argc; i++)
        if (slice_is(slice_of(argv[i]), word)) return true;
    return false;
}

static int cmd_get(RedisModuleCtx *ctx, RedisModuleString **argv, int argc, ProgramKind kind) {
    const char *error;
    strings_drain();
    if (argc < 2 || argc > 4) return RedisModule_WrongArity(ctx);
    Program *p = program_lookup(ctx, argv[1], kind, &error);
    if (!p) return RedisModule_ReplyWithError(ctx, error);
    bool meta = has_option(argv, argc, "META"), blob = has_option(argv, argc, kind == PROGRAM_MODEL ? "BLOB" : "SOURCE");
    if (!meta && !blob) meta = blob = true; /* nothing, or words unknown here, which are ignored as in 1.2.7 */
    if (meta && names_may_come(p) && may_block(ctx)) reply_when_open(ctx, p, meta, blob);
    else program_reply(ctx, p, meta, blob);
    return REDISMODULE_OK;
}

int cmd_modelget(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) { return cmd_get(ctx, argv, argc, PROGRAM_MODEL); }
int cmd_scriptget(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) { return cmd_get(ctx, argv, argc, PROGRAM_SCRIPT); }

/* ---- AI.MODELDEL and AI.SCRIPTDEL ---------------------------------------------------------------------------------- */

static int cmd_del(RedisModuleCtx *ctx, RedisModuleString **argv, int argc, ProgramKind kind) {
    const char *error;
    strings_drain();
    if (argc != 2) return RedisModule_WrongArity(ctx);
    if (!program_lookup(ctx, argv[1], kind, &error)) return RedisModule_ReplyWithError(ctx, error);
    RedisModuleKey *key = RedisModule_OpenKey(ctx, argv[1], REDISMODULE_READ | REDISMODULE_WRITE);
    RedisModule_DeleteKey(key);
    RedisModule_CloseKey(key);
    announce(ctx, argv[1], kind == PROGRAM_MODEL ? "ai.modeldel" : "ai.scriptdel");
    RedisModule_NotifyKeyspaceEvent(ctx, NOTIFY_GENERIC, "del", argv[1]); /* as DEL does */
    RedisModule_ReplicateVerbatim(ctx);
    return RedisModule_ReplyWithSimpleString(ctx, "OK");
}

int cmd_modeldel(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) { return cmd_del(ctx, argv, argc, PROGRAM_MODEL); }
int cmd_scriptdel(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) { return cmd_del(ctx, argv, argc, PROGRAM_SCRIPT); }

/* ---- AI._MODELSCAN and AI._SCRIPTSCAN ------------------------------------------------------------------------------ */

static void reply_key_and_tag(RedisModuleCtx *ctx, const Program *p) {
    RedisModule_ReplyWithArray(ctx, 2);
    reply_bytes(ctx, p->key, p->key ? p->key_len : 0);
    reply_slice(ctx, p->tag);
}

/* Models newest first, scripts oldest first: the order that clients of 1.2.7 came to expect of each. */
static int cmd_scan(RedisModuleCtx *ctx, int argc, ProgramKind kind, const char *warning) {
    long n = 0;
    if (argc != 1) return RedisModule_WrongArity(ctx);
    ai_log("warning", "%s", warning);
    Readers readers = readers_of(ctx);
    RedisModule_ReplyWithArray(ctx, REDISMODULE_POSTPONED_ARRAY_LEN);
    pthread_mutex_lock(&programs_lock);
    for (const Program *p = kind == PROGRAM_MODEL ? newest : oldest; p; p = kind == PROGRAM_MODEL ? p->next : p->prev) {
        if (p->kind != kind || !readers_may_read(&readers, (Slice){p->key, p->key ? p->key_len : 0})) continue;
        reply_key_and_tag(ctx, p);
        n++;
    }
    pthread_mutex_unlock(&programs_lock);
    readers_free(&readers);
    RedisModule_ReplySetArrayLength(ctx, n);
    return REDISMODULE_OK;
}

int cmd_modelscan(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    return cmd_scan(ctx, argc, PROGRAM_MODEL, "MODELSCAN is experimental and might be removed in future versions");
}

int cmd_scriptscan(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    return cmd_scan(ctx, argc, PROGRAM_SCRIPT, "SCRIPTSCAN is experimental and might be removed in future versions");
}
