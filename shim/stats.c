/* stats.c -- what can be seen from outside: AI.INFO of a key, INFO's sections, and the counters behind them.
 *
 * INFO is also called while a crash report is written, on whatever thread crashed and whatever it held: that form takes no lock and
 * leaves out what only a lock makes readable. No value holds '#' or a blank: tools split the text of INFO at both. */
#include "ai.h"

#include <stdio.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

_Atomic int64_t onnx_memory, onnx_memory_accesses;
_Atomic int64_t helpers_live, helpers_started, helpers_ended;
char *_Atomic sandbox_state;

int64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* ---- AI.INFO -------------------------------------------------------------------------------------------------------- */

/* The model or script under a key, borrowed; NULL for anything else. */
static Program *program_at(RedisModuleCtx *ctx, RedisModuleString *name) {
    RedisModuleKey *key = RedisModule_OpenKey(ctx, name, REDISMODULE_READ);
    Program *p = NULL;
    if (key && RedisModule_KeyType(key) == REDISMODULE_KEYTYPE_MODULE) {
        RedisModuleType *t = RedisModule_ModuleTypeGetType(key);
        if (t == ai_model_type || t == ai_script_type) p = RedisModule_ModuleTypeGetValue(key);
    }
    if (key) RedisModule_CloseKey(key);
    return p;
}

static void stats_reset(Stats *s) {
    s->duration_us = s->samples = s->calls = s->errors = 0;
    s->batches = s->batched_rows = s->wait_us = 0;
    for (int i = 0; i < (int)(sizeof s->batch_sizes / sizeof *s->batch_sizes); i++) s->batch_sizes[i] = 0;
}

static void reply_text(RedisModuleCtx *ctx, const char *name, const char *value) {
    RedisModule_ReplyWithStringBuffer(ctx, name, strlen(name));
    RedisModule_ReplyWithStringBuffer(ctx, value, strlen(value));
}

static void reply_number(RedisModuleCtx *ctx, const char *name, int64_t value) {
    RedisModule_ReplyWithStringBuffer(ctx, name, strlen(name));
    RedisModule_ReplyWithLongLong(ctx, value);
}

static int reply_counters(RedisModuleCtx *ctx, RedisModuleString *key, Program *p) {
    bool model = p->kind == PROGRAM_MODEL;
    RedisModule_ReplyWithArray(ctx, 18);
    RedisModule_ReplyWithStringBuffer(ctx, "key", 3);
    RedisModule_ReplyWithString(ctx, key);
    reply_text(ctx, "type", model ? "MODEL" : "SCRIPT");
    reply_text(ctx, "backend", backend_names[p->backend]);
    reply_text(ctx, "device", p->device);
    RedisModule_ReplyWithStringBuffer(ctx, "tag", 3);
    RedisModule_ReplyWithStringBuffer(ctx, p->tag.n ? p->tag.p : "", p->tag.n);
    reply_number(ctx, "duration", p->stats.duration_us);
    reply_number(ctx, "samples", model ? p->stats.samples : -1);
    reply_number(ctx, "calls", p->stats.calls);
    reply_number(ctx, "errors", p->stats.errors);
    return REDISMODULE_OK;
}

/* How batching does: `batch_sizes` is pairs of the least number of requests in a batch (a power of two) and how many batches had so
 * many, for those that occurred. */
static int reply_batches(RedisModuleCtx *ctx, RedisModuleString *key, Program *p) {
    RedisModule_ReplyWithArray(ctx, 10);
    RedisModule_ReplyWithStringBuffer(ctx, "key", 3);
    RedisModule_ReplyWithString(ctx, key);
    reply_number(ctx, "batches", p->stats.batches);
    reply_number(ctx, "batched_requests", p->stats.batched_rows);
    reply_number(ctx, "wait_us", p->stats.wait_us);
    RedisModule_ReplyWithStringBuffer(ctx, "batch_sizes", 11);
    RedisModule_ReplyWithArray(ctx, REDISMODULE_POSTPONED_ARRAY_LEN);
    long n = 0;
    for (int i = 0; i < (int)(sizeof p->stats.batch_sizes / sizeof *p->stats.batch_sizes); i++) {
        int64_t count = p->stats.batch_sizes[i];
        if (!count) continue;
        RedisModule_ReplyWithLongLong(ctx, 1LL << i);
        RedisModule_ReplyWithLongLong(ctx, count);
        n += 2;
    }
    RedisModule_ReplySetArrayLength(ctx, n);
    return REDISMODULE_OK;
}

