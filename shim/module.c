/* module.c -- what the module is: the server it runs in, the events it hears of, and the order in which it starts. Its commands are a table in
 * commands.c, its types one in persist.c. */
#include "ai.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

pthread_mutex_t ai_lock = PTHREAD_MUTEX_INITIALIZER;
int ai_server_version;
RedisModuleCtx *ai_log_ctx;
bool ai_can_trim, ai_enterprise, ai_valkey;
_Atomic bool ai_closing, ai_is_replica;

/* ---- the server ----------------------------------------------------------------------------------------------------------------- */

static bool info_value(RedisModuleCtx *ctx, const char *field, char *into, size_t room) {
    RedisModuleCallReply *reply = RedisModule_Call(ctx, "INFO", "c", "server");
    size_t n = 0, field_len = strlen(field);
    const char *p = reply ? RedisModule_CallReplyStringPtr(reply, &n) : NULL;
    const char *at = p ? memmem(p, n, field, field_len) : NULL;
    if (at) {
        size_t len = 0, left = (size_t)(p + n - at) - field_len;
        at += field_len;
        while (len < left && len + 1 < room && at[len] != '\r' && at[len] != '\n') len++;
        memcpy(into, at, len);
        into[len] = 0;
    }
    if (reply) RedisModule_FreeCallReply(reply);
    return at != NULL;
}

static int check_server(RedisModuleCtx *ctx) {
    char version[32] = "0.0.0", enterprise[32], valkey[32];
    int major = 0, minor = 0, patch = 0;
    info_value(ctx, "redis_version:", version, sizeof(version));
    sscanf(version, "%d.%d.%d", &major, &minor, &patch);
    ai_server_version = major << 16 | minor << 8 | patch;
    ai_enterprise = info_value(ctx, "rlec_version:", enterprise, sizeof(enterprise));
    ai_valkey = info_value(ctx, "valkey_version:", valkey, sizeof(valkey));
    ai_log("notice", "Redis version found by RedisAI: %d.%d.%d - %s", major, minor, patch, ai_enterprise ? "enterprise" : "oss");
    if (ai_enterprise) ai_log("notice", "Redis Enterprise version found by RedisAI: %s", enterprise);
    if (major >= 6) return REDISMODULE_OK;
    ai_log("warning", "RedisAI requires Redis version equal or greater than 6.0.0");
    return REDISMODULE_ERR;
}

/* With more than one I/O thread a server may free a command's arguments on another thread, where a count that we share would race. */
static bool arguments_may_be_kept(RedisModuleCtx *ctx) {
    if (!RedisModule_TrimStringAllocation) return false;
    RedisModuleCallReply *reply = RedisModule_Call(ctx, "CONFIG", "cc", "GET", "io-threads");
    bool single = false;
    if (reply && RedisModule_CallReplyType(reply) == REPLY_ARRAY && RedisModule_CallReplyLength(reply) == 2) {
        size_t n;
        const char *threads = RedisModule_CallReplyStringPtr(RedisModule_CallReplyArrayElement(reply, 1), &n);
        single = n == 1 && threads[0] == '1';
    }
    if (reply) RedisModule_FreeCallReply(reply);
    return single;
}

/* ---- events ------------------------------------------------------------------------------------------------------------------- */

static void leave(int status, void *unused) {
    fflush(NULL);
    _exit(status);
}

/* After the last save. exit() would run the C++ destructors of libraries while workers are inside them: leave before they do. */
static void on_shutdown(RedisModuleCtx *ctx, RedisModuleEvent e, uint64_t sub, void *data) {
    ai_log("notice", "Clearing resources on shutdown");
    runqueues_close();
    flow_queue_close();
    on_exit(leave, NULL);
}

static void on_loading(RedisModuleCtx *ctx, RedisModuleEvent e, uint64_t sub, void *data) {
    flows_loading(sub);
    if (sub == LOADING_ENDED && !ai_is_replica) persist_open_all();
}

static void on_role(RedisModuleCtx *ctx, RedisModuleEvent e, uint64_t sub, void *data) {
    ai_is_replica = sub == ROLE_NOW_REPLICA;
    if (ai_is_replica) flows_sleep();
    else persist_open_all(), flows_wake();
}

static void on_loop(RedisModuleCtx *ctx, RedisModuleEvent e, uint64_t sub, void *data) {
    if (sub != EVENTLOOP_BEFORE_SLEEP) return;
    strings_drain();
    jobs_pause_check();
    flow_persist_turn(ctx);
}

static void on_cron(RedisModuleCtx *ctx, RedisModuleEvent e, uint64_t sub, void *data) {
    strings_drain();
    jobs_pause_check();
    flow_persist_turn(ctx);
}

