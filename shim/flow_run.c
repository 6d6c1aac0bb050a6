/* flow_run.c -- runs that flows start: models, scripts and DAGs, without a client, on the run queues of everybody.
 *
 * A flow gives the words of AI.DAGEXECUTE and the tensors that LOAD names; the plan is that of the command, so such runs batch with those of
 * clients and count in AI.INFO. Rights are those of the flow's user, asked for each model and script when the plan is made. Nothing is
 * written: PERSIST is refused, and what a flow wants stored it stores with a command. The end goes to the flow queue from whichever
 * thread ends the job, without the Redis lock: a holder of it may be the one who waits. */
#include "ai.h"

typedef struct Asker { /* the PlanWorld of such a run */
    RedisModuleCtx *ctx;
    const Caller *caller;
    const Slice *words;
    Tensor *const *tensors;
    int ntensors, loaded;
} Asker;

static Program *asker_program(void *u, int arg, ProgramKind kind, const char **error) {
    Asker *a = u;
    RedisModuleString *key = RedisModule_CreateString(NULL, a->words[arg].p, a->words[arg].n);
    Program *p = NULL;
    *error = redis_may_read(a->ctx, a->caller, key);
    if (!*error) p = program_lookup(a->ctx, key, kind, error);
    if (p) program_ref(p);
    RedisModule_FreeString(NULL, key);
    return p;
}

static Tensor *asker_tensor(void *u, int arg, const char **error) {
    Asker *a = u;
    if (a->loaded < a->ntensors) return tensor_ref(a->tensors[a->loaded++]);
    *error = "ERR fewer tensors than LOAD names";
    return NULL;
}

static Tensor *asker_tensorset(void *u, int arg, int n, const char **error) {
    Asker *a = u;
    return tensor_parse(a->words + arg, n, NULL, error);
}

static const char *plan_for_flow(RedisModuleCtx *ctx, const Caller *caller, Tensor *const *tensors, int ntensors, const Slice *words, int argc,
                                 Job *job) {
    Asker asker = { ctx, caller, words, tensors, ntensors, 0 };
    PlanWorld world = { &asker, asker_program, asker_tensor, asker_tensorset, NULL, false };
    const char *error = plan_make(CMD_DAGEXECUTE, words, argc, &world, &job->arena, &job->plan);
    if (!error && job->plan.noutputs) error = "ERR PERSIST cannot be specified in a flow";
    for (int t = 0; t < job->plan.ntracks && !error; t++)
        if (runqueue_full(job->plan.tracks[t].queue)) error = "ERR the run queue of the device is full (MAX_QUEUE)";
    return error;
}

uint64_t flow_start(const Caller *caller, const Slice *argv, int argc, Tensor *const *tensors, int ntensors, Arena *arena, const char **error) {
    static _Atomic uint64_t last_token;
    RedisModuleCtx *ctx = RedisModule_GetThreadSafeContext(NULL);
    Job *job = job_new(JOB_RUN);
    uint64_t token = 0;
    Slice *words = arena_alloc(&job->arena, (size_t)argc * sizeof(*words)); /* the plan refers to them as long as it lives */
    for (int i = 0; i < argc; i++) words[i] = arena_copy(&job->arena, argv[i]);
    job->db = caller->db;
    job->user = user_ref((User *)caller->user);
    if (caller->origin) job->origin = arena_copy(&job->arena, (Slice){ caller->origin, strlen(caller->origin) }).p;

    RedisModule_ThreadSafeContextLock(ctx);
    RedisModule_SelectDb(ctx, caller->db);
    *error = ai_closing ? "ERR the server is shutting down" : plan_for_flow(ctx, caller, tensors, ntensors, words, argc, job);
    if (!*error) {
        for (int i = 0; i < job->plan.nops; i++) job->plan.ops[i].job = job;
        token = ++last_token;
        job->item = flow_item(ITEM_RUN, NULL, job);
        job->item->token = token;
        job_start(job); /* from here on it may have ended */
    }
    RedisModule_ThreadSafeContextUnlock(ctx);
    RedisModule_FreeThreadSafeContext(ctx);
    if (*error) {
        *error = arena_copy(arena, (Slice){ *error, strlen(*error) }).p;
        job_free(job);
    }
    return token;
}

void flow_run_ended(Job *job) { flow_post(job->item); }
