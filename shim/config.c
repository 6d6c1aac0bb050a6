/* config.c -- what an operator may set: load arguments, parameters of CONFIG GET and SET, AI.CONFIG. Each is a row of one table.
 *
 * 1. Only the holder of the Redis lock writes, and reads texts; numbers are atomic, because workers check sizes against them. Python takes a
 *    snapshot when it starts: what it alone uses is immutable afterwards.
 * 2. Load arguments are read first, and what they leave in force is registered as the default of the server's parameter of the same meaning.
 *    So a value from redis.conf or MODULE LOADEX ... CONFIG wins over a load argument, the server's own defaulting changes nothing, and
 *    CONFIG REWRITE writes what was changed since. Servers before 7.0 know load arguments only.
 * 3. A path that names a backend is compared, kept for a log line and never opened: what is imported is the package that this server was
 *    installed with. */
#include "ai.h"

#include <dlfcn.h>
#include <strings.h>

enum { MIB = 1024 * 1024 };

static const Config defaults = {
    .threads_per_queue = 1,
    .model_execution_timeout = 5000,
    .model_chunk_size = 511 * MIB,
    .max_tensor_bytes = 512 * MIB,
    .max_model_bytes = INT64_MAX,
    .max_script_bytes = 1 * MIB,
    .max_queue = 65536,
    .flows_timeout = 30000, /* a loop without an end must not take a thread for ever */
};
Config config;

const char *const isolation_names[] = {"none", "process", NULL};
const char *const sandbox_names[] = {"no", "yes", "auto", NULL};

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

/* ---- the table ------------------------------------------------------------------------------------------------------ */

typedef struct Option {
    const char *name;      /* as a load argument */
    const char *parameter; /* of CONFIG, where the server puts "ai." before it; NULL = none */
    bool (*set)(const struct Option *o, Slice value);                       /* false: refused */
    int (*enlist)(RedisModuleCtx *ctx, const struct Option *o);             /* registers the parameter */
    _Atomic int64_t *number;
    const char *const *choices;                                             /* of which `number` is one; NULL: any number */
    bool *flag;
    char **text;
    int64_t least;
    unsigned flags; /* CONFIG_* of the parameter */
    bool limit;     /* 0 stands for none, which the checks read as a number nothing exceeds */
    bool silent;    /* no "Setting ..." line */
    bool shown;     /* by AI.CONFIG GET */
    void (*changed)(void); /* tells those who sleep until what the old value said */
} Option;

static int64_t number_of(const Option *o) {
    int64_t n = *o->number;
    return o->limit && n == INT64_MAX ? 0 : n;
}

static void put_number(const Option *o, int64_t n) {
    *o->number = o->limit && !n ? INT64_MAX : n;
    if (o->changed) o->changed();
}

/* As load arguments. */

static bool set_number(const Option *o, Slice value) {
    int64_t n;
    if (!to_number(value, o->least, &n)) return false;
    put_number(o, n);
    return true;
}

static bool set_choice(const Option *o, Slice value) {
    for (int i = 0; o->choices[i]; i++)
        if (strlen(o->choices[i]) == value.n && !strncasecmp(o->choices[i], value.p, value.n)) {
            *o->number = i;
            return true;
        }
    return false;
}

static bool set_yes_no(const Option *o, Slice value) {
    *o->flag = slice_is(value, "YES");
    return *o->flag || slice_is(value, "NO");
}

static bool set_text(const Option *o, Slice value) {
    replace_text(o->text, value);
    return true;
}

/* Naming a backend twice would be loading it twice, which fails. */
static bool set_backend(const Option *o, Slice value) {
    Backend b;
    if (!backend_parse((Slice){o->name, strlen(o->name)}, &b) || config.eager[b] || !names_backend(b, value)) return false;
    remember_path(b, value);
    return config.eager[b] = true;
}

/* As parameters. A name is what the table says; `u` is its row. */

static long long get_number_parameter(const char *name, void *u) { return number_of(u); }

static int set_number_parameter(const char *name, long long value, void *u, RedisModuleString **error) {
    put_number(u, value);
    return REDISMODULE_OK;
}

static int enlist_number(RedisModuleCtx *ctx, const Option *o) {
    return RedisModule_RegisterNumericConfig(ctx, o->parameter, number_of(o), o->flags, o->least, INT64_MAX, get_number_parameter,
                                             set_number_parameter, NULL, (void *)o);
}

