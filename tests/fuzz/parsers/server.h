/* server.h -- a server of one key, in memory, for driving the shim's files from a fuzzer: allocations, RDB and AOF, one context, its replies.
 *
 * 1. What was allocated is counted: after each input nothing may be left.
 * 2. Alloc, Calloc and Realloc are never asked for a size that an input could have chosen: those belong to TryAlloc, which has little to give.
 * 3. Strings are allocations of exactly their length, so that a byte read past the end is one that the address sanitizer sees.
 * 4. RDB is read as Redis reads it: an opcode before each number and string, a short read sets the error and gives zeros from then on. */
#include "ai.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#define must(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
            abort(); \
        } \
    } while (0)

enum { SURE = 4 << 20, SPARE = 1 << 20 };

/* ---- what module.c and config.c would define ------------------------------------------------------------------------------------- */

pthread_mutex_t ai_lock = PTHREAD_MUTEX_INITIALIZER;
RedisModuleCtx *ai_log_ctx;
bool ai_can_trim, ai_valkey;
_Atomic bool ai_closing, ai_is_replica;
Config config;

/* ---- memory ---------------------------------------------------------------------------------------------------------------------- */

static int64_t live;

static void *counted(void *p) {
    if (p) live++;
    return p;
}
static void *fake_alloc(size_t n) {
    must(n <= SURE);
    return counted(malloc(n));
}
static void *fake_try_alloc(size_t n) { return n <= SPARE ? counted(malloc(n)) : NULL; }
static void *fake_calloc(size_t n, size_t size) {
    must(n <= SURE / (size ? size : 1));
    return counted(calloc(n, size));
}
static void *fake_realloc(void *p, size_t n) {
    must(n <= SURE);
    live += !p;
    return realloc(p, n);
}
static void fake_free(void *p) {
    live -= p != NULL;
    free(p);
}

/* ---- strings --------------------------------------------------------------------------------------------------------------------- */

struct RedisModuleString {
    int refs;
    size_t n;
    char *p;
};

static RedisModuleString *fake_create(RedisModuleCtx *ctx, const char *p, size_t n) {
    RedisModuleString *s = fake_alloc(sizeof(*s));
    *s = (RedisModuleString){1, n, fake_alloc(n)};
    if (n) memcpy(s->p, p, n);
    return s;
}
static void fake_free_string(RedisModuleCtx *ctx, RedisModuleString *s) {
    if (--s->refs) return;
    fake_free(s->p);
    fake_free(s);
}
static RedisModuleString *fake_hold(RedisModuleCtx *ctx, RedisModuleString *s) {
    s->refs++;
    return s;
}
static void fake_trim(RedisModuleString *s) {}
static const char *fake_ptr(const RedisModuleString *s, size_t *n) {
    *n = s->n;
    return s->p;
}

/* ---- bytes that grow ------------------------------------------------------------------------------------------------------------- */

typedef struct Bytes {
    char *p;
    size_t n, room;
} Bytes;

static void bytes_add(Bytes *b, const void *p, size_t n) {
    if (b->n + n > b->room) {
        b->room = (b->n + n) * 2;
        b->p = realloc(b->p, b->room);
    }
    if (n) memcpy(b->p + b->n, p, n);
    b->n += n;
}
static bool bytes_equal(const Bytes *a, const Bytes *b) { return a->n == b->n && (!a->n || memcmp(a->p, b->p, a->n) == 0); }

/* ---- RDB ------------------------------------------------------------------------------------------------------------------------- */

struct RedisModuleIO {
    const uint8_t *p, *end; /* being read */
    bool error;
    Bytes *out; /* being written */
};

static uint64_t short_read(RedisModuleIO *io) {
    io->error = true;
    io->p = io->end;
    return 0;
}

static uint64_t big_endian(RedisModuleIO *io, size_t n) {
    uint64_t v = 0;
    if ((size_t)(io->end - io->p) < n) return short_read(io);
    for (; n; n--) v = v << 8 | *io->p++;
    return v;
}

static uint64_t read_length(RedisModuleIO *io) {
    if (io->p == io->end) return short_read(io);
    uint8_t first = *io->p++;
    if (first < 0x40) return first;
    if (first < 0x80) return (uint64_t)(first & 63) << 8 | big_endian(io, 1);
    return first == 0x80 ? big_endian(io, 4) : first == 0x81 ? big_endian(io, 8) : short_read(io);
}

enum { OPCODE_NUMBER = 2, OPCODE_STRING = 5 };

static bool opcode(RedisModuleIO *io, uint8_t wanted) {
    if (io->p < io->end && *io->p++ == wanted) return true;
    short_read(io);
    return false;
}

