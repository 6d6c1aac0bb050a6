/* reply.c -- the reply phase: on the main thread, after a job has ended.
 *
 * All keyspace writes of runs and stores happen here, after checks of role, memory, pause, slot and key type, because all of these may have
 * changed while the job ran. What was written is replicated as AI.TENSORSET of the outputs, never as the run. The one reply comes last. */
#include "ai.h"

void reply_error_line(RedisModuleCtx *ctx, const char *line) {
    char *flat = text("%s", line);
    for (char *c = flat; *c; c++)
        if (*c == '\n' || *c == '\r') *c = ' ';
    RedisModule_ReplyWithError(ctx, flat);
    RedisModule_Free(flat);
}

/* ---- may we write? --------------------------------------------------------------------------------------------------------- */

/* Why nothing can be written now; NULL when it can. */
static const char *write_refusal(RedisModuleCtx *ctx) {
    int flags = RedisModule_GetContextFlags(ctx);
    if ((flags & CTX_SLAVE) && (flags & CTX_READONLY)) return "READONLY You can't write against a read only replica.";
    if ((flags & CTX_OOM) && !(flags & CTX_EVICT)) return "OOM command not allowed when used memory > 'maxmemory'.";
    /* The pause began since the main thread last slept; a job that ends later is parked instead (job.c). */
    if (RedisModule_AvoidReplicaTraffic()) return "ERR writes are paused, the result was not stored";
    return NULL;
}

/* In a cluster the key's slot may have moved away while the job ran: the server itself then refuses a call that names the key. */
static bool slot_is_ours(RedisModuleCtx *ctx, RedisModuleString *key) {
    if (!(RedisModule_GetContextFlags(ctx) & CTX_CLUSTER)) return true;
    RedisModuleCallReply *reply = RedisModule_Call(ctx, "EXISTS", "s", key);
    if (!reply) return false;
    RedisModule_FreeCallReply(reply);
    return true;
}

static const char SLOT_MOVED[] = "ERR CROSSSLOT Keys in request don't hash to the same slot";

static bool holds_other_than(RedisModuleKey *key, RedisModuleType *type) {
    return RedisModule_KeyType(key) != REDISMODULE_KEYTYPE_EMPTY && RedisModule_ModuleTypeGetType(key) != type;
}

/* ---- runs ------------------------------------------------------------------------------------------------------------------ */

static const char *write_output(RedisModuleCtx *ctx, RedisModuleString *name, Tensor *t) {
    if (!slot_is_ours(ctx, name)) return SLOT_MOVED;
    RedisModuleKey *key = RedisModule_OpenKey(ctx, name, REDISMODULE_READ | REDISMODULE_WRITE);
    const char *error = NULL;
    if (holds_other_than(key, ai_tensor_type)) error = REDISMODULE_ERRORMSG_WRONGTYPE;
    else if (tensor_store(key, t) != REDISMODULE_OK) error = "ERR could not save tensor";
    RedisModule_CloseKey(key);
    if (error) return error;
    announce(ctx, name, "ai.tensorset");
    tensor_replicate(ctx, name, t);
    return NULL;
}

/* Writes what the plan says; stops at the first error, what was written before it stays (as in 1.2.7). */
static const char *write_outputs(RedisModuleCtx *ctx, RedisModuleString **argv, Job *job) {
    if (!job->plan.noutputs) return NULL;
    const char *error = write_refusal(ctx);
    for (int i = 0; i < job->plan.noutputs && !error; i++) {
        Tensor *t = job->plan.slots[job->plan.outputs[i].slot];
        if (t) error = write_output(ctx, argv[job->plan.outputs[i].arg], t); /* not produced: the key stays as it is */
    }
    return error;
}

static void reply_op(RedisModuleCtx *ctx, const Plan *plan, const Op *op) {
    Tensor *t;
    switch (op->kind) {
    case OP_TENSORSET:
        RedisModule_ReplyWithSimpleString(ctx, "OK");
        return;
    case OP_TENSORGET:
        if ((t = plan->slots[op->in[0]])) tensor_reply(ctx, t, op->show);
        else RedisModule_ReplyWithSimpleString(ctx, "NA");
        return;
    default:
        if (op->state == OP_FAILED) reply_error_line(ctx, op->error);
        else RedisModule_ReplyWithSimpleString(ctx, op->state == OP_DONE ? "OK" : "NA");
    }
}