int cmd_info(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    if (argc < 2 || argc > 3) return RedisModule_WrongArity(ctx);
    Program *p = program_at(ctx, argv[1]);
    if (!p) return RedisModule_ReplyWithError(ctx, "ERR cannot find run info for key");
    if (argc == 3 && slice_is(slice_of(argv[2]), "RESETSTAT")) {
        stats_reset(&p->stats);
        return RedisModule_ReplyWithSimpleString(ctx, "OK");
    }
    if (argc == 3 && slice_is(slice_of(argv[2]), "STATS")) return reply_batches(ctx, argv[1], p);
    return reply_counters(ctx, argv[1], p);
}

/* ---- INFO: the five sections of the original, in its order ------------------------------------------------------------ */

static void section_versions(RedisModuleInfoCtx *info) {
    RedisModule_InfoAddSection(info, "versions");
    RedisModule_InfoAddFieldCString(info, "RedisAI_version", AI_VERSION_TEXT);
    RedisModule_InfoAddFieldCString(info, "low_level_API_version", "1");
    RedisModule_InfoAddFieldLongLong(info, "rdb_version", AI_ENCVER);
}

static void section_git(RedisModuleInfoCtx *info) {
    RedisModule_InfoAddSection(info, "git");
    RedisModule_InfoAddFieldCString(info, "git_sha", ai_git_sha);
}

static void section_load_time_configs(RedisModuleInfoCtx *info) {
    RedisModule_InfoAddSection(info, "load_time_configs");
    RedisModule_InfoAddFieldLongLong(info, "threads_per_queue", config.threads_per_queue);
    RedisModule_InfoAddFieldLongLong(info, "inter_op_parallelism", config.inter_op);
    RedisModule_InfoAddFieldLongLong(info, "intra_op_parallelism", config.intra_op);
    RedisModule_InfoAddFieldLongLong(info, "model_execution_timeout", config.model_execution_timeout);
    RedisModule_InfoAddFieldLongLong(info, "backend_memory_limit", config.backend_memory_limit);
}

/* Any text as one that tools can split: versions come from libraries, devices from clients. */
static const char *as_word(char *into, size_t room, const char *s) {
    size_t n = 0;
    for (; s[n] && n < room - 1; n++) into[n] = s[n] == '#' || (unsigned char)s[n] <= ' ' ? '_' : s[n];
    into[n] = '\0';
    return n ? into : "NA";
}

static void add_word(RedisModuleInfoCtx *info, const char *field, const char *value) {
    char word[512];
    RedisModule_InfoAddFieldCString(info, field, as_word(word, sizeof word, value));
}

/* Most runs that can go on at once: one per worker. */
static int64_t most_sessions(void) {
    int64_t queues = 0;
    for (RunQueue *q = runqueues; q; q = q->next) queues++;
    return queues * config.threads_per_queue;
}

static void section_backends(RedisModuleInfoCtx *info) {
    static const char *const fields[BACKEND_COUNT] = {
        [BACKEND_TF] = "TensorFlow_version",
        [BACKEND_TFLITE] = "TensorFlowLite_version",
        [BACKEND_TORCH] = "Torch_version",
        [BACKEND_ONNX] = "onnxruntime_version",
    };
    RedisModule_InfoAddSection(info, "backends_info");
    for (int b = 0; b < BACKEND_COUNT; b++) {
        const char *version = loader_backend_version((Backend)b);
        if (version) add_word(info, fields[b], version);
    }
    if (!loader_backend_version(BACKEND_ONNX)) return;
    RedisModule_InfoAddFieldLongLong(info, "onnxruntime_memory", onnx_memory);
    RedisModule_InfoAddFieldLongLong(info, "onnxruntime_memory_access_num", onnx_memory_accesses);
    RedisModule_InfoAddFieldLongLong(info, "onnxruntime_maximum_run_sessions_number", most_sessions());
}