static uint64_t fake_load_unsigned(RedisModuleIO *io) { return opcode(io, OPCODE_NUMBER) ? read_length(io) : 0; }

static char *fake_load_string(RedisModuleIO *io, size_t *n) {
    uint64_t length = opcode(io, OPCODE_STRING) ? read_length(io) : 0;
    if (length > (size_t)(io->end - io->p)) short_read(io);
    if (io->error) return NULL;
    char *copy = fake_alloc(length);
    memcpy(copy, io->p, length);
    io->p += length;
    *n = length;
    return copy;
}

static int fake_is_error(RedisModuleIO *io) { return io->error; }

static void write_length(Bytes *out, uint8_t code, uint64_t n) {
    uint8_t head[10] = {code, 0x81};
    for (int i = 0; i < 8; i++) head[2 + i] = (uint8_t)(n >> (56 - 8 * i));
    bytes_add(out, head, sizeof head);
}
static void fake_save_unsigned(RedisModuleIO *io, uint64_t n) { write_length(io->out, OPCODE_NUMBER, n); }
static void fake_save_string(RedisModuleIO *io, const char *p, size_t n) {
    must(p);
    write_length(io->out, OPCODE_STRING, n);
    bytes_add(io->out, p, n);
}

/* ---- digests: everything that was added ------------------------------------------------------------------------------------------- */

struct RedisModuleDigest {
    Bytes all;
};
static void fake_digest_string(RedisModuleDigest *d, const char *p, size_t n) {
    must(p);
    bytes_add(&d->all, &n, sizeof n);
    bytes_add(&d->all, p, n);
}
static void fake_digest_number(RedisModuleDigest *d, long long n) { bytes_add(&d->all, &n, sizeof n); }
static void fake_digest_end(RedisModuleDigest *d) {}

/* ---- commands that the shim gives to the AOF or to replicas ------------------------------------------------------------------------ */

enum { MAX_WORDS = 4096 };
typedef struct Words {
    int n;
    RedisModuleString *item[MAX_WORDS];
} Words;
static Words emitted;

static void words_add(Words *w, const char *p, size_t n) {
    must(p && w->n < MAX_WORDS);
    w->item[w->n++] = fake_create(NULL, p, n);
}
static void words_free(Words *w) {
    while (w->n) fake_free_string(NULL, w->item[--w->n]);
}

static void emit(const char *name, const char *format, va_list args) {
    words_free(&emitted);
    words_add(&emitted, name, strlen(name));
    for (; *format; format++) {
        if (*format == 'c') {
            const char *word = va_arg(args, const char *);
            words_add(&emitted, word, strlen(word));
        } else if (*format == 'b') {
            const char *p = va_arg(args, const char *);
            words_add(&emitted, p, va_arg(args, size_t));
        } else if (*format == 's') {
            RedisModuleString *s = va_arg(args, RedisModuleString *);
            words_add(&emitted, s->p, s->n);
        } else if (*format == 'v') {
            RedisModuleString **s = va_arg(args, RedisModuleString **);
            for (size_t n = va_arg(args, size_t); n; n--, s++) words_add(&emitted, (*s)->p, (*s)->n);
        } else {
            must(*format == 'l');
            char digits[24];
            words_add(&emitted, digits, (size_t)snprintf(digits, sizeof digits, "%lld", va_arg(args, long long)));
        }
    }
}
static void fake_emit(RedisModuleIO *io, const char *name, const char *format, ...) {
    va_list args;
    va_start(args, format);
    emit(name, format, args);
    va_end(args);
}
static int fake_replicate(RedisModuleCtx *ctx, const char *name, const char *format, ...) {
    va_list args;
    va_start(args, format);
    emit(name, format, args);
    va_end(args);
    return REDISMODULE_OK;
}

/* ---- the log ---------------------------------------------------------------------------------------------------------------------- */

static void log_line(const char *format, va_list args) {
    char line[1024];
    must(vsnprintf(line, sizeof line, format, args) > 0);
}
static void fake_log(RedisModuleCtx *ctx, const char *level, const char *format, ...) {
    va_list args;
    va_start(args, format);
    log_line(format, args);
    va_end(args);
}
static void fake_log_io(RedisModuleIO *io, const char *level, const char *format, ...) {
    va_list args;
    va_start(args, format);
    log_line(format, args);
    va_end(args);
}

/* ---- types and the one key --------------------------------------------------------------------------------------------------------- */

struct RedisModuleType {
    RedisModuleTypeMethods *methods;
};
static RedisModuleType types[4];
static int ntypes;