static int get_choice_parameter(const char *name, void *u) { return (int)number_of(u); }

static int set_choice_parameter(const char *name, int value, void *u, RedisModuleString **error) {
    *((const Option *)u)->number = value;
    return REDISMODULE_OK;
}

static int enlist_choice(RedisModuleCtx *ctx, const Option *o) {
    static const int values[] = {0, 1, 2};
    int n = 0;
    while (o->choices[n]) n++;
    return RedisModule_RegisterEnumConfig(ctx, o->parameter, (int)number_of(o), o->flags, (const char **)o->choices, values, n,
                                          get_choice_parameter, set_choice_parameter, NULL, (void *)o);
}

static int get_yes_no_parameter(const char *name, void *u) { return *((const Option *)u)->flag; }

static int set_yes_no_parameter(const char *name, int value, void *u, RedisModuleString **error) {
    *((const Option *)u)->flag = value;
    return REDISMODULE_OK;
}

static int enlist_yes_no(RedisModuleCtx *ctx, const Option *o) {
    return RedisModule_RegisterBoolConfig(ctx, o->parameter, *o->flag, o->flags, get_yes_no_parameter, set_yes_no_parameter, NULL,
                                          (void *)o);
}

/* The server copies what it gets and frees nothing: the last answer is kept until the next. */
static RedisModuleString *get_text_parameter(const char *name, void *u) {
    static RedisModuleString *answer;
    const char *value = *((const Option *)u)->text;
    if (answer) RedisModule_FreeString(NULL, answer);
    return answer = RedisModule_CreateString(NULL, value ? value : "", value ? strlen(value) : 0);
}

static int set_text_parameter(const char *name, RedisModuleString *value, void *u, RedisModuleString **error) {
    char **text = ((const Option *)u)->text;
    Slice s = slice_of(value);
    if (s.n || *text) replace_text(text, s); /* nothing stays nothing */
    return REDISMODULE_OK;
}

static int enlist_text(RedisModuleCtx *ctx, const Option *o) {
    const char *value = *o->text;
    return RedisModule_RegisterStringConfig(ctx, o->parameter, value ? value : "", o->flags, get_text_parameter, set_text_parameter, NULL,
                                            (void *)o);
}

static const Option options[] = {
    {"BACKENDSPATH", "backends-path", set_text, enlist_text, .text = &config.backends_path, .silent = true},
    {"TF", .set = set_backend, .silent = true},
    {"TFLITE", .set = set_backend, .silent = true},
    {"TORCH", .set = set_backend, .silent = true},
    {"ONNX", .set = set_backend, .silent = true},
    {"THREADS_PER_QUEUE", "threads-per-queue", set_number, enlist_number, &config.threads_per_queue, .least = 1, .flags = CONFIG_IMMUTABLE},
    {"INTRA_OP_PARALLELISM", "intra-op-parallelism", set_number, enlist_number, &config.intra_op, .flags = CONFIG_IMMUTABLE},
    {"INTER_OP_PARALLELISM", "inter-op-parallelism", set_number, enlist_number, &config.inter_op, .flags = CONFIG_IMMUTABLE},
    {"MODEL_CHUNK_SIZE", "model-chunk-size", set_number, enlist_number, &config.model_chunk_size, .least = 1, .flags = CONFIG_MEMORY},
    {"MODEL_EXECUTION_TIMEOUT", "model-execution-timeout", set_number, enlist_number, &config.model_execution_timeout, .least = 1000,
     .changed = watch_limit_changed},
    {"BACKEND_MEMORY_LIMIT", "backend-memory-limit", set_number, enlist_number, &config.backend_memory_limit, .flags = CONFIG_IMMUTABLE},
    {"MAX_QUEUE", "max-queue", set_number, enlist_number, &config.max_queue, .limit = true, .shown = true},
    {"MAX_TENSOR_BYTES", "max-tensor-bytes", set_number, enlist_number, &config.max_tensor_bytes, .limit = true, .shown = true,
     .flags = CONFIG_MEMORY},
    {"MAX_MODEL_BYTES", "max-model-bytes", set_number, enlist_number, &config.max_model_bytes, .limit = true, .shown = true,
     .flags = CONFIG_MEMORY},
    {"MAX_SCRIPT_BYTES", "max-script-bytes", set_number, enlist_number, &config.max_script_bytes, .limit = true, .shown = true,
     .flags = CONFIG_MEMORY},
    {"ALLOW_FILE_OPS", "allow-file-ops", set_yes_no, enlist_yes_no, .flag = &config.allow_file_ops, .flags = CONFIG_IMMUTABLE},
    {"FLOWS", "flows", set_yes_no, enlist_yes_no, .flag = &config.flows, .flags = CONFIG_IMMUTABLE},
    {"FLOWS_TIMEOUT", "flows-timeout", set_number, enlist_number, &config.flows_timeout, .flags = CONFIG_IMMUTABLE},
    {"ISOLATION", "isolation", set_choice, enlist_choice, &config.isolation, isolation_names, .flags = CONFIG_IMMUTABLE, .shown = true},
    {"SANDBOX", "sandbox", set_choice, enlist_choice, &config.sandbox, sandbox_names, .flags = CONFIG_IMMUTABLE, .shown = true},
    {"PYTHON", "python", set_text, enlist_text, .text = &config.python, .flags = CONFIG_IMMUTABLE},
};
enum { OPTIONS = sizeof options / sizeof *options };

