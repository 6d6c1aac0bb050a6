/* config.c -- load arguments and AI.CONFIG: what an operator may set, each a row of a table.
 *
 * Only the holder of the Redis lock writes and reads texts here; Python reads numbers, once, when it starts. A path that names a backend
 * is compared, kept for a log line and never opened: what is imported is the package that this server was installed with. */
#include "ai.h"

#include <dlfcn.h>

enum { MIB = 1024 * 1024 };

static const Config defaults = {
    .threads_per_queue = 1,
    .model_execution_timeout = 5000,
    .model_chunk_size = 511 * MIB,
    .max_tensor_bytes = 512 * MIB,
    .max_model_bytes = INT64_MAX,
    .max_script_bytes = 16 * MIB,
    .max_queue = 65536,
};
Config config;

/* ---- values --------------------------------------------------------------------------------------------------------- */

static bool to_number(Slice value, int64_t least, int64_t *out) {
    int64_t n;
    if (!slice_to_int(value, &n) || n < least) return false;
    *out = n;
    return true;
}

static void replace_text(char **at, Slice value) {
    RedisModule_Free(*at);
    *at = slice_dup(value);
}

/* ---- backends by path ----------------------------------------------------------------------------------------------- */

/* What the folder of each backend, and the library in it, have always been called. */
static const char *const backend_stems[BACKEND_COUNT] = {
    [BACKEND_TF] = "redisai_tensorflow",
    [BACKEND_TFLITE] = "redisai_tflite",
    [BACKEND_TORCH] = "redisai_torch",
    [BACKEND_ONNX] = "redisai_onnxruntime",
};

static Slice last_component(Slice path) {
    while (path.n && path.p[path.n - 1] == '/') path.n--;
    const char *slash = memrchr(path.p, '/', path.n);
    size_t skip = slash ? (size_t)(slash + 1 - path.p) : 0;
    return (Slice){path.p + skip, path.n - skip};
}

static bool names_backend(Backend b, Slice path) {
    Slice name = last_component(path);
    size_t stem = strlen(backend_stems[b]);
    if (name.n == stem + 3 && !memcmp(name.p + stem, ".so", 3)) name.n = stem;
    return name.n == stem && !memcmp(name.p, backend_stems[b], stem);
}

static bool backend_parse(Slice name, Backend *out) {
    for (int i = 0; i < BACKEND_COUNT; i++)
        if (slice_is(name, backend_names[i])) return *out = (Backend)i, true;
    return false;
}

/* Once and for all: the loader may be reading it. */
static void remember_path(Backend b, Slice path) {
    if (config.backend_path[b]) return;
    config.backend_path[b] = path.n && path.p[0] == '/' ? slice_dup(path) : text("%s/%.*s", config.backends_path, (int)path.n, path.p);
}

/* ---- load arguments --------------------------------------------------------------------------------------------------- */

typedef struct Option {
    const char *name;
    bool (*set)(const struct Option *o, Slice value); /* false: refused */
    void *at;
    int64_t least;
    bool silent; /* no "Setting ..." line */
    bool shown;  /* by AI.CONFIG GET */
} Option;

static bool set_number(const Option *o, Slice value) { return to_number(value, o->least, o->at); }

/* 0 stands for "no limit", which the checks read as a number nothing exceeds. */
static bool set_limit(const Option *o, Slice value) {
    int64_t *at = o->at;
    if (!to_number(value, 0, at)) return false;
    if (!*at) *at = INT64_MAX;
    return true;
}

static bool set_chunk_size(const Option *o, Slice value) {
    int64_t n;
    if (!to_number(value, o->least, &n)) return false;
    config.model_chunk_size = n;
    return true;
}

static bool set_yes_no(const Option *o, Slice value) {
    bool yes = slice_is(value, "YES");
    *(bool *)o->at = yes;
    return yes || slice_is(value, "NO");
}