static RedisModuleType *fake_create_type(RedisModuleCtx *ctx, const char *name, int encver, RedisModuleTypeMethods *methods) {
    must(strlen(name) == 9 && encver <= AI_ENCVER && ntypes < 4);
    types[ntypes].methods = methods;
    return &types[ntypes++];
}
static void fake_options(RedisModuleCtx *ctx, int options) { must(options & OPTION_HANDLE_IO_ERRORS); }

static struct RedisModuleKey {
    RedisModuleType *type;
    void *value;
} the_key;

static void key_empty(void) {
    if (the_key.value) the_key.type->methods->free(the_key.value);
    the_key = (struct RedisModuleKey){0};
}
static void *fake_open(RedisModuleCtx *ctx, RedisModuleString *name, int mode) {
    return mode & REDISMODULE_WRITE || the_key.value ? &the_key : NULL;
}
static void fake_close(RedisModuleKey *key) {}
static int fake_key_type(RedisModuleKey *key) { return key->value ? REDISMODULE_KEYTYPE_MODULE : REDISMODULE_KEYTYPE_EMPTY; }
static RedisModuleType *fake_get_type(RedisModuleKey *key) { return key->type; }
static void *fake_get_value(RedisModuleKey *key) { return key->value; }
static int fake_set_value(RedisModuleKey *key, RedisModuleType *type, void *value) {
    key_empty();
    *key = (struct RedisModuleKey){type, value};
    return REDISMODULE_OK;
}
static int fake_replace_value(RedisModuleKey *key, RedisModuleType *type, void *value, void **old) {
    *old = key->value;
    *key = (struct RedisModuleKey){type, value};
    return REDISMODULE_OK;
}
static long long fake_expire(RedisModuleKey *key) { return REDISMODULE_NO_EXPIRE; }
static int fake_signal(RedisModuleCtx *ctx, RedisModuleString *key) { return REDISMODULE_OK; }
static int fake_notify(RedisModuleCtx *ctx, int type, const char *event, RedisModuleString *key) { return REDISMODULE_OK; }

static int context_flags;
static int fake_flags(RedisModuleCtx *ctx) { return context_flags; }
static int fake_verbatim(RedisModuleCtx *ctx) { return REDISMODULE_OK; }

/* ---- replies: the words of the last one, and whether it was one ---------------------------------------------------------------------- */

static struct {
    bool error;
    int whole;         /* replies that were completed */
    int depth;
    int64_t missing[4]; /* elements that the arrays around the next one still want */
    Words words;       /* numbers as text that means the same number */
} reply;

static void reply_begin(void) {
    words_free(&reply.words);
    reply.error = false;
    reply.whole = reply.depth = 0;
}
static void reply_ends(void) {
    while (reply.depth && --reply.missing[reply.depth - 1] == 0) reply.depth--;
    if (!reply.depth) reply.whole++;
}
static int reply_word(const char *p, size_t n) {
    words_add(&reply.words, p, n);
    reply_ends();
    return REDISMODULE_OK;
}
static int fake_reply_array(RedisModuleCtx *ctx, long n) {
    must(n >= 0 && reply.depth < 4);
    if (n) reply.missing[reply.depth++] = n;
    else reply_ends();
    return REDISMODULE_OK;
}
static int fake_reply_error(RedisModuleCtx *ctx, const char *text) {
    must(text && *text);
    reply.error = true;
    return reply_word(text, strlen(text));
}
static int fake_wrong_arity(RedisModuleCtx *ctx) { return fake_reply_error(ctx, "ERR wrong number of arguments"); }
static int fake_reply_simple(RedisModuleCtx *ctx, const char *text) { return reply_word(text, strlen(text)); }
static int fake_reply_buffer(RedisModuleCtx *ctx, const char *p, size_t n) { return reply_word(n ? p : "", n); }
static int fake_reply_string(RedisModuleCtx *ctx, RedisModuleString *s) { return reply_word(s->n ? s->p : "", s->n); }
static int fake_reply_number(RedisModuleCtx *ctx, long long n) {
    char digits[24];
    return reply_word(digits, (size_t)snprintf(digits, sizeof digits, "%lld", n));
}
static int fake_reply_double(RedisModuleCtx *ctx, double v) {
    char digits[40];
    return reply_word(digits, (size_t)snprintf(digits, sizeof digits, "%.17g", v));
}

/* Runs a command; true when it replied with something else than an error. */
static bool run(int (*command)(RedisModuleCtx *, RedisModuleString **, int), Words *argv) {
    reply_begin();
    command(NULL, argv->item, argv->n);
    must(reply.whole == 1 && reply.depth == 0);
    return !reply.error;
}

