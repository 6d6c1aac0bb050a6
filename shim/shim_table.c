/* shim_table.c -- the functions that the extension module `_redisai` may call, in one table: the whole border, seen from C. */
#include "ai.h"

static void message_free(Message *m) { RedisModule_Free(m); }
static void *alloc(size_t n) { return RedisModule_Alloc(n); }
static void release(void *p) { RedisModule_Free(p); }
static void log_line(const char *level, const char *line) { ai_log(level, "%s", line); }
static void meter(int64_t delta, int64_t accesses) {
    onnx_memory += delta;
    onnx_memory_accesses += accesses;
}
static void helpers(int64_t live, int64_t started, int64_t ended) {
    helpers_live = live;
    helpers_started = started;
    helpers_ended = ended;
}
static void sandbox(const char *state) { sandbox_state = text("%s", state); }
static RunQueue *runqueue_first(void) { return runqueues; }

const Shim shim_table = {
    .size = sizeof(Shim),
    .dtypes = dtypes,
    .tensor_new = tensor_new,
    .tensor_index_strings = tensor_index_strings,
    .tensor_ref = tensor_ref,
    .tensor_unref = tensor_unref,
    .tensor_resident = tensor_resident,
    .resident_released = resident_released,
    .tensor_aligned = tensor_aligned,
    .inbox_pop = inbox_pop,
    .message_free = message_free,
    .loader_join_blob = loader_join_blob,
    .loader_opened = loader_opened,
    .loader_failed = loader_failed,
    .loader_backend_done = loader_backend_done,
    .names_new = names_new,
    .program_unref = program_unref,
    .program_wait_open = program_wait_open,
    .program_count = program_count,
    .program_key = program_key,
    .runqueue_first = runqueue_first,
    .runqueue_attach = runqueue_attach,
    .runqueue_wait = runqueue_wait,
    .runqueue_try = runqueue_try,
    .batch_gather = batch_gather,
    .batch_finish = batch_finish,
    .batch_fail = batch_fail,
    .batch_split = batch_split,
    .batch_restart = batch_restart,
    .watch_overdue = watch_overdue,
    .watch_still_runs = watch_still_runs,
    .redis_execute = redis_execute,
    .redis_transaction = redis_transaction,
    .redis_model = redis_model,
    .user_ref = user_ref,
    .user_unref = user_unref,
    .flow_next = flow_next,
    .flow_reply = flow_reply,
    .flow_fail = flow_fail,
    .flow_done = flow_done,
    .flow_register = flow_register,
    .flow_unregister = flow_unregister,
    .flow_count = flow_count,
    .flow_start = flow_start,
    .flow_item_free = flow_item_free,
    .names_free = names_free,
    .job_free = job_free,
    .arena_alloc = arena_alloc,
    .arena_copy = arena_copy,
    .arena_free = arena_free,
    .alloc = alloc,
    .free = release,
    .log = log_line,
    .meter = meter,
    .blob_ref = blob_ref,
    .blob_unref = blob_unref,
    .helpers = helpers,
    .sandbox = sandbox,
    .isolation_names = isolation_names,
    .sandbox_names = sandbox_names,
    .config = &config,
    .backend_names = backend_names,
    .now_us = now_us,
};