static bool set_text(const Option *o, Slice value) {
    replace_text(o->at, value);
    return true;
}

/* Naming a backend twice would be loading it twice, which fails. */
static bool set_backend(const Option *o, Slice value) {
    Backend b;
    if (!backend_parse((Slice){o->name, strlen(o->name)}, &b) || config.eager[b] || !names_backend(b, value)) return false;
    remember_path(b, value);
    return config.eager[b] = true;
}

static const Option options[] = {
    {"BACKENDSPATH", set_text, .at = &config.backends_path, .silent = true},
    {"TF", set_backend, .silent = true},
    {"TFLITE", set_backend, .silent = true},
    {"TORCH", set_backend, .silent = true},
    {"ONNX", set_backend, .silent = true},
    {"THREADS_PER_QUEUE", set_number, .at = &config.threads_per_queue, .least = 1},
    {"INTRA_OP_PARALLELISM", set_number, .at = &config.intra_op},
    {"INTER_OP_PARALLELISM", set_number, .at = &config.inter_op},
    {"MODEL_CHUNK_SIZE", set_chunk_size, .least = 1},
    {"MODEL_EXECUTION_TIMEOUT", set_number, .at = &config.model_execution_timeout, .least = 1000},
    {"BACKEND_MEMORY_LIMIT", set_number, .at = &config.backend_memory_limit},
    {"MAX_QUEUE", set_limit, .at = &config.max_queue, .shown = true},
    {"MAX_TENSOR_BYTES", set_limit, .at = &config.max_tensor_bytes, .shown = true},
    {"MAX_MODEL_BYTES", set_limit, .at = &config.max_model_bytes, .shown = true},
    {"MAX_SCRIPT_BYTES", set_limit, .at = &config.max_script_bytes, .shown = true},
    {"ALLOW_FILE_OPS", set_yes_no, .at = &config.allow_file_ops},
    {"PYTHON", set_text, .at = &config.python},
};
enum { OPTIONS = sizeof options / sizeof *options };

static const Option *option_find(Slice name) {
    for (int i = 0; i < OPTIONS; i++)
        if (slice_is(name, options[i].name)) return &options[i];
    return NULL;
}

static bool apply(Slice name, Slice value) {
    const Option *o = option_find(name);
    if (!o || !o->set(o, value)) {
        ai_log("warning", "ERR error processing argument: %.*s %.*s", (int)name.n, name.p, (int)value.n, value.p);
        return false;
    }
    if (!o->silent) ai_log("notice", "Setting %s parameter to: %.*s", o->name, (int)value.n, value.p);
    return true;
}

/* Some launchers pass "NAME value" as one argument. A value may hold blanks, a name never does. Returns how many words came of it. */
static int split_arguments(RedisModuleString **argv, int argc, Slice *words) {
    int n = 0;
    for (int i = 0; i < argc; i++) {
        Slice s = slice_of(argv[i]);
        const char *blank = n % 2 ? NULL : memchr(s.p, ' ', s.n);
        if (!blank) {
            words[n++] = s;
            continue;
        }
        words[n++] = (Slice){s.p, (size_t)(blank - s.p)};
        while (blank < s.p + s.n && *blank == ' ') blank++;
        words[n++] = (Slice){blank, (size_t)(s.p + s.n - blank)};
    }
    return n;
}

/* BACKENDSPATH counts for every backend named, wherever it stands. */
static bool apply_all(const Slice *words, int n) {
    for (int paths = 1; paths >= 0; paths--)
        for (int i = 0; i < n; i += 2)
            if (slice_is(words[i], "BACKENDSPATH") == paths && !apply(words[i], words[i + 1])) return false;
    return true;
}

static void default_backends_path(void) {
    Dl_info found;
    const char *file = dladdr((void *)config_load, &found) && found.dli_fname ? found.dli_fname : "";
    const char *slash = strrchr(file, '/');
    config.backends_path = text("%.*s/backends", slash ? (int)(slash - file) : 1, slash ? file : ".");
}