/* ---- the functions of the module API -------------------------------------------------------------------------------------------------- */

static void server_start(void) {
    RedisModule_Alloc = fake_alloc;
    RedisModule_TryAlloc = fake_try_alloc;
    RedisModule_Calloc = fake_calloc;
    RedisModule_Realloc = fake_realloc;
    RedisModule_Free = fake_free;
    RedisModule_CreateString = fake_create;
    RedisModule_FreeString = fake_free_string;
    RedisModule_HoldString = fake_hold;
    RedisModule_TrimStringAllocation = fake_trim;
    RedisModule_StringPtrLen = fake_ptr;
    RedisModule_LoadUnsigned = fake_load_unsigned;
    RedisModule_LoadStringBuffer = fake_load_string;
    RedisModule_IsIOError = fake_is_error;
    RedisModule_SaveUnsigned = fake_save_unsigned;
    RedisModule_SaveStringBuffer = fake_save_string;
    RedisModule_DigestAddStringBuffer = fake_digest_string;
    RedisModule_DigestAddLongLong = fake_digest_number;
    RedisModule_DigestEndSequence = fake_digest_end;
    RedisModule_EmitAOF = fake_emit;
    RedisModule_Replicate = fake_replicate;
    RedisModule_Log = fake_log;
    RedisModule_LogIOError = fake_log_io;
    RedisModule_CreateDataType = fake_create_type;
    RedisModule_SetModuleOptions = fake_options;
    RedisModule_OpenKey = fake_open;
    RedisModule_CloseKey = fake_close;
    RedisModule_KeyType = fake_key_type;
    RedisModule_ModuleTypeGetType = fake_get_type;
    RedisModule_ModuleTypeGetValue = fake_get_value;
    RedisModule_ModuleTypeSetValue = fake_set_value;
    RedisModule_ModuleTypeReplaceValue = fake_replace_value;
    RedisModule_GetExpire = fake_expire;
    RedisModule_SignalModifiedKey = fake_signal;
    RedisModule_NotifyKeyspaceEvent = fake_notify;
    RedisModule_GetContextFlags = fake_flags;
    RedisModule_ReplicateVerbatim = fake_verbatim;
    RedisModule_WrongArity = fake_wrong_arity;
    RedisModule_ReplyWithArray = fake_reply_array;
    RedisModule_ReplyWithError = fake_reply_error;
    RedisModule_ReplyWithSimpleString = fake_reply_simple;
    RedisModule_ReplyWithStringBuffer = fake_reply_buffer;
    RedisModule_ReplyWithString = fake_reply_string;
    RedisModule_ReplyWithLongLong = fake_reply_number;
    RedisModule_ReplyWithDouble = fake_reply_double;
    ai_can_trim = true;
    config.max_tensor_bytes = config.max_model_bytes = config.max_script_bytes = 1 << 16;
    must(persist_register(NULL) == REDISMODULE_OK);
}

/* After each input: nothing is left but what lasts from one to the next. */
static void server_rest(void) {
    key_empty();
    words_free(&reply.words);
    words_free(&emitted);
    strings_drain();
    must(live == 0);
}

/* ---- programs: what program.c and its neighbours would bring, without queues and sessions ----------------------------------------------- */

enum { MAX_DEVICE = 63 };

Program *program_new(ProgramKind kind, Backend backend, Slice device) {
    if (device.n > MAX_DEVICE || memchr(device.p, '\0', device.n)) return NULL;
    Program *p = RedisModule_Calloc(1, sizeof(*p));
    atomic_init(&p->refs, 1);
    p->kind = (uint8_t)kind;
    p->backend = (uint8_t)backend;
    p->device = slice_dup(device);
    return p;
}
Program *program_ref(Program *p) {
    p->refs++;
    return p;
}
void program_unref(Program *p) {
    if (--p->refs) return;
    RedisModule_Free(p->device);
    RedisModule_Free((char *)p->tag.p);
    names_free(&p->entry_points);
    names_free(&p->inputs);
    names_free(&p->outputs);
    blob_unref(p->blob);
    RedisModule_Free(p);
}
void program_list(Program *p, RedisModuleString *key, int db) { p->listed = true; }
void program_unlist(Program *p) { p->listed = false; }
void programs_each(void (*fn)(Program *p, void *u), void *u) {}
void loader_want(Program *p) {}
const char *const backend_names[BACKEND_COUNT] = {"TF", "TFLITE", "TORCH", "ONNX"};