static void reply_per_op(RedisModuleCtx *ctx, RedisModuleString **argv, Job *job) {
    const char *error = job->failed ? NULL : write_outputs(ctx, argv, job);
    RedisModule_ReplyWithArray(ctx, job->plan.nops + (error != NULL));
    for (int i = 0; i < job->plan.nops; i++) reply_op(ctx, &job->plan, &job->plan.ops[i]);
    if (error) RedisModule_ReplyWithError(ctx, error);
}

static void reply_one(RedisModuleCtx *ctx, RedisModuleString **argv, Job *job) {
    if (job->failed) {
        reply_error_line(ctx, job->plan.ops[0].error);
        return;
    }
    const char *error = write_outputs(ctx, argv, job);
    if (error) RedisModule_ReplyWithError(ctx, error);
    else RedisModule_ReplyWithSimpleString(ctx, "OK");
}

void reply_run(RedisModuleCtx *ctx, RedisModuleString **argv, Job *job) {
    if (job->timed_out) RedisModule_ReplyWithSimpleString(ctx, "TIMEDOUT");
    else if (job->plan.form == REPLY_PER_OP) reply_per_op(ctx, argv, job);
    else reply_one(ctx, argv, job);
}

/* ---- stores ------------------------------------------------------------------------------------------------------------------ */

static const char *write_program(RedisModuleCtx *ctx, RedisModuleString *name, Job *job) {
    Program *p = job->program;
    const char *error = write_refusal(ctx);
    if (error) return error;
    if (!slot_is_ours(ctx, name)) return SLOT_MOVED;
    RedisModuleKey *key = RedisModule_OpenKey(ctx, name, REDISMODULE_READ | REDISMODULE_WRITE);
    if (holds_other_than(key, p->kind == PROGRAM_MODEL ? ai_model_type : ai_script_type)) {
        error = REDISMODULE_ERRORMSG_WRONGTYPE;
    } else {
        job->program = NULL; /* the key takes over the reference */
        if (program_store(ctx, name, key, p) != REDISMODULE_OK) error = "ERR could not save the value";
    }
    RedisModule_CloseKey(key);
    if (!error) program_announce(ctx, name, p->kind);
    return error;
}

/* Word for word. RM_ReplicateVerbatim is lost in a reply callback of Redis 6.2. */
static void replicate_command(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    RedisModule_Replicate(ctx, slice_of(argv[0]).p, "v", argv + 1, (size_t)(argc - 1));
}

static void reply_store(RedisModuleCtx *ctx, RedisModuleString **argv, int argc, Job *job) {
    const char *error = job->error ? job->error : write_program(ctx, argv[1], job);
    if (error) {
        reply_error_line(ctx, error);
        return;
    }
    replicate_command(ctx, argv, argc);
    RedisModule_ReplyWithSimpleString(ctx, "OK");
}

static void reply_status(RedisModuleCtx *ctx, Job *job) {
    if (job->error) reply_error_line(ctx, job->error);
    else RedisModule_ReplyWithSimpleString(ctx, "OK");
}

static void reply_node(RedisModuleCtx *ctx, const ReplyNode *node) {
    switch (node->kind) {
    case NODE_INTEGER: RedisModule_ReplyWithLongLong(ctx, node->integer); break;
    case NODE_BULK: RedisModule_ReplyWithStringBuffer(ctx, node->bytes.p, node->bytes.n); break;
    case NODE_STATUS: RedisModule_ReplyWithSimpleString(ctx, node->bytes.p); break; /* one line: flow_reply() saw to it */
    case NODE_ERROR: reply_error_line(ctx, node->bytes.p); break;
    case NODE_ARRAY:
        RedisModule_ReplyWithArray(ctx, node->n);
        for (int i = 0; i < node->n; i++) reply_node(ctx, &node->items[i]);
        break;
    default: RedisModule_ReplyWithNull(ctx);
    }
}

int reply_job(RedisModuleCtx *ctx, RedisModuleString **argv, int argc) {
    Job *job = RedisModule_GetBlockedClientPrivateData(ctx);
    strings_drain();
    switch (job->kind) {
    case JOB_RUN: reply_run(ctx, argv, job); break;
    case JOB_STORE: reply_store(ctx, argv, argc, job); break;
    case JOB_LOADBACKEND: reply_status(ctx, job); break;
    case JOB_FLOW: reply_node(ctx, job->answer); break;
    case JOB_GET: program_reply(ctx, job->program, job->meta, job->blob); break;
    }
    return REDISMODULE_OK;
}