int config_load(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    config = defaults; /* after a load that failed as well */
    default_backends_path();
    Slice *words = RedisModule_Alloc((size_t)(2 * argc + 1) * sizeof *words);
    int n = split_arguments(argv, argc, words);
    bool good = n % 2 == 0;
    if (!good)
        ai_log("warning", "Even number of arguments provided to module. Please provide arguments as KEY VAL pairs");
    good = good && apply_all(words, n);
    RedisModule_Free(words);
    return good ? REDISMODULE_OK : REDISMODULE_ERR;
}

/* ---- AI.CONFIG ------------------------------------------------------------------------------------------------------ */

static int reply_ok(RedisModuleCtx *ctx) { return RedisModule_ReplyWithSimpleString(ctx, "OK"); }

/* The loader replies, unless this client may not wait: then the import is only asked for. */
static int load_backend(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    Backend b;
    if (argc < 4) return RedisModule_WrongArity(ctx);
    if (!backend_parse(slice_of(argv[2]), &b)) return RedisModule_ReplyWithError(ctx, "ERR unsupported backend");
    Slice path = slice_of(argv[3]);
    if (!names_backend(b, path) || loader_backend_loaded(b)) return RedisModule_ReplyWithError(ctx, "ERR error loading backend");
    remember_path(b, path);

    Job *job = may_block(ctx) ? job_new(JOB_LOADBACKEND) : NULL;
    if (job) job_block(ctx, job);
    inbox_post((Message){.kind = MSG_BACKEND, .backend = (uint8_t)b, .job = job});
    return job ? REDISMODULE_OK : reply_ok(ctx);
}

static int set_backends_path(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    if (argc < 3) return RedisModule_ReplyWithError(ctx, "ERR BACKENDSPATH: missing path argument");
    replace_text(&config.backends_path, slice_of(argv[2]));
    return reply_ok(ctx);
}

static int set_model_chunk_size(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    int64_t n;
    if (argc < 3) return RedisModule_ReplyWithError(ctx, "ERR MODEL_CHUNK_SIZE: missing chunk size");
    if (!to_number(slice_of(argv[2]), 1, &n)) return RedisModule_ReplyWithError(ctx, "ERR MODEL_CHUNK_SIZE: invalid chunk size");
    config.model_chunk_size = n;
    return reply_ok(ctx);
}

/* What the original does not know is null there; our own limits are shown, 0 for none. */
static int get(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    if (argc < 3) return RedisModule_WrongArity(ctx);
    Slice name = slice_of(argv[2]);
    if (slice_is(name, "BACKENDSPATH"))
        return RedisModule_ReplyWithStringBuffer(ctx, config.backends_path, strlen(config.backends_path));
    if (slice_is(name, "MODEL_CHUNK_SIZE")) return RedisModule_ReplyWithLongLong(ctx, config.model_chunk_size);
    const Option *o = option_find(name);
    if (!o || !o->shown) return RedisModule_ReplyWithNull(ctx);
    int64_t n = *(int64_t *)o->at;
    return RedisModule_ReplyWithLongLong(ctx, n == INT64_MAX ? 0 : n);
}

int cmd_config(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    static const struct {
        const char *name;
        RedisModuleCmdFunc run;
    } subcommands[] = {
        {"LOADBACKEND", load_backend},
        {"BACKENDSPATH", set_backends_path},
        {"MODEL_CHUNK_SIZE", set_model_chunk_size},
        {"GET", get},
    };
    if (argc < 2) return RedisModule_WrongArity(ctx);
    for (size_t i = 0; i < sizeof subcommands / sizeof *subcommands; i++)
        if (slice_is(slice_of(argv[1]), subcommands[i].name)) return subcommands[i].run(ctx, argv, argc);
    return RedisModule_ReplyWithError(ctx, "ERR unsupported subcommand");
}