static void add_seconds(RedisModuleInfoCtx *info, const char *field, int64_t seconds, int64_t micros) {
    char value[48];
    snprintf(value, sizeof value, "%lld.%06lld", (long long)seconds, (long long)micros);
    RedisModule_InfoAddFieldCString(info, field, value);
}

static void add_usage(RedisModuleInfoCtx *info, const char *who, int which, bool known) {
    struct rusage used;
    char sys[48], user[48];
    snprintf(sys, sizeof sys, "%s_used_cpu_sys", who);
    snprintf(user, sizeof user, "%s_used_cpu_user", who);
    if (!known || getrusage(which, &used)) {
        RedisModule_InfoAddFieldCString(info, sys, "N/A");
        RedisModule_InfoAddFieldCString(info, user, "N/A");
        return;
    }
    add_seconds(info, sys, used.ru_stime.tv_sec, used.ru_stime.tv_usec);
    add_seconds(info, user, used.ru_utime.tv_sec, used.ru_utime.tv_usec);
}

typedef struct QueueView { /* what one look under the lock saw */
    Worker *workers;       /* workers are never freed and each keeps its place in the list */
    int length, waiting, idle, nworkers;
} QueueView;

static QueueView queue_look(RunQueue *q) {
    pthread_mutex_lock(&ai_lock);
    QueueView v = {q->workers, q->length, q->waiting, q->idle, q->nworkers};
    pthread_mutex_unlock(&ai_lock);
    return v;
}

/* One field per worker, and one for each that the queue is entitled to but has not needed yet. */
static void add_queue_cpu(RedisModuleInfoCtx *info, RunQueue *q) {
    Worker *w = queue_look(q).workers;
    for (int i = 1; w || i <= config.threads_per_queue; i++) {
        char device[64], field[128];
        struct timespec used = {0};
        if (w) clock_gettime(w->cpu_clock, &used);
        snprintf(field, sizeof field, "queue_%s_bthread_n%d_used_cpu_total", as_word(device, sizeof device, q->device), i);
        add_seconds(info, field, used.tv_sec, used.tv_nsec / 1000);
        if (w) w = w->next;
    }
}

static void section_cpu(RedisModuleInfoCtx *info, bool crashed) {
    RedisModule_InfoAddSection(info, "cpu");
    add_usage(info, "self", RUSAGE_SELF, true);
    add_usage(info, "children", RUSAGE_CHILDREN, true);
    add_usage(info, "main_thread", RUSAGE_THREAD, gettid() == getpid()); /* a script on a worker may ask for INFO, too */
    if (crashed) return;
    for (RunQueue *q = runqueues; q; q = q->next) add_queue_cpu(info, q);
}

/* ---- INFO: our own sections, after those of the original ---------------------------------------------------------------- */

static void add_missing_functions(RedisModuleInfoCtx *info) {
    static const char prefix[] = "RedisModule_";
    char list[480] = "";
    size_t n = 0;
    const char *name;
    for (int i = 0; (name = redis_api_missing(i)) && n < sizeof list - 64; i++)
        n += (size_t)snprintf(list + n, sizeof list - n, "%s%s", n ? "," : "", name + (sizeof prefix - 1));
    RedisModule_InfoAddFieldCString(info, "missing_api_functions", n ? list : "none");
}

static void section_runtime(RedisModuleInfoCtx *info) {
    RedisModule_InfoAddSection(info, "runtime");
    add_word(info, "python_version", python_version);
    RedisModule_InfoAddFieldCString(info, "server_kind", ai_enterprise ? "enterprise" : "oss");
    RedisModule_InfoAddFieldLongLong(info, "jobs_in_flight", jobs_in_flight);
    RedisModule_InfoAddFieldLongLong(info, "jobs_timed_out", jobs_timed_out);
    RedisModule_InfoAddFieldLongLong(info, "jobs_disconnected", jobs_gone);
    RedisModule_InfoAddFieldLongLong(info, "loads_in_progress", loads_wanted - loads_done - loads_failed); /* one at a time; others wait */
    RedisModule_InfoAddFieldLongLong(info, "loads_done", loads_done);
    RedisModule_InfoAddFieldLongLong(info, "loads_failed", loads_failed);
    add_missing_functions(info);
}