static const Option *option_find(Slice name) {
    for (int i = 0; i < OPTIONS; i++)
        if (slice_is(name, options[i].name)) return &options[i];
    return NULL;
}

/* ---- load arguments --------------------------------------------------------------------------------------------------- */

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

static bool load_arguments(RedisModuleString **argv, int argc) {
    Slice *words = RedisModule_Alloc((size_t)(2 * argc + 1) * sizeof *words);
    int n = split_arguments(argv, argc, words);
    bool good = n % 2 == 0;
    if (!good)
        ai_log("warning", "Even number of arguments provided to module. Please provide arguments as KEY VAL pairs");
    good = good && apply_all(words, n);
    RedisModule_Free(words);
    return good;
}

/* ---- parameters of the server ----------------------------------------------------------------------------------------- */

/* The backends to load at start, as one parameter: a set of names. */
static int get_eager(const char *name, void *u) {
    int mask = 0;
    for (int b = 0; b < BACKEND_COUNT; b++) mask |= config.eager[b] << b;
    return mask;
}

static int set_eager(const char *name, int mask, void *u, RedisModuleString **error) {
    for (int b = 0; b < BACKEND_COUNT; b++) config.eager[b] = mask >> b & 1;
    return REDISMODULE_OK;
}

static int enlist_eager(RedisModuleCtx *ctx) {
    static const char *names[] = {"none", "tf", "tflite", "torch", "onnx"};
    static const int bits[] = {0, 1 << BACKEND_TF, 1 << BACKEND_TFLITE, 1 << BACKEND_TORCH, 1 << BACKEND_ONNX};
    return RedisModule_RegisterEnumConfig(ctx, "load-backends", get_eager(NULL, NULL), CONFIG_IMMUTABLE | CONFIG_BITFLAGS, names, bits,
                                          sizeof names / sizeof *names, get_eager, set_eager, NULL, NULL);
}

static bool enlist_parameters(RedisModuleCtx *ctx) {
    if (!RedisModule_LoadConfigs) return true;
    bool good = enlist_eager(ctx) == REDISMODULE_OK;
    for (int i = 0; i < OPTIONS && good; i++)
        if (options[i].parameter) good = options[i].enlist(ctx, &options[i]) == REDISMODULE_OK;
    return good && RedisModule_LoadConfigs(ctx) == REDISMODULE_OK; /* it logs what is wrong */
}

int config_load(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    config = defaults; /* after a load that failed as well */
    default_backends_path();
    return load_arguments(argv, argc) && enlist_parameters(ctx) ? REDISMODULE_OK : REDISMODULE_ERR;
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
    if (o->choices) return RedisModule_ReplyWithStringBuffer(ctx, o->choices[number_of(o)], strlen(o->choices[number_of(o)]));
    return RedisModule_ReplyWithLongLong(ctx, number_of(o));
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
        {"_FLOW", cmd_config_flow}, /* from a master or an AOF: see flow_persist.c */
    };
    if (argc < 2) return RedisModule_WrongArity(ctx);
    for (size_t i = 0; i < sizeof subcommands / sizeof *subcommands; i++)
        if (slice_is(slice_of(argv[1]), subcommands[i].name)) return subcommands[i].run(ctx, argv, argc);
    return RedisModule_ReplyWithError(ctx, "ERR unsupported subcommand");
}