static void subscribe(RedisModuleCtx *ctx) {
    enum { SERVER_7_0 = 7 << 16 };
    RedisModule_SubscribeToServerEvent(ctx, (RedisModuleEvent){ EVENT_SHUTDOWN, 1 }, on_shutdown);
    RedisModule_SubscribeToServerEvent(ctx, (RedisModuleEvent){ EVENT_LOADING, 1 }, on_loading);
    RedisModule_SubscribeToServerEvent(ctx, (RedisModuleEvent){ EVENT_ROLE_CHANGED, 1 }, on_role);
    /* 7.0 and later tell before each sleep; 6.2 only ten times a second. */
    if (ai_server_version >= SERVER_7_0) RedisModule_SubscribeToServerEvent(ctx, (RedisModuleEvent){ EVENT_EVENTLOOP, 1 }, on_loop);
    else RedisModule_SubscribeToServerEvent(ctx, (RedisModuleEvent){ EVENT_CRON_LOOP, 1 }, on_cron);
    persist_subscribe(ctx);
    flow_persist_subscribe(ctx);
    ai_is_replica = (RedisModule_GetContextFlags(ctx) & CTX_SLAVE) != 0;
}

/* ---- load ------------------------------------------------------------------------------------------------------------------------ */

int thread_start(const char *name, size_t stack, void *(*run)(void *), void *argument) {
    static const int faults[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP };
    pthread_t thread;
    pthread_attr_t attr;
    sigset_t blocked, before;
    sigfillset(&blocked);
    for (size_t i = 0; i < sizeof(faults) / sizeof(*faults); i++) sigdelset(&blocked, faults[i]);
    pthread_attr_init(&attr);
    if (stack) pthread_attr_setstacksize(&attr, stack);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    int failed = pthread_create(&thread, &attr, run, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    if (!failed) pthread_setname_np(thread, name);
    return failed;
}

static int start(RedisModuleCtx *ctx) {
    runqueue_of((Slice){ "CPU", 3 });
    timer_prepare();
    char *error = interp_start(ctx); /* first: it may find no Python, and then no thread has been started and a load can be tried again */
    int failed = error ? 0 : timer_start();
    if (failed) error = text("could not start the timer thread: %s", strerror(failed));
    if (!error) return REDISMODULE_OK;
    ai_log("warning", "%s", error);
    RedisModule_Free(error);
    return REDISMODULE_ERR;
}

static int load(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    const char *missing = redis_api_load(ctx);
    if (RedisModule_IsModuleNameBusy && RedisModule_IsModuleNameBusy("ai")) return REDISMODULE_ERR;
    if (!RedisModule_SetModuleAttribs_) return REDISMODULE_ERR;
    RedisModule_SetModuleAttribs_(ctx, "ai", AI_VERSION, 1);
    if (missing) {
        if (RedisModule_Log) RedisModule_Log(ctx, "warning", "this server lacks %s: RedisAI needs Redis 6.2 or later, or Valkey", missing);
        return REDISMODULE_ERR;
    }
    if (RedisModule_GetDetachedThreadSafeContext) ai_log_ctx = RedisModule_GetDetachedThreadSafeContext(ctx);
    if (check_server(ctx) != REDISMODULE_OK) return REDISMODULE_ERR;
    ai_log("notice", "RedisAI version %d, git_sha=%s", AI_VERSION, ai_git_sha);
    ai_can_trim = arguments_may_be_kept(ctx);
    if (RedisModule_RegisterInfoFunc(ctx, stats_info) != REDISMODULE_OK) return REDISMODULE_ERR;
    if (persist_register(ctx) != REDISMODULE_OK || commands_register(ctx) != REDISMODULE_OK) return REDISMODULE_ERR;
    if (config_load(ctx, argv, argc) != REDISMODULE_OK || flows_register(ctx) != REDISMODULE_OK) return REDISMODULE_ERR;
    if (start(ctx) != REDISMODULE_OK) return REDISMODULE_ERR;
    subscribe(ctx);
    trap_install();
    return REDISMODULE_OK;
}

/* MODULE LOAD on a running server may fail at any step, and the server lives on. It forgets commands and types of a module that failed, but
 * (before 7.2) not what was subscribed to: that comes last. Our threads stay, and therefore our code (-z nodelete in CMakeLists.txt). */
__attribute__((visibility("default"))) int RedisModule_OnLoad(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    int loaded = load(ctx, argv, argc);
    if (loaded != REDISMODULE_OK) ai_log_ctx = NULL; /* names the module, which is about to be freed */
    return loaded;
}