static void section_batches(RedisModuleInfoCtx *info) {
    const struct {
        const char *name;
        int64_t n;
    } sums[] = {
        {"calls", all_runs.calls},     {"errors", all_runs.errors},           {"duration_us", all_runs.duration_us},
        {"batches", all_runs.batches}, {"batched_requests", all_runs.batched_rows}, {"wait_us", all_runs.wait_us},
    };
    RedisModule_InfoAddSection(info, "batches");
    for (size_t i = 0; i < sizeof sums / sizeof *sums; i++) RedisModule_InfoAddFieldLongLong(info, sums[i].name, sums[i].n);
    for (int i = 0; i < (int)(sizeof all_runs.batch_sizes / sizeof *all_runs.batch_sizes); i++) {
        char field[48];
        if (!all_runs.batch_sizes[i]) continue;
        snprintf(field, sizeof field, "batches_of_%d_and_more", 1 << i);
        RedisModule_InfoAddFieldLongLong(info, field, all_runs.batch_sizes[i]);
    }
}

/* What a library holds for its sessions is at least the models again; of ONNX Runtime more is known. */
static int64_t memory_estimate(int kind) {
    int64_t counted = kind == BACKEND_ONNX ? onnx_memory : 0;
    return counted > session_bytes[kind] ? counted : session_bytes[kind];
}

static void section_sessions(RedisModuleInfoCtx *info) {
    RedisModule_InfoAddSection(info, "sessions");
    for (int kind = 0; kind < SESSION_KINDS; kind++) {
        const char *name = kind < BACKEND_COUNT ? backend_names[kind] : "SCRIPT";
        char field[48];
        snprintf(field, sizeof field, "%s_sessions", name);
        RedisModule_InfoAddFieldLongLong(info, field, sessions_open[kind]);
        snprintf(field, sizeof field, "%s_memory_estimate", name);
        RedisModule_InfoAddFieldLongLong(info, field, memory_estimate(kind));
    }
}

static void section_isolation(RedisModuleInfoCtx *info) {
    const char *sandbox = sandbox_state;
    RedisModule_InfoAddSection(info, "isolation");
    RedisModule_InfoAddFieldCString(info, "isolation", isolation_names[config.isolation]);
    RedisModule_InfoAddFieldLongLong(info, "helpers", helpers_live);
    RedisModule_InfoAddFieldLongLong(info, "helpers_started", helpers_started);
    RedisModule_InfoAddFieldLongLong(info, "helpers_ended", helpers_ended);
    add_word(info, "sandbox", sandbox ? sandbox : "no");
}

static void section_queues(RedisModuleInfoCtx *info) {
    RedisModule_InfoAddSection(info, "queues");
    for (RunQueue *q = runqueues; q; q = q->next) {
        QueueView v = queue_look(q);
        const struct {
            const char *what;
            int n;
        } fields[] = {{"length", v.length}, {"waiting", v.waiting}, {"workers", v.nworkers}, {"idle_workers", v.idle}};
        for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
            char device[64], field[128];
            snprintf(field, sizeof field, "queue_%s_%s", as_word(device, sizeof device, q->device), fields[i].what);
            RedisModule_InfoAddFieldLongLong(info, field, fields[i].n);
        }
    }
}

static void section_flows(RedisModuleInfoCtx *info) {
    RedisModule_InfoAddSection(info, "flows");
    RedisModule_InfoAddFieldLongLong(info, "flow_registrations", flows_number());
    RedisModule_InfoAddFieldLongLong(info, "flows_triggered", flows_triggered);
    RedisModule_InfoAddFieldLongLong(info, "flows_failed", flows_failed);
    RedisModule_InfoAddFieldLongLong(info, "flow_events_dropped", flows_dropped);
    RedisModule_InfoAddFieldLongLong(info, "flows_in_flight", flows_outstanding);
}

void stats_info(RedisModuleInfoCtx *info, int for_crash_report) {
    section_versions(info);
    section_git(info);
    section_load_time_configs(info);
    section_backends(info);
    section_cpu(info, for_crash_report);
    section_runtime(info);
    section_batches(info);
    section_sessions(info);
    section_isolation(info);
    if (!for_crash_report) section_queues(info);
    if (!for_crash_report && config.flows) section_flows(info);
}
